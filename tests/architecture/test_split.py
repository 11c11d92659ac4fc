"""Cutting fused and stacked tensors, against what each model's forward does with the activations.

A fused weight is random, so every part is right only if x @ part.T is what the forward pass takes for that part.
The forward passes below are those of the published models, written down once more in numpy.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specdiag.architecture.roles import modules

D, HEADS, HEAD_DIM, TOKENS = 24, 6, 5, 7
ROWS = HEADS * HEAD_DIM


@pytest.fixture(params=["numpy", "torch"])
def array(request):
    """The fused weight as each kind of array that a reader may hold."""
    return np.asarray if request.param == "numpy" else torch.from_numpy


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def cut(name, weight, array, config=None, beside=None):
    """The parts of one tensor by their names, after a round through its slicers."""
    shapes = {name: weight.shape} | (beside or {})
    found = modules(shapes, config)
    assert found.notes == []
    parts = {}
    for part in found.parts[name]:
        raw = array(weight) if part.slicer.index is None else array(weight[part.slicer.index])
        matrix = part.slicer.cut(raw)
        assert tuple(matrix.shape) == part.slicer.shape
        parts[part.module.part] = np.asarray(matrix)
    return {label: matrix[0] if matrix.shape[0] == 1 else matrix for label, matrix in parts.items()}


def check(parts, x, expected):
    """Each part maps x to the activations that the forward pass takes for it, heads flattened."""
    assert parts.keys() == expected.keys()
    for label, activations in expected.items():
        np.testing.assert_allclose(x @ parts[label].T, activations.reshape(TOKENS, -1), rtol=1e-12, atol=1e-12)


def neox(fused):
    q, k, v = np.split(fused.reshape(TOKENS, HEADS, 3 * HEAD_DIM), 3, axis=-1)
    return {"q": q, "k": k, "v": v}


def bloom(fused):
    fused = fused.reshape(TOKENS, HEADS, 3, HEAD_DIM)
    return {"q": fused[..., 0, :], "k": fused[..., 1, :], "v": fused[..., 2, :]}


def falcon_multi_query(fused):
    fused = fused.reshape(TOKENS, HEADS + 2, HEAD_DIM)
    return {"q": fused[:, :-2], "k": fused[:, [-2]], "v": fused[:, [-1]]}


def falcon_new(fused):
    fused = fused.reshape(TOKENS, 2, HEADS // 2 + 2, HEAD_DIM)
    return {"q": fused[:, :, :-2], "k": fused[:, :, [-2]], "v": fused[:, :, [-1]]}


def codegen(fused):
    shards = fused.reshape(TOKENS, 4, -1)
    q, v, k = np.split(shards, 3, axis=-1)
    return {"q": q, "k": k, "v": v}


def thirds(fused):
    q, k, v = np.split(fused, 3, axis=-1)
    return {"q": q, "k": k, "v": v}


def two_key_heads(fused):
    q, k, v = np.split(fused, [ROWS, ROWS + 2 * HEAD_DIM], axis=-1)
    return {"q": q, "k": k, "v": v}


NEOX = {"model_type": "gpt_neox", "num_attention_heads": HEADS}
OUTPUT = {"h.0.attn.out_proj.weight": (D, ROWS)}
QUERY_KEY_VALUE = "h.0.self_attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("name", "rows", "config", "beside", "forward"),
    [
        ("gpt_neox.layers.0.attention.query_key_value.weight", 3 * ROWS, NEOX, None, neox),
        (QUERY_KEY_VALUE, 3 * ROWS, {"model_type": "bloom", "n_head": HEADS}, None, bloom),
        (
            QUERY_KEY_VALUE,
            3 * ROWS,
            {"model_type": "falcon", "num_attention_heads": HEADS, "multi_query": False},
            None,
            bloom,
        ),
        (
            QUERY_KEY_VALUE,
            (HEADS + 2) * HEAD_DIM,
            {"model_type": "falcon", "num_attention_heads": HEADS, "multi_query": True},
            None,
            falcon_multi_query,
        ),
        (
            QUERY_KEY_VALUE,
            (HEADS + 4) * HEAD_DIM,
            {
                "model_type": "falcon",
                "num_attention_heads": HEADS,
                "num_kv_heads": 2,
                "new_decoder_architecture": True,
                "multi_query": True,
            },
            None,
            falcon_new,
        ),
        (
            "model.layers.0.attention.wqkv.weight",
            (HEADS + 4) * HEAD_DIM,
            {"model_type": "internlm2", "num_attention_heads": HEADS, "num_key_value_heads": 2},
            None,
            falcon_new,
        ),
        (
            "language_model.layers.0.self_attn.query_key_value.weight",
            3 * ROWS,
            {"model_type": "fuyu", "text_config": {"model_type": "persimmon", "num_attention_heads": HEADS}},
            None,
            bloom,
        ),
        ("transformer.h.0.attn.qkv_proj.weight", 12 * HEAD_DIM, {"model_type": "codegen"}, None, codegen),
        ("blocks.0.attn.qkv.weight", 3 * D, None, None, thirds),
        ("layers.0.self_attn.in_proj_weight", 3 * D, None, None, thirds),
        (
            "model.layers.0.self_attn.qkv_proj.weight",
            ROWS + 4 * HEAD_DIM,
            {"model_type": "phi3", "num_attention_heads": HEADS, "num_key_value_heads": 2},
            None,
            two_key_heads,
        ),
        (
            "h.0.attn.Wqkv.weight",
            ROWS + 4 * HEAD_DIM,
            {"model_type": "mpt", "n_heads": HEADS, "attn_config": {"kv_n_heads": 2}},
            None,
            two_key_heads,
        ),
        ("h.0.attn.Wqkv.weight", ROWS + 4 * HEAD_DIM, None, OUTPUT, two_key_heads),
    ],
)
def test_fused_attention(name, rows, config, beside, forward, array):
    weight, x = random(rows, D), random(TOKENS, D)
    check(cut(name, weight, array, config, beside), x, forward(x @ weight.T))


def test_contiguous_thirds_of_an_interleaved_tensor_are_wrong(array):
    weight, x = random(3 * ROWS, D), random(TOKENS, D)
    parts = cut("gpt_neox.layers.0.attention.query_key_value.weight", weight, array, NEOX)
    with pytest.raises(AssertionError):
        check(parts, x, thirds(x @ weight.T))


def test_gpt2_conv1d_is_cut_by_columns_and_nanogpt_by_rows(array):
    x = random(TOKENS, D)
    conv1d = random(D, 3 * D)
    parts = cut("h.0.attn.c_attn.weight", conv1d, array)
    check({label: part.T for label, part in parts.items()}, x, thirds(x @ conv1d))
    linear = random(3 * D, D)
    check(cut("h.0.attn.c_attn.weight", linear, array), x, thirds(x @ linear.T))


@pytest.mark.parametrize("config", [None, {"num_attention_heads": 16}])
def test_the_projection_that_follows_tells_the_fused_axis(array, config):
    x, stored = random(TOKENS, D), random(D, 3 * D)
    parts = cut("layers.0.attn.qkv.weight", stored, array, config, {"layers.0.attn.proj.weight": (D, D)})
    check({label: part.T for label, part in parts.items()}, x, thirds(x @ stored))


def test_an_axis_that_nothing_tells_is_not_guessed():
    found = modules({"layers.0.attn.qkv.weight": (96, 288)}, {"num_attention_heads": 16})
    assert any("whether its 96 rows or its 288 columns hold the heads cannot be told" in note for note in found.notes)


@pytest.mark.parametrize("config", [None, {"num_attention_heads": 8}, {"model_type": "any", "n_heads": 8}])
def test_wide_values_are_not_taken_for_queries(config):
    """EfficientFormer's heads hold 32 queries, 32 keys and 128 values."""
    path = "stages.3.blocks.4.token_mixer"
    found = modules({f"{path}.qkv.weight": (1536, 448), f"{path}.proj.weight": (448, 1024)}, config)
    assert [part.module.role for part in found.parts[f"{path}.qkv.weight"]] == ["other"]
    assert any("its output reads 1024 values" in note for note in found.notes)


