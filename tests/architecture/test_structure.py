"""Roles by structure: what the shapes of a block decide where its names say nothing, a number, or the wrong thing."""

from __future__ import annotations

import numpy as np
import pytest

from specdiag.architecture.roles import modules, roles

D, F, V, LAYERS = 64, 160, 300, 3
ATTENTION = {f"attn.{name}": (D, D) for name in ("q", "k", "v", "out")}


def model(block, outside=None, stack="blocks.{}"):
    """Names and shapes of a model of three equal blocks; a shape may be a function of the block's index."""
    shapes = {"tok_emb.weight": (V, D)} if outside is None else dict(outside)
    for i in range(LAYERS):
        for name, shape in block.items():
            shapes[f"{stack.format(i)}.{name}.weight"] = shape(i) if callable(shape) else shape
    return shapes


def named(shapes, names, layer=1, stack="blocks.{}", config=None):
    """Roles of one layer's matrices."""
    found = roles(shapes, config)
    return ["+".join(part.role for part in found[f"{stack.format(layer)}.{name}.weight"]) for name in names]


@pytest.mark.parametrize("width", [160, 32])
@pytest.mark.parametrize(
    ("up", "down"),
    [
        ("mlp.w_1", "mlp.w_2"), ("mlp.fc_1", "mlp.fc_2"), ("channel.widen", "channel.narrow"),
        ("x.b", "x.a"), ("x.module.0", "x.module.3"), ("x.ff.0.0", "x.ff.2"), ("fc1", "fc2"),
        ("ffwd.net.0", "ffwd.net.2"), ("x.dense_1", "x.dense_2"), ("u.0", "u.4"),
    ],
)  # fmt: skip
def test_what_reads_the_residual_width_is_up_whatever_it_is_called(up, down, width):
    shapes = model(ATTENTION | {up: (width, D), down: (D, width)})
    assert named(shapes, (up, down)) == ["up", "down"]


@pytest.mark.parametrize("adapter", ["adaptmlp.{}_proj", "adapter_{}", "adapters.{}"])
@pytest.mark.parametrize(("up", "down"), [("fc1", "fc2"), ("mlp.fc1", "mlp.fc2"), ("mlp.0", "mlp.2")])
def test_an_adapter_whose_down_reads_does_not_turn_the_mlp_round(up, down, adapter):
    bottleneck = {adapter.format("down"): (16, D), adapter.format("up"): (D, 16)}
    shapes = model(ATTENTION | {up: (F, D), down: (D, F)} | bottleneck)
    assert named(shapes, (up, down, *bottleneck)) == ["up", "down", "other", "other"]


@pytest.mark.parametrize("width", [160, 32])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("mlp.fc_1", "mlp.fc_2", "mlp.proj"), ["gate", "up", "down"]),
        (("m.linear_1", "m.linear_2", "m.linear_3"), ["up", "up", "down"]),
        (("mlp.w1", "mlp.w2", "mlp.proj"), ["up", "up", "down"]),
        (("mlp.w1", "mlp.w2", "mlp.w3"), ["gate", "up", "down"]),
        (("mlp.c_fc", "mlp.c_fc2", "mlp.c_proj"), ["up", "gate", "down"]),
        (("mlp.layers.0", "mlp.layers.1", "mlp.layers.2"), ["up", "up", "down"]),
        (("mlp.w1", "mlp.w3", "mlp.w2"), ["gate", "up", "down"]),
        (("m.value", "m.gate", "m.out"), ["up", "gate", "down"]),
        (("glu.a", "glu.b", "glu.c"), ["up", "up", "down"]),
    ],
)
def test_two_readers_and_a_writer_are_a_gated_mlp(names, expected, width):
    shapes = model(ATTENTION | dict(zip(names, [(width, D), (width, D), (D, width)], strict=True)))
    assert named(shapes, names) == expected
    notes = [note for note in modules(shapes).notes if "gate" in note]
    assert len(notes) == expected.count("up") - 1


@pytest.mark.parametrize(
    "names",
    [
        ("mix.Wq", "mix.Wk", "mix.Wv", "mix.merge"), ("sa.W_Q", "sa.W_K", "sa.W_V", "sa.W_O"),
        ("core.queries", "core.keys", "core.values", "core.unify"), ("q", "k", "v", "proj"),
        ("mix.query.dense", "mix.key.dense", "mix.value.dense", "mix.output.dense"), ("t.qs", "t.ks", "t.vs", "t.fc"),
        ("slf_attn.w_qs", "slf_attn.w_ks", "slf_attn.w_vs", "slf_attn.fc"),
        ("self_attn.linears.0", "self_attn.linears.1", "self_attn.linears.2", "self_attn.linears.3"),
        ("time.receptance", "time.key", "time.value", "time.output"),
    ],
)  # fmt: skip
def test_square_matrices_whose_names_speak_of_queries_are_attention(names):
    shapes = model(dict.fromkeys(names, (D, D)) | {"u.a": (F, D), "u.b": (D, F)})
    assert named(shapes, (*names, "u.a", "u.b")) == ["q", "k", "v", "o", "up", "down"]


