"""Bounds of outputs: figures that were derived elsewhere, brute force, and inputs that come near them."""

import numpy as np
import pytest

from specdiag.function.algebra import Algebra
from specdiag.function.attention import Moving
from specdiag.function.bounds import (
    balanced_gate,
    down_bounds,
    gated_bounds,
    gated_down_bound,
    gated_down_bounds,
    least_of_norm,
    least_of_reader,
    moved_bounds,
    plain_down_bounds,
    reader_bounds,
)
from specdiag.function.folding import Norm, Reader, fold_reader

DIGITS = 5e-7
D, M = 12, 20
CPU = Algebra()


@pytest.fixture
def drawn():
    """Matrices in the order of the check cases; the gain folded into what reads."""
    rng = np.random.default_rng(0)
    draw = rng.standard_normal
    _, _, v = (draw((4, D)) for _ in range(3))
    o = draw((D, 4))
    gate, up, down = draw((M, D)), draw((M, D)), draw((D, M))
    gain = 1 + 0.3 * draw(D)
    return {"v": v * gain, "o": o, "gate": Reader(gate * gain), "up": Reader(up * gain), "down": Reader(down)}


def test_the_check_cases(drawn):
    gate, up, down = drawn["gate"], drawn["up"], drawn["down"]
    inner = gated_bounds(gate, up)
    assert reader_bounds(gate).max() == pytest.approx(15.272255, abs=DIGITS)
    assert inner.max() == pytest.approx(161.520301, abs=DIGITS)
    product = D * np.linalg.norm(gate.weight, axis=1) * np.linalg.norm(up.weight, axis=1)
    assert product.max() == pytest.approx(219.251304, abs=DIGITS)
    assert down_bounds(down, inner)[0] == pytest.approx(1241.729408, abs=DIGITS)
    assert gated_down_bound(down.weight[0], gate, up, CPU) == pytest.approx(561.909490, abs=DIGITS)
    heads = Moving(v=drawn["v"][None], o=drawn["o"][None])
    assert moved_bounds(heads, D)[0] == pytest.approx(15.262940, abs=DIGITS)


