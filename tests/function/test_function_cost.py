"""Shortcuts of the function: triangles by Cholesky, tensors that are read once, and balanced forms in float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from msgspec import structs
from numpy.testing import assert_allclose
from wired_models import random_model

import specdiag
from specdiag.analysis.batches import batches, units
from specdiag.analysis.function import needed, with_function
from specdiag.analysis.options import AnalysisOptions
from specdiag.analysis.settings import resolved
from specdiag.analysis.source import open_source
from specdiag.analysis.workers import on_cpu
from specdiag.function import decompositions, effective
from specdiag.function.decompositions import orthogonal, triangle


def tall(condition: float, rng: np.random.Generator) -> np.ndarray:
    u, _, w = np.linalg.svd(rng.standard_normal((300, 32)), full_matrices=False)
    return (u * np.geomspace(1, 1 / condition, 32)) @ w


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3, 1e6, 1e9])
def test_triangles_have_the_singular_values_of_their_matrices(condition: float) -> None:
    rng = np.random.default_rng(0)
    stack = np.stack([tall(condition, rng) for _ in range(3)]) * np.exp(rng.standard_normal(32) * 5)
    for r in (triangle(stack), orthogonal(stack)[1]):
        assert not np.tril(r, -1).any()
        other = rng.standard_normal((32, 32))
        found = np.linalg.svd(r @ other, compute_uv=False)
        expected = np.linalg.svd(np.linalg.qr(stack, mode="r") @ other, compute_uv=False)
        assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * expected.max())
    q, r = orthogonal(stack)
    assert_allclose(q @ r, stack, rtol=0, atol=1e-12 * np.abs(stack).max())
    assert_allclose(q.swapaxes(1, 2) @ q, np.broadcast_to(np.eye(32), (3, 32, 32)), rtol=0, atol=1e-10)


def test_the_condition_alone_decides_and_not_the_scale_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real = np.linalg.qr
    monkeypatch.setattr(decompositions.np.linalg, "qr", lambda *a, **k: taken.append(1) or real(*a, **k))
    rng = np.random.default_rng(1)
    for condition, by_qr in ((30.0, False), (1e6, True)):
        triangle(tall(condition, rng) * np.exp(rng.standard_normal(32) * 5))
        assert bool(taken) == by_qr
    taken.clear()
    triangle(np.full((1, 300, 32), np.nan))
    triangle(np.zeros((1, 300, 32)))
    assert len(taken) == 2


def test_tensors_of_a_block_are_read_once() -> None:
    checkpoint = open_source(random_model("llama", num_hidden_layers=2))
    reads: Counter[str] = Counter()

    def counted(matrix):
        def read(index):
            reads[matrix.tensor.name] += 1
            return matrix.tensor.read(index)

        return structs.replace(matrix, tensor=structs.replace(matrix.tensor, read=read))

    checkpoint = replace(checkpoint, matrices=tuple(counted(m) for m in checkpoint.matrices))
    settings = resolved(AnalysisOptions(function=True, device="cpu"), checkpoint.opening)
    checkpoint, balanced = with_function(checkpoint, settings)
    work = units([*checkpoint.matrices, *needed(balanced, checkpoint.matrices)])
    taken = list(batches(work, settings))
    assert sorted(id(unit) for batch in taken for unit in batch.units) == sorted(map(id, work))
    assert sum(batch.kind == "family" for batch in taken) == 6  # q with k, v with o, and the MLP, of each block
    assert len(list(on_cpu(work, settings, 2))) == sum(len(unit.matrices) for unit in work)
    assert set(reads.values()) == {1}


def test_what_heads_and_balanced_forms_share_is_folded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folded: Counter[str] = Counter()
    for name in ("scores", "_moving", "_neurons"):
        real = getattr(effective, name)

        def counted(*sources, name=name, real=real):
            folded[name] += 1
            return real(*sources)

        monkeypatch.setattr(effective, name, counted)
    checkpoint = open_source(random_model("llama", num_hidden_layers=2))
    settings = resolved(AnalysisOptions(function=True, device="cpu"), checkpoint.opening)
    checkpoint, balanced = with_function(checkpoint, settings)
    list(on_cpu(units([*checkpoint.matrices, *needed(balanced, checkpoint.matrices)]), settings, 2))
    assert folded == dict.fromkeys(("scores", "_moving", "_neurons"), 2)


def test_balanced_forms_of_coarse_weights_are_solved_in_float32() -> None:
    model = random_model("llama", hidden_size=256, intermediate_size=320, num_attention_heads=4, head_dim=64)
    model.to(torch.bfloat16)
    quick = specdiag.analyze(model, function=True, device="cpu")
    exact = specdiag.analyze(model, function=True, device="cpu", dtype="float64")
    shifted = [row for row in quick if row.gauge_shift is not None]
    assert len(shifted) >= 7
    differences = [abs(row.gauge_shift - exact[row.key].gauge_shift) for row in shifted]
    assert 0 < max(differences) < 2e-4 * max(row.balanced_alpha for row in shifted)
    products = [row.key for row in quick.function if row.role in ("qk", "ov", "du")]
    assert products
    assert all(quick[key].alpha == exact[key].alpha for key in products)
