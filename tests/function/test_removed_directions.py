"""Removed directions: figures that were derived elsewhere, planted edits, and matrices without any."""

import numpy as np
import pytest

from specdiag.function import directions
from specdiag.function.algebra import Algebra
from specdiag.function.directions import DirectionSearch, Writer, low_end, windows

CPU = Algebra()
D, WIDE, LAYERS = 40, 100, 16


def cut(matrix, r, strength):
    return matrix - strength * np.outer(r, r @ matrix)


def test_the_check_cases():
    rng = np.random.default_rng(0)
    for shape in (*[(4, 12)] * 3, (12, 4), *[(20, 12)] * 2, (12, 20), 12, 12, 4, 4):
        rng.standard_normal(shape)
    matrix, r = rng.standard_normal((20, 50)), np.full(20, 20**-0.5)
    ratios = [low_end(w @ w.T, CPU, is_centred=False).ratio for w in (cut(matrix, r, a) for a in (0, 0.9, 1.0))]
    assert ratios[:2] == pytest.approx([0.780831, 0.024873], abs=5e-7)
    assert ratios[2] < 1e-12


def test_the_direction_is_found_and_several_are_counted():
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((D, WIDE))
    basis = np.linalg.qr(rng.standard_normal((D, 3)))[0]
    for n in (1, 2, 3):
        held = matrix - basis[:, :n] @ (basis[:, :n].T @ matrix)
        low = low_end(held @ held.T, CPU, is_centred=False)
        assert low.vectors.shape == (D, n)
        assert low.ratio < 1e-10
        assert np.linalg.svd(low.vectors.T @ basis[:, :n], compute_uv=False) == pytest.approx(np.ones(n))


def test_the_direction_of_equal_values_is_left_out():
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((D, WIDE))
    centred = matrix - matrix.mean(axis=0)
    assert low_end(centred @ centred.T, CPU, is_centred=False).ratio < 1e-12
    low = low_end(centred @ centred.T, CPU, is_centred=True)
    values = np.linalg.eigvalsh(centred @ centred.T)
    assert low.ratio == pytest.approx(values[1] / values[2], rel=1e-9)
    assert abs(low.vectors.sum(axis=0)).max() < 1e-9


def test_ranges_of_layers():
    assert windows(5) == [(0, 5)]
    assert windows(8) == [(0, 8)]
    assert windows(30) == [(0, 30), *((s, s + 8) for s in range(0, 21, 4)), (0, 16), (8, 24)]


def writers(edits=(), strength=1.0, seed=3):
    """Square and wide matrices of 16 layers; `edits` are the layers from which one direction is taken out."""
    rng = np.random.default_rng(seed)
    r = rng.standard_normal(D)
    r /= np.linalg.norm(r)
    found = []
    for layer in range(LAYERS):
        for role, n in (("o", D), ("down", WIDE)):
            values = rng.standard_normal((D, n))
            values = cut(values, r, strength) if layer in edits else values
            found.append(Writer(f"{layer}.{role}", layer, values))
    return found, r


def searched(matrices):
    search = DirectionSearch(None, range(LAYERS), CPU, is_centred=False)
    for writer in matrices:
        search.add(writer)
    if not search.is_held:
        for writer in matrices:
            search.compare(writer)
    return search.finish()


def test_figures_are_those_of_dense_algebra():
    matrices, _ = writers(edits=(3, 4))
    found, ranges, vectors = searched(matrices)
    grams = {w.key: w.values @ w.values.T / np.square(w.values).sum() for w in matrices}
    eigen = {key: np.linalg.eigh(gram) for key, gram in grams.items()}
    for row in found:
        values, basis = eigen[row.key]
        expected = values[0] / values[1] if row.key.endswith("down") else None
        assert row.ratio == (None if expected is None else pytest.approx(max(expected, 0), abs=1e-12))
        levels = sorted(basis[:, 0] @ gram @ basis[:, 0] / eigen[key][0][1] for key, gram in grams.items())
        assert row.shared == pytest.approx(max(levels[1], 0), rel=1e-6, abs=1e-12)
    assert {row.key for row in found if row.shared < 0.6} == {"3.o", "3.down", "4.o", "4.down"}
    assert {row.layers for row in found if row.key in ("3.down", "4.down")} == {(3, 4)}
    for window in ranges:
        held = [gram for key, gram in grams.items() if window.first <= int(key.partition(".")[0]) <= window.last]
        values = np.linalg.eigvalsh(np.mean(held, axis=0))
        assert (window.n_matrices, window.ratio) == (len(held), pytest.approx(values[0] / values[1], rel=1e-9))
        assert vectors[window.name].shape == (D, window.n_directions)
    assert [(w.first, w.last) for w in ranges if w.is_whole] == [(0, 15)]


def test_matrices_that_are_not_held_are_read_again(monkeypatch):
    matrices, _ = writers(edits=range(5, 12), strength=0.9)
    held = searched(matrices)
    monkeypatch.setattr(directions, "HELD", 3 * 8 * D * D)
    again = searched(matrices)
    for first, second in zip(held[0], again[0], strict=True):
        assert (second.key, second.shared_with, second.layers) == (first.key, first.shared_with, first.layers)
        assert second.shared == pytest.approx(first.shared, rel=1e-12)
    assert [w.layers for w in again[1]] == [w.layers for w in held[1]]


def test_an_edit_of_all_layers_is_seen_by_the_means_alone():
    matrices, r = writers(edits=range(LAYERS), strength=0.6)
    found, ranges, vectors = searched(matrices)
    (whole,) = (w for w in ranges if w.is_whole)
    assert whole.ratio < 0.5
    assert abs(vectors[whole.name][:, 0] @ r) > 0.99
    assert min(w.ratio for w in found if w.ratio is not None) > 0.2
    clean, clean_ranges, _ = searched(writers()[0])
    assert min(w.ratio for w in clean if w.ratio is not None) > 0.6
    assert min(w.ratio for w in clean_ranges) > 0.85


def test_zero_and_strange_matrices_are_passed_over():
    matrices, _ = writers()
    matrices[0] = matrices[0]._replace(values=np.zeros((D, D)))
    matrices[1] = matrices[1]._replace(values=np.full((D, WIDE), np.nan))
    matrices[3] = matrices[3]._replace(values=np.random.default_rng(0).standard_normal((D, 7)))
    found, ranges, _ = searched(matrices)
    assert {"0.o", "0.down", "1.down"}.isdisjoint(row.key for row in found)
    assert all(np.isfinite(w.ratio) for w in ranges)
