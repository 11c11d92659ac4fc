"""Matrices of a block by what they compute: figures that were derived elsewhere, and dense products in float64."""

import numpy as np
import pytest

from specdiag.function.attention import HeadNorm, Moving, normalised, ov_cores, plane_strengths, qk_cores, scoring
from specdiag.function.balance import balance_moving, balance_neurons, balance_scoring
from specdiag.function.folding import Norm, Reader, fold_reader, fold_writer
from specdiag.function.mlp import centred_router, du_core, strengths

DIGITS = 5e-7
D = 12


class Drawn:
    """Draw a head of 4 rows and a gated MLP of 20 neurons, in the order of the check cases."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.q, self.k, self.v = (rng.standard_normal((4, D)) for _ in range(3))
        self.o = rng.standard_normal((D, 4))
        self.gate, self.up = (rng.standard_normal((20, D)) for _ in range(2))
        self.down = rng.standard_normal((D, 20))
        self.gain = 1 + 0.3 * rng.standard_normal(D)
        self.beta = 0.1 * rng.standard_normal(D)
        self.q_bias, self.k_bias = (rng.standard_normal(4) for _ in range(2))

    @property
    def rms(self):
        return Norm(self.gain)

    @property
    def layer(self):
        return Norm(self.gain, self.beta, is_layer=True)


@pytest.fixture
def drawn():
    return Drawn()


def sigma(matrix, n=4):
    return np.linalg.svd(matrix, compute_uv=False)[:n]


def heads(drawn, norm, *, bias=False, rope=None):
    q = Reader(drawn.q, drawn.q_bias if bias else None)
    k = Reader(drawn.k, drawn.k_bias if bias else None)
    return scoring(q, k, 1, norm=norm, rope=rope, n_rotated=4 if rope else 0)


def moved(drawn, norm):
    v = fold_reader(Reader(drawn.v), norm).weight
    o = fold_writer(drawn.o, is_layer=norm.is_layer)
    return Moving(v=v[None], o=o[None])


def test_the_scores_of_a_head(drawn):
    assert sigma(qk_cores(heads(drawn, drawn.rms))[0]) == pytest.approx(
        [13.864673, 9.587354, 5.624683, 2.859183], abs=DIGITS
    )
    half, pairs = (plane_strengths(heads(drawn, drawn.rms, rope=rope))[0] for rope in ("half", "interleaved"))
    assert half == pytest.approx([12.255614, 22.987867], abs=DIGITS)
    assert pairs == pytest.approx([15.450682, 21.200895], abs=DIGITS)


def test_a_bias_of_keys_counts_where_positions_rotate_it(drawn):
    without = sigma(qk_cores(heads(drawn, drawn.layer, bias=True))[0])
    rotated = sigma(qk_cores(heads(drawn, drawn.layer, bias=True, rope="half"))[0])
    assert without == pytest.approx([12.431889, 8.599027, 5.863707, 2.816308], abs=DIGITS)
    assert rotated == pytest.approx([12.728804, 10.028661, 5.880802, 2.936675], abs=DIGITS)


def test_what_a_head_moves(drawn):
    assert sigma(ov_cores(moved(drawn, drawn.rms))[0]) == pytest.approx(
        [14.332951, 11.465389, 7.953803, 4.227833], abs=DIGITS
    )
    assert sigma(ov_cores(moved(drawn, drawn.layer))[0]) == pytest.approx(
        [11.414214, 9.479154, 7.084157, 4.108019], abs=DIGITS
    )


def test_down_times_up(drawn):
    up = drawn.up * drawn.gain
    assert sigma(du_core(up, drawn.down), 3) == pytest.approx([24.571084, 20.663871, 18.703254], abs=DIGITS)
    assert strengths(up, drawn.down)[:3] == pytest.approx([15.345284, 14.358252, 13.027320], abs=DIGITS)
    few = du_core(up[:8], drawn.down[:, :8])
    assert few.shape == (8, 8)
    assert sigma(few, 8) == pytest.approx(sigma(drawn.down[:, :8] @ up[:8], 8), rel=1e-12)
    assert np.linalg.norm(du_core(up, drawn.down, scaled=True)) == pytest.approx(1)
    assert not du_core(np.zeros((20, D)), drawn.down, scaled=True).any()


def test_neurons_in_balance(drawn):
    up, down = balance_neurons(drawn.up * drawn.gain, drawn.down)
    assert sigma(up, 3) == pytest.approx([6.483194, 5.647837, 5.177697], abs=DIGITS)
    assert sigma(down, 3) == pytest.approx([6.229899, 5.672976, 5.232043], abs=DIGITS)
    assert down @ up == pytest.approx(drawn.down @ (drawn.up * drawn.gain), abs=1e-12)


def several(rope=None, n_rotated=0, biases=True):
    """Six heads of 4 rows in three groups, dense as they stand in a model."""
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((n, D)) for n in (24, 12, 12))
    o = rng.standard_normal((D, 24))
    of_q, of_k = (rng.standard_normal(n) if biases else None for n in (24, 12))
    found = scoring(Reader(q, of_q), Reader(k, of_k), 6, rope=rope, n_rotated=n_rotated)
    return found, Moving(v=v.reshape(3, 4, D), o=o.reshape(D, 6, 4).transpose(1, 0, 2)), (q, k, v, o, of_q, of_k)


def test_each_group_of_keys_and_values_serves_its_heads():
    scores, moving, (q, k, v, o, of_q, _) = several()
    for head in range(6):
        rows, group = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        dense = np.column_stack([q[rows], of_q[rows]]).T @ k[group]
        assert sigma(qk_cores(scores)[head]) == pytest.approx(sigma(dense), rel=1e-12)
        assert sigma(ov_cores(moving)[head]) == pytest.approx(sigma(o[:, rows] @ v[group]), rel=1e-12)
    norm = np.sqrt(
        sum(np.linalg.norm(o[:, 4 * h : 4 * h + 4] @ v[4 * (h // 2) : 4 * (h // 2) + 4]) ** 2 for h in range(6))
    )
    assert ov_cores(moving, scaled=True) == pytest.approx(ov_cores(moving) / norm, rel=1e-12)


def test_only_rotated_rows_keep_the_bias_of_keys():
    scores, _, (_, k, _, _, _, of_k) = several("half", 2)
    expected = np.column_stack([k[:4], np.where(np.arange(4) < 2, of_k[:4], 0)])
    assert scores.k[0] == pytest.approx(expected)
    assert scores.by_plane(scores.k)[0].tolist() == [scores.k[0, :2].tolist()]


@pytest.mark.parametrize(("rope", "planes"), [("half", [[0, 2], [1, 3]]), ("interleaved", [[0, 1], [2, 3]])])
def test_rows_of_rotary_planes(rope, planes):
    scores = several(rope, 4)[0]
    assert scores.by_plane(np.arange(4)[:, None])[..., 0].tolist() == planes
    rows = scores.by_row(np.array([[5.0, 7.0]]))[0]
    assert [rows[plane].tolist() for plane in planes] == [[5, 5], [7, 7]]


@pytest.mark.parametrize("size", [4, 24])
def test_norms_of_queries_and_keys(size):
    scores, _, (q, k, *_) = several(biases=False)
    rng = np.random.default_rng(2)
    gains = rng.standard_normal(size), rng.standard_normal(size if size == 4 else 12)
    found = normalised(scores, HeadNorm(q_gain=gains[0], k_gain=gains[1]))
    for head in range(6):
        rows, group = slice(4 * head, 4 * head + 4), slice(4 * (head // 2), 4 * (head // 2) + 4)
        if size == 4:
            left = gains[0][:, None] * q[rows] / np.linalg.norm(q[rows])
            right = gains[1][:, None] * k[group] / np.linalg.norm(k[group])
        else:
            left = gains[0][rows, None] * q[rows] / np.linalg.norm(q)
            right = gains[1][group, None] * k[group] / np.linalg.norm(k)
        assert sigma(qk_cores(found)[head]) == pytest.approx(sigma(left.T @ right), rel=1e-12)


def test_heads_in_balance_compute_the_same():
    scores, moving, _ = several()
    even, moves = balance_scoring(scores), balance_moving(moving)
    for head in range(6):
        group = head // 2
        assert even.q[head].T @ even.k[group] == pytest.approx(scores.q[head].T @ scores.k[group], abs=1e-12)
        assert moves.o[head] @ moves.v[group] == pytest.approx(moving.o[head] @ moving.v[group], abs=1e-12)
    for group in range(3):
        stacked = np.concatenate(moves.o[2 * group : 2 * group + 2])
        assert sigma(stacked) == pytest.approx(sigma(moves.v[group]), rel=1e-12)
        queries = np.concatenate([even.q[2 * group].T, even.q[2 * group + 1].T])
        assert sigma(queries) == pytest.approx(sigma(even.k[group]), rel=1e-12)


@pytest.mark.parametrize("n_rotated", [2, 4])
def test_planes_in_balance_have_equal_norms(n_rotated):
    scores, _, _ = several("interleaved", n_rotated)
    even = balance_scoring(scores)
    for plane in np.arange(n_rotated).reshape(-1, 2):
        for group in range(3):
            queries = np.linalg.norm(even.q[2 * group : 2 * group + 2][:, plane])
            assert queries == pytest.approx(np.linalg.norm(even.k[group][plane]), rel=1e-12)
    assert plane_strengths(even) == pytest.approx(plane_strengths(scores), rel=1e-12)
    assert qk_cores(even).shape == (6, 4, 4)
    assert [sigma(core) for core in qk_cores(even)] == [pytest.approx(sigma(core)) for core in qk_cores(scores)]


def test_a_dead_side_stays_zero():
    up, down = balance_neurons(np.eye(3), np.zeros((3, 3)))
    assert not up.any()
    assert not down.any()
    moving = balance_moving(Moving(v=np.zeros((1, 2, 5)), o=np.ones((1, 5, 2))))
    assert not moving.v.any()


def test_a_router_loses_its_mean():
    router = np.arange(12.0).reshape(3, 4) ** 2
    assert centred_router(router + 7) == pytest.approx(centred_router(router))
    assert centred_router(router).sum(axis=0) == pytest.approx(np.zeros(4))