def test_a_config_or_a_name_tells_that_queries_share_keys(array):
    weight, x = random(ROWS + 4 * HEAD_DIM, D), random(TOKENS, D)
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": 2}
    for beside, config in ((OUTPUT, heads), (OUTPUT | {"h.0.attn.sinks": (HEADS,)}, None)):
        check(cut("h.0.attn.qkv.weight", weight, array, config, beside), x, two_key_heads(x @ weight.T))


def test_in_proj_weight_as_torch_multihead_attention_uses_it():
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(D, HEADS, bias=False, dtype=torch.float64)
    parts = cut("self_attn.in_proj_weight", attention.in_proj_weight.detach().numpy(), np.asarray)
    separate = torch.nn.MultiheadAttention(D, HEADS, bias=False, dtype=torch.float64, kdim=D, vdim=D)
    separate._qkv_same_embed_dim = False
    for label in "qkv":
        setattr(separate, f"{label}_proj_weight", torch.nn.Parameter(torch.from_numpy(parts[label])))
    separate.in_proj_weight = None
    separate.out_proj.weight = attention.out_proj.weight
    x = torch.from_numpy(random(TOKENS, D))
    y = torch.from_numpy(random(TOKENS + 2, D))
    expected, _ = attention(x, y, y)
    found, _ = separate(x, y, y)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gate_and_up_of_a_plain_matrix(array):
    x, weight = random(TOKENS, D), random(20, D)
    gate, up = np.split(x @ weight.T, 2, axis=-1)
    parts = cut("model.layers.0.mlp.gate_up_proj.weight", weight, array)
    check(parts, x, {"gate": gate, "up": up})
    output = {"blocks.0.mlp.weights_out.weight": (D, 10)}
    check(cut("blocks.0.mlp.weights_in.weight", weight, array, None, output), x, {"gate": gate, "up": up})
    olmo = {"blocks.0.ff_out.weight": (D, 10)}
    check(cut("blocks.0.ff_proj.weight", weight, array, None, olmo), x, {"up": gate, "gate": up})


