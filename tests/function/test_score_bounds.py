"""Bounds of attention scores: figures that were derived elsewhere, brute force over positions, and transformers' scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from wired_models import random_model

from specdiag.analysis.source import open_source
from specdiag.architecture.wiring import UnknownWiring
from specdiag.function.alarms import look_for_alarms
from specdiag.function.algebra import Algebra
from specdiag.function.attention import HeadNorm, scoring
from specdiag.function.folding import Norm, Reader
from specdiag.function.score_scale import OFFSETS, frequencies, score_scale
from specdiag.function.scores import Rotation, bounds_at, bounds_everywhere, bounds_of_norms

DIGITS = 5e-7
D = 12
CPU = Algebra()
SLOW = Rotation(np.array([1.0, 0.1]), range(8))


@pytest.fixture
def heads():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((4, D)), rng.standard_normal((4, D))
    for shape in ((4, D), (D, 4), (20, D), (20, D), (D, 20)):
        rng.standard_normal(shape)
    gain = 1 + 0.3 * rng.standard_normal(D)
    return scoring(Reader(q), Reader(k), 1, norm=Norm(gain), rope="half", n_rotated=4)


def test_the_check_cases(heads):
    product = D / 2 * np.linalg.norm(heads.q[0], 2) * np.linalg.norm(heads.k[0], 2)
    assert product == pytest.approx(106.233516, abs=DIGITS)
    assert bounds_at(heads, D, 0.5, None, CPU)[0] == pytest.approx(83.188039, abs=DIGITS)
    assert bounds_at(heads, D, 0.5, SLOW, CPU)[0] == pytest.approx(99.296674, abs=DIGITS)


def turned(rows, position, rope):
    """Rotate the rows of a head as transformers do."""
    angles = position * SLOW.frequencies
    planes = ((0, 2), (1, 3)) if rope == "half" else ((0, 1), (2, 3))
    out = rows.copy()
    for (a, b), angle in zip(planes, angles, strict=True):
        out[a], out[b] = (
            rows[a] * np.cos(angle) - rows[b] * np.sin(angle),
            rows[b] * np.cos(angle) + rows[a] * np.sin(angle),
        )
    return out


@pytest.mark.parametrize("rope", ["half", "interleaved"])
@pytest.mark.parametrize("biases", [False, True])
def test_no_text_exceeds_a_bound(rope, biases):
    rng = np.random.default_rng(1)
    q, k = (Reader(rng.standard_normal((4, D)), 3 * rng.standard_normal(4) if biases else None) for _ in range(2))
    found = scoring(q, k, 1, rope=rope, n_rotated=4)
    offsets = range(-7, 1)
    near = bounds_at(found, D, 0.5, Rotation(SLOW.frequencies, offsets), CPU)[0]
    everywhere = bounds_everywhere(found, D, 0.5, CPU)[0]
    best = 0.0
    for offset in offsets:
        queries, keys = turned(q.weight, -offset, rope), k.weight  # query at -offset, key at 0
        b, c = (0, 0) if not biases else (turned(q.bias, -offset, rope), k.bias)
        left, _, right = np.linalg.svd(queries.T @ keys)
        tries = np.r_[rng.standard_normal((50, D)), left[:, :1].T, -left[:, :1].T]
        others = np.r_[rng.standard_normal((50, D)), right[:1], right[:1]]
        for x, y in zip(tries, others, strict=True):
            x, y = (z * D**0.5 / np.linalg.norm(z) for z in (x, y))
            best = max(best, abs((queries @ x + b) @ (keys @ y + c)) / 2)
    assert 0.4 * near < best <= near * (1 + 1e-12)
    assert near < everywhere
    if not biases:
        assert best == pytest.approx(near)


def test_scales_of_planes_leave_both_bounds(heads):
    scale = np.exp(np.random.default_rng(2).standard_normal(2))
    rows = heads.by_row(scale[None])[0]
    other = replace(heads, q=heads.q * rows[:, None], k=heads.k / rows[:, None])
    for bound in (lambda h: bounds_at(h, D, 0.5, SLOW, CPU), lambda h: bounds_everywhere(h, D, 0.5, CPU)):
        assert bound(other) == pytest.approx(bound(heads), rel=1e-12)


def test_norms_of_queries_and_keys_bound_their_scores():
    rng = np.random.default_rng(3)
    found = scoring(
        Reader(rng.standard_normal((8, D))), Reader(rng.standard_normal((4, D))), 2, rope="half", n_rotated=4
    )
    of_head = bounds_of_norms(found, HeadNorm(q_gain=rng.standard_normal(4), k_gain=rng.standard_normal(4)), 0.5)
    rng = np.random.default_rng(3)
    rng.standard_normal((8, D)), rng.standard_normal((4, D))
    q, k = (np.abs(rng.standard_normal(4)) for _ in range(2))
    expected = 0.5 * 4 * max(max(q[i], q[i + 2]) * max(k[i], k[i + 2]) for i in range(2))
    assert of_head == pytest.approx([expected] * 2)
    assert expected <= 0.5 * 4 * q.max() * k.max()
    of_all = bounds_of_norms(found, HeadNorm(q_gain=np.r_[q, 2 * q], k_gain=k), 0.5)
    assert of_all == pytest.approx([expected * 2**0.5, 2 * expected * 2**0.5])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "qwen3", "bert", "olmo2"])
def test_scores_of_transformers_stay_below(kind):
    """Logarithms of attention differ within a row as its scores do, by twice a bound at most."""
    model = random_model(kind)
    alarms, _ = look_for_alarms(open_source(model))
    bounds = {(s.layer, s.head): s.bound for s in alarms.scores}
    assert len(bounds) == len(alarms.scores) == 2 * 4
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 67, (2, 12)))
    with torch.no_grad():
        shares = model(tokens, output_attentions=True).attentions
    for layer, share in enumerate(shares):
        logs = torch.log(share.double().clamp_min(1e-300))
        for head in range(4):
            rows = [row[row > -600] for row in logs[:, head].reshape(-1, 12)]
            spread = max(float(row.max() - row.min()) for row in rows if len(row) > 1)
            assert spread <= 2 * bounds[layer, head] * (1 + 1e-5), (layer, head)


def test_scales_of_scores_come_from_the_config():
    assert score_scale([{}], 64, 0) == 0.125
    assert score_scale([{"query_pre_attn_scalar": 256}], 64, 0) == 1 / 16
    assert score_scale([{"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}], 64, 3) == 0.25
    with pytest.raises(UnknownWiring, match="rotary positions of type yarn scale its scores"):
        score_scale([{"rope_scaling": {"type": "yarn", "factor": 4}}], 64, 0)
    with pytest.raises(UnknownWiring, match="longrope"):
        score_scale([{"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}], 64, 0)


def test_frequencies_are_those_of_transformers():
    for kind in ("llama", "gpt_neox"):
        model = random_model(kind)
        inner = model.model if kind == "llama" else model.gpt_neox
        expected = inner.rotary_emb.inv_freq.double().numpy()
        assert frequencies([model.config.to_dict()], 2 * len(expected)) == pytest.approx(expected, rel=1e-6)
    assert frequencies([{}], 4) is None
    assert frequencies([{"rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3"}}], 4) is None
    assert (len(OFFSETS), OFFSETS[0], OFFSETS[-1]) == (46, 0, -511)