def test_a_mixer_with_queries_and_keys_is_attention_and_one_with_a_recurrence_stays_one():
    mixer = {f"mixer.{name}": (D, D) for name in ("query_net", "key_net", "val_net", "merge")}
    assert named(model(mixer), mixer) == ["q", "k", "v", "o"]
    several = model(mixer | {"mixer.again": (D, D), "mixer.further": (D, D)})
    assert [roles(several)[f"blocks.1.mixer.{name}.weight"][0].family for name in ("again", "further")] == [
        "attention", "attention",
    ]  # fmt: skip
    recurrent = model(mixer) | {f"blocks.{i}.mixer.A_log": (16,) for i in range(LAYERS)}
    assert named(recurrent, ("mixer.val_net", "mixer.merge")) == ["ssm", "ssm"]


@pytest.mark.parametrize("name", ["moe.gating_network", "moe.chooser"])
def test_what_writes_one_value_for_each_expert_is_the_router(name):
    experts = {f"moe.experts.{e}.{n}": s for e in range(4) for n, s in (("a", (F, D)), ("b", (D, F)))}
    assert named(model(ATTENTION | experts | {name: (4, D)}), (name,)) == ["router"]


def test_a_matrix_beside_experts_with_other_rows_than_experts_is_no_router():
    experts = {f"moe.experts.{e}.{n}": s for e in range(4) for n, s in (("a", (F, D)), ("b", (D, F)))}
    assert named(model(ATTENTION | experts | {"moe.chooser": (5, D)}), ("moe.chooser",)) == ["other"]


@pytest.mark.parametrize(
    ("up", "down", "rows"),
    [("1.fn.0.proj", "1.fn.2", F), ("1.fn.0.proj", "1.fn.2", 2 * F), ("3.0", "3.2", F), ("3.0", "3.5", F)],
)
def test_a_sequence_with_a_module_in_it_and_one_without_names_are_mlps(up, down, rows):
    block = {f"0.{name}": (D, D) for name in ("to_q", "to_k", "to_v", "to_out")} | {up: (rows, D), down: (D, F)}
    shapes = model(block, stack="net.{}")
    assert named(shapes, (up, down), stack="net.{}") == ["up", "down"]
    assert roles(shapes)[f"net.1.{up}.weight"][0].layer == 1


def test_what_lies_beside_a_weight_that_is_not_read_keeps_its_role():
    shapes = model(ATTENTION | {"mlp.0": (F, D)})
    for i in range(LAYERS):
        shapes[f"blocks.{i}.mlp.2.parametrizations.weight.original"] = (D, F)
        shapes[f"blocks.{i}.mlp.2.parametrizations.weight.0.base"] = (F, F)
    assert named(shapes, ("mlp.0",)) == ["up"]
    found = modules(model(ATTENTION | {"mlp.0": (F, D)}), unread={f"blocks.{i}.mlp.2.weight": (D, F) for i in range(3)})
    assert found.parts["blocks.1.mlp.0.weight"][0].module.role == "up"
    assert not any("mlp.2" in name for name in (*found.parts, *found.skipped))


def test_heads_apart_are_attention_and_what_joins_them_is_its_output():
    heads = {f"msa.heads.{h}.{name}": (16, D) for h in range(4) for name in ("query", "key", "value")}
    shapes = model(heads | {"msa.proj": (D, D), "ffwd.net.0": (F, D), "ffwd.net.2": (D, F)})
    assert named(shapes, heads) == ["q", "k", "v"] * 4
    assert named(shapes, ("msa.proj", "ffwd.net.0", "ffwd.net.2")) == ["o", "up", "down"]


def test_key_and_value_of_a_feed_forward_are_no_attention():
    shapes = model(ATTENTION | {"cm.key": (F, D), "cm.value": (D, F), "cm.receptance": (D, D)})
    assert named(shapes, ("cm.key", "cm.value", "cm.receptance")) == ["up", "down", "gate"]


def test_a_square_mlp_is_known_by_name_by_its_sisters_or_not_at_all():
    square = model(ATTENTION | {"u.a": (D, D), "u.b": (D, D), "ffn.w_1": (D, D), "ffn.w_2": (D, D)})
    assert named(square, ("u.a", "u.b", "ffn.w_1", "ffn.w_2")) == ["other", "other", "up", "down"]
    assert not roles(square)["blocks.0.u.a.weight"][0].recognised
    sisters = model(ATTENTION | {"u.a": lambda i: (D if i == 1 else F, D), "u.b": lambda i: (D, D if i == 1 else F)})
    assert named(sisters, ("u.a", "u.b")) == ["up", "down"]