def test_a_plain_mlp_is_not_taken_for_a_fused_one(array):
    output = {"layers.0.fc2.weight": (D, 20)}
    assert list(cut("layers.0.fc1.weight", random(20, D), array, None, output)) == [None]


def test_gpt_oss_experts_alternate_gate_and_up(array):
    width, n_experts = 10, 3
    weight, x = random(n_experts, D, 2 * width), random(TOKENS, D)
    beside = {"layers.0.mlp.experts.down_proj": (n_experts, width, D), "layers.0.self_attn.sinks": (HEADS,)}
    for config, others in (({"model_type": "gpt_oss"}, beside), (None, beside), ({"model_type": "gpt_oss"}, None)):
        parts = cut("layers.0.mlp.experts.gate_up_proj", weight, array, config, others)
        expected = {}
        for e in range(n_experts):
            gate_up = x @ weight[e]
            expected |= {f"expert={e}.gate": gate_up[..., ::2], f"expert={e}.up": gate_up[..., 1::2]}
        check({label: part.T for label, part in parts.items()}, x, expected)


@pytest.mark.parametrize("is_transposed", [False, True])
def test_stacked_experts_hold_gate_before_up(is_transposed, array):
    width, n_experts = 10, 3
    weight, x = random(n_experts, 2 * width, D), random(TOKENS, D)
    expected = {}
    for e in range(n_experts):
        gate, up = np.split(x @ weight[e].T, 2, axis=-1)
        expected |= {f"expert={e}.gate": gate, f"expert={e}.up": up}
    down = (n_experts, width, D) if is_transposed else (n_experts, D, width)
    stored = np.ascontiguousarray(weight.transpose(0, 2, 1)) if is_transposed else weight
    beside = {"layers.0.mlp.experts.down_proj": down}
    parts = cut("layers.0.mlp.experts.gate_up_proj", stored, array, {"model_type": "any"}, beside)
    check({label: part.T if is_transposed else part for label, part in parts.items()}, x, expected)


