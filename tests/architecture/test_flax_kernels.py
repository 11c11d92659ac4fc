"""Kernels of Flax, stored (in, out): their parts and slices against what the layers of Flax compute with them."""

from __future__ import annotations

import numpy as np
import pytest

from specdiag.architecture.roles import modules

D, HEADS, HEAD_DIM, TOKENS = 24, 6, 4, 7


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def cut(name, kernel, config=None, beside=None):
    """The matrices of one kernel, by the name of the part, and the notes."""
    found = modules({name: kernel.shape} | (beside or {}), config)
    return {p.module.part or p.module.role: p.slicer.cut(kernel) for p in found.parts[name]}, found.notes


def test_heads_that_have_an_axis_are_one_matrix():
    x, kernel = random(TOKENS, D), random(D, HEADS, HEAD_DIM)
    parts, _ = cut("encoderblock_0.MultiHeadDotProductAttention_0.query.kernel", kernel)
    np.testing.assert_allclose(x @ parts["q"][0], np.einsum("td,dnh->tnh", x, kernel).reshape(TOKENS, -1), rtol=1e-12)
    heads, kernel = random(TOKENS, HEADS, HEAD_DIM), random(HEADS, HEAD_DIM, D)
    parts, _ = cut("encoderblock_0.MultiHeadDotProductAttention_0.out.kernel", kernel)
    expected = np.einsum("tnh,nhd->td", heads, kernel)
    np.testing.assert_allclose(heads.reshape(TOKENS, -1) @ parts["o"][0], expected, rtol=1e-12)


@pytest.mark.parametrize("keys", [D, 8])
def test_fused_projections_are_cut_along_their_columns(keys):
    x, kernel = random(TOKENS, D), random(D, D + 2 * keys)
    config = {"num_attention_heads": D // 8, "num_key_value_heads": keys // 8}
    parts, notes = cut("h_0.attn.qkv.kernel", kernel, config, beside={"h_0.attn.proj.kernel": (D, D)})
    assert notes == []
    for name, expected in zip("qkv", np.split(x @ kernel, (D, D + keys), axis=-1), strict=True):
        np.testing.assert_allclose(x @ parts[name][0], expected, rtol=1e-12)


def test_gate_and_up_in_one_are_cut_along_their_columns():
    x, kernel = random(TOKENS, D), random(D, 2 * 40)
    parts, _ = cut("layers_0.mlp.gate_up_proj.kernel", kernel, beside={"layers_0.mlp.down_proj.kernel": (40, D)})
    for name, expected in zip(("gate", "up"), np.split(x @ kernel, 2, axis=-1), strict=True):
        np.testing.assert_allclose(x @ parts[name][0], expected, rtol=1e-12)


def test_groups_of_heads_are_not_guessed():
    config = {"model_type": "gpt_neox", "num_attention_heads": HEADS}
    parts, notes = cut("layers_0.attention.query_key_value.kernel", random(D, 3 * D), config)
    assert list(parts) == ["other"]
    assert "it is stored (in, out)" in notes[0]


def test_convolutions_have_their_kernel_in_front():
    kernel = random(3, 5, 8, 16)
    parts, _ = cut("conv_root.kernel", kernel)
    np.testing.assert_array_equal(parts["conv"], [kernel[i, j] for i in range(3) for j in range(5)])
    kernel = random(4, 4, 3, D)
    parts, _ = cut("patch_embed.kernel", kernel)
    np.testing.assert_array_equal(parts["embed"][0], kernel.reshape(-1, D))


@pytest.mark.parametrize("width", [40, 8])
def test_the_first_dense_layer_is_up_whichever_is_larger(width):
    shapes = {"Embed_0.embedding": (300, D)}
    for i in range(2):
        shapes[f"Block_{i}.SelfAttention_0.query.kernel"] = (D, HEADS, HEAD_DIM)
        shapes |= {f"Block_{i}.Dense_0.kernel": (D, width), f"Block_{i}.Dense_1.kernel": (width, D)}
    found = modules(shapes).parts
    assert [found[f"Block_1.Dense_{n}.kernel"][0].module.role for n in (0, 1)] == ["up", "down"]
    assert found["Block_1.Dense_0.kernel"][0].module.layer == 1