def test_without_a_residual_width_what_expands_is_up():
    alone = model({"u.a": (F, D), "u.b": (D, F)}, outside={})
    assert named(alone, ("u.a", "u.b")) == ["up", "down"]
    by_name = model({"ffn.w_1": (D, F), "ffn.w_2": (F, D)}, outside={})
    assert named(by_name, ("ffn.w_1", "ffn.w_2")) == ["up", "down"]
    several = model({"u.a": lambda i: (F >> 2 * i, D), "u.b": lambda i: (D, F >> 2 * i)}, outside={})
    assert named(several, ("u.a", "u.b"), layer=2) == ["up", "down"]
    normed = model({"u.a": (F, D), "u.b": (D, F), "norm": (F,)}, outside={})
    assert named(normed, ("u.a", "u.b")) == ["down", "up"]


def test_matrices_stored_in_and_out_are_read_so():
    block = {"attn.c_attn": (D, 3 * D), "attn.c_proj": (D, D), "mlp.fc_1": (D, F), "mlp.fc_2": (F, D)}
    shapes = model(block, stack="h.{}")
    assert named(shapes, block, stack="h.{}") == ["q+k+v", "o", "up", "down"]


def test_experts_are_narrower_than_the_residual_stream():
    experts = {f"moe.experts.{e}.{n}": s for e in range(2) for n, s in (("a", (32, D)), ("b", (32, D)), ("c", (D, 32)))}
    shapes = model(ATTENTION | {"moe.gate": (2, D)} | experts)
    assert named(shapes, ("moe.gate", *experts)) == ["router", *["up", "up", "down"] * 2]


def test_a_fused_matrix_of_an_unknown_layout_stays_whole_and_says_so():
    shapes = model({"attention.mix": (3 * D, D), "attention.back": (D, D), "u.a": (2 * F, D), "u.b": (D, F)})
    assert named(shapes, ("attention.mix", "attention.back", "u.a", "u.b")) == ["other", "o", "up", "down"]
    assert sum("is fused and could not be split" in note for note in modules(shapes).notes) == 2


def test_megatron_cuts_by_query_group_where_the_heads_are_known():
    shapes = model({"self_attention.linear_qkv": (96, D), "self_attention.linear_proj": (D, D)}, stack="layers.{}")
    names = ("self_attention.linear_qkv", "self_attention.linear_proj")
    assert named(shapes, names, stack="layers.{}") == ["other", "o"]
    config = {"num_attention_heads": 4, "num_query_groups": 2}
    assert named(shapes, names, stack="layers.{}", config=config) == ["q+k+v", "o"]
    fused = np.arange(96 * D).reshape(96, D)
    groups = fused.reshape(2, 4, 12, D)
    parts = modules(shapes, config).parts["layers.0.self_attention.linear_qkv.weight"]
    expected = (groups[:, :2].reshape(48, D), groups[:, 2].reshape(24, D), groups[:, 3].reshape(24, D))
    for part, right in zip(parts, expected, strict=True):
        np.testing.assert_array_equal(part.slicer.cut(fused)[0], right)


@pytest.mark.parametrize("shape", [(3, D, D), (3, 128, D), (D, 3, D), (D, 3, 4, 16), (3, 4, 16, D)])
def test_queries_keys_and_values_on_an_axis_of_their_own_are_three_matrices(shape):
    tensor = np.random.default_rng(0).standard_normal(shape)
    parts = modules({"blocks.0.attn.qkv_w": shape}).parts["blocks.0.attn.qkv_w"]
    assert [part.module.role for part in parts] == ["q", "k", "v"]
    axis = shape.index(3)
    for i, part in enumerate(parts):
        raw = tensor[part.slicer.index] if part.slicer.index is not None else tensor
        right = np.take(tensor, i, axis)
        right = right.reshape(len(right), -1) if right.shape[0] > right.shape[-1] or right.ndim == 2 else right
        right = right.reshape(-1, right.shape[-1])
        np.testing.assert_array_equal(part.slicer.cut(raw)[0], right)


def test_what_has_the_shape_of_the_table_of_tokens_is_the_head():
    outside = {"tok_emb.weight": (V, D), "pos_emb.weight": (32, D), "decode.weight": (V, D), "rank.weight": (32, D)}
    found = roles(model(ATTENTION, outside | {"memory_bank.weight": (V, D)}))
    assert [found[name][0].role for name in outside] == ["embed", "embed", "head", "other"]
    assert found["memory_bank.weight"][0].role == "other"


def test_blocks_are_numbered_in_the_name_of_a_module_too():
    shapes = model(ATTENTION | {"u.a": (F, D), "u.b": (D, F)}, stack="encoder.encoder_layer_{}")
    found = roles(shapes)
    assert {part.layer for name, parts in found.items() if "layer_2" in name for part in parts} == {2}
    assert named(shapes, ("u.a", "u.b"), stack="encoder.encoder_layer_{}") == ["up", "down"]


def test_an_mlp_across_tokens_keeps_the_roles_of_its_names():
    shapes = model({"token_mixing.fc1": (D, 49), "token_mixing.fc2": (49, D), "mlp.fc1": (F, D), "mlp.fc2": (D, F)})
    assert named(shapes, ("token_mixing.fc1", "token_mixing.fc2")) == ["up", "down"]