def test_experts_stacked_by_rows(array):
    weight = random(4 * 6, D)
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 4}}
    parts = cut("blocks.0.ffn.experts.mlp.w1", weight, array, config)
    for e, expert in enumerate(weight.reshape(4, 6, D)):
        np.testing.assert_array_equal(parts[f"expert={e}"], expert)


@pytest.mark.parametrize("is_gated", [False, True])
def test_experts_in_one_as_megatron_views_them(is_gated, array):
    """forward: w1 = weight1.view(experts, d, -1), of which each expert takes x @ w1[i], in halves where it is gated."""
    n_experts, width = 3, 10
    path = "decoder.layers.0.mlp.experts"
    beside = {"decoder.layers.0.mlp.router.weight": (n_experts, D), f"{path}.weight2": (n_experts * width, D)}
    weight = random(D, n_experts * width * (1 + is_gated))
    parts = cut(f"{path}.weight1", weight, array, beside=beside)
    for i, expert in enumerate(weight.reshape(n_experts, D, -1)):
        halves = {"gate": expert[:, :width], "up": expert[:, width:]} if is_gated else {"up": expert}
        for role, half in halves.items():
            assert np.array_equal(parts[f"expert={i}.{role}" if is_gated else f"expert={i}"], half)


def test_experts_in_one_as_megablocks_views_them(array):
    """forward: w2.view(experts, width, d), of which each expert takes h @ w2[i]."""
    n_experts, width = 3, 10
    beside = {"blocks.0.ffn.router.layer.weight": (n_experts, D)}
    weight = random(n_experts * width, D)
    parts = cut("blocks.0.ffn.experts.mlp.w2", weight, array, beside=beside)
    for i, expert in enumerate(weight.reshape(n_experts, width, D)):
        assert np.array_equal(parts[f"expert={i}"], expert)


def test_convolutions(array):
    weight = random(8, 6, 3, 5)
    (slices,) = cut("stem.conv1.weight", weight, array).values()
    expected = [weight[:, :, i, j] for i in range(3) for j in range(5)]
    np.testing.assert_array_equal(slices, expected)
    (patch,) = cut("patch_embed.proj.weight", weight, array).values()
    np.testing.assert_array_equal(patch, weight.reshape(8, 6 * 3 * 5))
    (pointwise,) = cut("layers.0.attention.query.weight", weight[:, :, :1, :1], array).values()
    np.testing.assert_array_equal(pointwise, weight[:, :, 0, 0])


def test_tables_of_more_than_two_axes_keep_their_feature_axis(array):
    last = random(1, 4, 5, 32)
    (table,) = cut("pos_embed", last, array).values()
    np.testing.assert_array_equal(table, last.reshape(20, 32))
    first = random(1, 32, 4, 5)
    (table,) = cut("pos_embed", first, array).values()
    np.testing.assert_array_equal(table, first.reshape(32, 20))


def test_projections_with_a_split_axis(array):
    weight, x = random(D, HEADS, HEAD_DIM - 2), random(TOKENS, D)
    (q,) = cut("layers.0.rel_attn.q", weight, array).values()
    np.testing.assert_allclose(x @ q, np.einsum("td,dnh->tnh", x, weight).reshape(TOKENS, -1), rtol=1e-12)