def inputs(rng, n=4000, *, is_layer=False):
    x = rng.standard_normal((n, D))
    x -= x.mean(axis=1, keepdims=True) * is_layer
    return x * D**0.5 / np.linalg.norm(x, axis=1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("is_layer", [False, True])
def test_no_input_exceeds_a_bound_and_some_come_near(is_layer):
    rng = np.random.default_rng(3)
    norm = Norm(1 + 0.3 * rng.standard_normal(D), 0.5 * rng.standard_normal(D) if is_layer else None, is_layer)
    raw = [Reader(rng.standard_normal((M, D)), rng.standard_normal(M) if is_layer else None) for _ in range(2)]
    down = Reader(rng.standard_normal((D, M)), rng.standard_normal(D) if is_layer else None)
    gate, up = (fold_reader(r, norm) for r in raw)
    x = inputs(rng, is_layer=is_layer)
    fed = x * norm.gain + (0 if norm.bias is None else norm.bias)
    g, u = (fed @ r.weight.T + (0 if r.bias is None else r.bias) for r in raw)
    assert (np.abs(g) <= reader_bounds(gate) + 1e-9).all()
    assert (np.abs(g).max(axis=0) / reader_bounds(gate)).max() > 0.8
    entering = silu(g) * u
    assert (np.abs(entering) <= gated_bounds(gate, up) + 1e-9).all()
    assert ((np.abs(g * u)).max(axis=0) / gated_bounds(gate, up)).max() > 0.5
    out = entering @ down.weight.T + (0 if down.bias is None else down.bias)
    bias = 0 if down.bias is None else np.abs(down.bias)
    even, scaled = balanced_gate(gate, up, down.weight)
    first = down_bounds(down, gated_bounds(gate, up))
    second = np.array([gated_down_bound(row, gate, even, CPU) for row in scaled]) + bias
    between = gated_down_bounds(scaled, gate, even, CPU) + bias
    for bounds in (first, second, between):
        assert (np.abs(out) <= bounds).all()
    assert (second <= between * (1 + 1e-12)).all()
    assert second.max() < first.max()


def test_an_mlp_without_a_gate_stays_below_both_bounds():
    rng = np.random.default_rng(4)
    up = Reader(rng.standard_normal((M, D)), rng.standard_normal(M))
    down = Reader(rng.standard_normal((D, M)), rng.standard_normal(D))
    z = inputs(rng) @ up.weight.T + up.bias
    out = silu(z) @ down.weight.T + down.bias
    assert (np.abs(out) <= plain_down_bounds(down, up, CPU)).all()
    assert (np.abs(out) <= down_bounds(down, reader_bounds(up))).all()


def test_the_cheap_bound_is_the_least_over_its_constant():
    rng = np.random.default_rng(5)
    gate = Reader(rng.standard_normal((M, D)))
    up, scaled = balanced_gate(gate, Reader(rng.standard_normal((M, D))), rng.standard_normal((D, M)))
    squares, weights = (gate.weight**2).sum(axis=1), np.abs(scaled)
    for j, row in enumerate(weights):
        found = 1.0
        for side in (gate, up):
            top = np.linalg.norm(side.weight, 2) ** 2
            found *= min(np.maximum(row - c, 0) @ squares + c * top for c in (0, *row))
        assert gated_down_bounds(scaled, gate, up, CPU)[j] == pytest.approx(D * found**0.5, rel=1e-12)


def test_scales_of_neurons_leave_the_second_bound():
    rng = np.random.default_rng(6)
    gate, up, down = Reader(rng.standard_normal((M, D))), rng.standard_normal((M, D)), rng.standard_normal((D, M))
    scale = np.exp(0.5 * rng.standard_normal(M))
    found = []
    for factor in (np.ones(M), scale):
        even, scaled = balanced_gate(gate, Reader(up * factor[:, None]), down / factor)
        found.append([gated_down_bound(scaled[0], gate, even, CPU), *gated_down_bounds(scaled, gate, even, CPU)])
    assert found[1] == pytest.approx(found[0], rel=1e-12)


def test_attention_averages_values_with_their_bias():
    rng = np.random.default_rng(7)
    v, o = rng.standard_normal((2, 4, D)), rng.standard_normal((4, D, 4))
    bounds = moved_bounds(Moving(v=v, o=o), D, rng.standard_normal(D))
    dense = [np.linalg.norm(o[h] @ v[h // 2], axis=1) for h in range(4)]
    bias = np.random.default_rng(7)
    bias.standard_normal((2, 4, D)), bias.standard_normal((4, D, 4))
    assert bounds == pytest.approx(D**0.5 * np.sum(dense, axis=0) + np.abs(bias.standard_normal(D)), rel=1e-12)


def test_the_least_of_a_norm_is_reached_and_never_undercut():
    rng = np.random.default_rng(8)
    gain, bias = np.exp(rng.standard_normal(D)), 0.01 * rng.standard_normal(D)
    least = least_of_norm(Norm(gain))
    even = 1 / gain * D**0.5 / np.linalg.norm(1 / gain)
    assert np.abs(even * gain).max() == pytest.approx(least, rel=1e-12)
    assert np.abs(inputs(rng) * gain).max(axis=1).min() >= least
    assert np.abs(inputs(rng) * gain + bias).max(axis=1).min() >= least_of_norm(Norm(gain, bias)) > 0
    assert least_of_norm(Norm(np.r_[gain[1:], 0.0])) == 0


def test_the_least_of_a_matrix_is_never_undercut():
    rng = np.random.default_rng(9)
    tall = Reader(rng.standard_normal((M, D)))
    least = least_of_reader(tall, beyond=0.1)
    assert least == pytest.approx((D / M) ** 0.5 * np.linalg.svd(tall.weight, compute_uv=False)[-1])
    assert np.abs(inputs(rng) @ tall.weight.T).max(axis=1).min() >= least
    assert least_of_reader(tall, beyond=1e9) == 0
    shifted = Reader(tall.weight, np.r_[100.0, np.zeros(M - 1)])
    least = least_of_reader(shifted, beyond=0.1)
    assert 0 < 100 - D**0.5 * np.linalg.norm(tall.weight[0]) == pytest.approx(least)
    assert np.abs(inputs(rng) @ tall.weight.T + shifted.bias).max(axis=1).min() >= least
