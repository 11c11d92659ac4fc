"""Buffers stored as floats: known by name and by value, and weights of such names that hold other values."""

from __future__ import annotations

import math

import pytest
import torch

from specdiag.checkpoint.buffers import MASK, SINUSOIDS
from specdiag.checkpoint.memory import from_state_dict

N, D = 96, 64
NOISE = torch.randn(N, D, generator=torch.Generator().manual_seed(0))


def sinusoids(n=N, d=D):
    angles = torch.arange(n)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10_000) / d))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).reshape(n, d)


def on_a_grid():
    """MAE's table: half of each row for the height, half for the width, behind a class token."""
    rows = sinusoids(8, D // 2)
    grid = torch.cat([rows.repeat_interleave(8, 0), rows.repeat(8, 1)], dim=1)
    return torch.cat([torch.zeros(1, D), grid])[None]


def reasons(tensors):
    found = from_state_dict({"layers.0.attn.q_proj.weight": NOISE} | tensors).skipped
    return {skipped.name: skipped.reason for skipped in found}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pos_encoder.pe", sinusoids()[None]),
        ("pos_encoder.pe", torch.sin(torch.arange(N)[:, None] * torch.arange(D) / 50)[None]),
        ("encoder.positional_embedding", torch.cat([sinusoids()[:, ::2], sinusoids()[:, 1::2]], dim=1)),
        ("pos_embed", on_a_grid()),
        ("encoder.embed_positions.weight", sinusoids()),
    ],
)
def test_a_table_of_sinusoids_is_no_row(name, values, dtype):
    assert reasons({name: values.to(dtype)}) == {name: SINUSOIDS}


@pytest.mark.parametrize("name", ["pos_encoder.pe", "pos_embed", "encoder.embed_positions.weight"])
@pytest.mark.parametrize("values", [NOISE * 0.02, sinusoids() + 0.02 * NOISE, NOISE.clamp(-1, 1), torch.zeros(N, D)])
def test_a_table_that_was_trained_is_one(name, values):
    checkpoint = from_state_dict({name: values})
    assert [(matrix.name, matrix.module.role) for matrix in checkpoint.matrices] == [(name, "embed")]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("layers.0.attn.tril", torch.ones(N, N).tril()),
        ("layers.0.attn.causal_mask", torch.ones(N, N).triu(1)),
        ("layers.0.attn.future_mask", torch.full((N, N), -math.inf).triu(1)),
        ("layers.0.subsequent", torch.full((1, 1, N, N), -1e4).triu(1)),
    ],
)
def test_a_mask_is_no_row(name, values):
    assert reasons({name: values}) == {name: MASK}


def test_a_weight_that_is_called_a_mask_is_a_row():
    checkpoint = from_state_dict({"layers.0.tril": NOISE, "layers.1.attn.mask": NOISE.clone()})
    assert [matrix.name for matrix in checkpoint.matrices] == ["layers.0.tril", "layers.1.attn.mask"]


def test_where_one_layer_has_trained_its_mask_all_are_weights():
    masks = {f"layers.{i}.attn.head_mask": NOISE.clone() if i == 2 else torch.ones(N, D) for i in range(4)}
    assert [matrix.name for matrix in from_state_dict(masks).matrices] == list(masks)


@pytest.mark.parametrize(
    "values",
    [
        torch.linspace(-1, 1, N * D).reshape(N, D),
        torch.linspace(0, 1, N)[:, None] * torch.ones(D),
        torch.tensor([0.0, 1.0]).repeat(N, D // 2),
    ],
    ids=["ramp", "lines", "codes"],
)
def test_straight_lines_and_codes_are_no_sinusoids(values):
    assert [matrix.name for matrix in from_state_dict({"pos_emb.weight": values}).matrices] == ["pos_emb.weight"]


def test_a_complex_rotary_table_is_a_buffer_by_name():
    table = torch.polar(torch.ones(N, D), torch.rand(N, D))
    found = {
        s.name: s.reason
        for s in from_state_dict({"freqs_cis": table, "other": table.clone(), "a": NOISE.clone()}).skipped
    }
    assert found["other"] == "unsupported dtype C64"
    assert "dtype" not in found["freqs_cis"]


def test_slopes_and_rotary_caches_are_known_by_name():
    names = ("alibi", "layers.0.attn.alibi_slopes", "rope.cache", "layers.0.rotary_emb.cos", "freqs_sin")
    assert set(reasons({name: NOISE.clone() for name in names})) == set(names)


def test_values_that_cannot_be_told_from_a_file_are_left_to_the_row():
    checkpoint = from_state_dict({"pe": torch.full((N, D), math.nan)})
    assert [matrix.name for matrix in checkpoint.matrices] == ["pe"]
