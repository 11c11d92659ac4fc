"""Roles that two readings of a name or a shape leave open: told by other tensors, or noted and not guessed."""

from __future__ import annotations

import pytest

from specdiag.architecture.roles import modules, roles

D, F = 64, 160
SQUARE = {f"attn.{name}.weight": (D, D) for name in ("q", "k", "v", "out")}


def model(block, outside=None):
    """Names and shapes of three equal blocks behind a table of tokens."""
    shapes = {"tok_emb.weight": (300, D)} | (outside or {})
    return shapes | {f"blocks.{i}.{name}": shape for i in range(3) for name, shape in block.items()}


def named(shapes, names):
    """Roles of the second block's tensors."""
    found = roles(shapes)
    return ["+".join(part.role for part in found[f"blocks.1.{name}"]) for name in names]


def families(shapes, names):
    found = roles(shapes)
    return [found[f"blocks.1.{name}"][0].family for name in names]


STORED_IN_OUT = [
    ("mlp.fc1.weight", "mlp.fc2.weight"), ("mlp.w_1.weight", "mlp.w_2.weight"), ("ff.0.weight", "ff.2.weight"),
    ("a.weight", "b.weight"),
]  # fmt: skip


@pytest.mark.parametrize(("up", "down"), STORED_IN_OUT)
def test_biases_tell_that_matrices_are_stored_in_out(up, down):
    biases = {up.replace("weight", "bias"): (F,), down.replace("weight", "bias"): (D,)}
    shapes = model(SQUARE | {up: (D, F), down: (F, D)} | biases)
    assert named(shapes, (up, down)) == ["up", "down"]
    assert modules(shapes).notes == []


def test_biases_tell_that_numbers_are_wrong():
    biases = {"mlp.w_1.bias": (D,), "mlp.w_2.bias": (F,)}
    shapes = model(SQUARE | {"mlp.w_1.weight": (D, F), "mlp.w_2.weight": (F, D)} | biases)
    assert named(shapes, ("mlp.w_1.weight", "mlp.w_2.weight")) == ["down", "up"]


def test_keys_that_are_fewer_tell_with_the_numbers_that_matrices_are_stored_in_out():
    few = SQUARE | {"attn.k.weight": (D, 16), "attn.v.weight": (D, 16)}
    shapes = model(few | {"mlp.fc1.weight": (D, F), "mlp.fc2.weight": (F, D)})
    assert named(shapes, ("mlp.fc1.weight", "mlp.fc2.weight")) == ["up", "down"]


def test_weights_of_haiku_lie_as_their_numbers_say():
    attention = {f"attn.{name}.w": (D, D) for name in ("query", "key", "value", "linear")}
    shapes = model(attention | {"mlp.linear.w": (D, F), "mlp.linear_1.w": (F, D)}, {"embed.embeddings": (300, D)})
    assert named(shapes, (*attention, "mlp.linear.w", "mlp.linear_1.w")) == ["q", "k", "v", "o", "up", "down"]


@pytest.mark.parametrize(("up", "down"), STORED_IN_OUT[:3])
def test_numbers_against_shapes_are_noted_where_nothing_tells_how_matrices_lie(up, down):
    shapes = model(SQUARE | {up: (D, F), down: (F, D)})
    assert named(shapes, (up, down)) == ["other", "other"]
    assert families(shapes, (up, down)) == ["mlp", "mlp"]
    (note,) = modules(shapes).notes
    assert note.startswith(f"blocks.0.{up} and blocks.0.{down} are up and down if matrices are stored (in, out)")
    assert "there and in 2 more pairs" in note


def test_two_states_side_by_side_are_no_gate_and_up():
    wide = {"mlp.fc1.weight": (4 * D, 2 * D), "mlp.fc2.weight": (D, 4 * D)}
    assert named(model(SQUARE | wide), wide) == ["up", "down"]
    kernels = {name.replace("weight", "kernel"): shape[::-1] for name, shape in (SQUARE | wide).items()}
    assert named(model(kernels), list(kernels)[-2:]) == ["up", "down"]
    doubled = {"mlp.fc1.weight": (2 * F, D), "mlp.fc2.weight": (D, F)}
    assert named(model(SQUARE | doubled), doubled) == ["gate+up", "down"]


@pytest.mark.parametrize("path", ["attn.maps", "attention.projections", "self_attn.weight_matrices"])
@pytest.mark.parametrize("n", [3, 4])
def test_a_list_of_square_maps_has_no_order_of_its_own(path, n):
    names = [f"{path}.{i}.weight" for i in range(n)]
    shapes = model(dict.fromkeys(names, (D, D)) | {"mlp.fc1.weight": (F, D), "mlp.fc2.weight": (D, F)})
    assert named(shapes, names) == ["other"] * n
    assert families(shapes, names) == ["attention"] * n
    (note,) = modules(shapes).notes
    assert f"blocks.0.{path}.0.weight to blocks.0.{path}.{n - 1}.weight" in note
    assert "q, k, v and o, there and in 2 more lists" in note


@pytest.mark.parametrize("name", ["attn.swish", "attn.z", "attn.g", "attn.skip", "attn.act"])
def test_what_is_left_in_attention_is_its_output_only_by_name(name):
    heads = {f"attn.{word}.weight": (D, D) for word in "qkv"}
    shapes = model(heads | {f"{name}.weight": (D, D), "attn_norm.weight": (D,)})
    assert named(shapes, [f"{name}.weight"]) == ["other"]
    assert families(shapes, [f"{name}.weight"]) == ["attention"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("attn.fc1", "attn.fc2"), ("attention.expand", "attention.shrink"), ("attn.se.reduce", "attn.se.widen")],
)
def test_two_steps_in_attention_are_no_fused_projections_with_their_output(first, second):
    names = (f"{first}.weight", f"{second}.weight")
    shapes = model({names[0]: (3 * D, D), names[1]: (D, D), "mlp.0.weight": (F, D), "mlp.2.weight": (D, F)})
    assert named(shapes, names) == ["other", "other"]


@pytest.mark.parametrize(
    "block",
    [
        {"memory.query_proj.weight": (128, D), "memory.keys.weight": (512, D), "memory.values.weight": (512, D)},
        {"memory.keys": (512, D), "memory.values": (512, D)},
        {"pkm.to_queries.weight": (128, D), "pkm.keys": (4, 128, 2, 16), "pkm.values.weight": (512, D)},
        {"feed_forward.keys": (512, D), "feed_forward.values.weight": (512, D), "feed_forward.value_proj.weight": (D, D)},
        {"lookup.q.weight": (D, D), "lookup.keys.weight": (512, D), "lookup.values.weight": (512, D)},
        {"attn.mem_k": (512, D), "attn.mem_v": (512, D)}, {"attn.persistent_keys": (512, D), "attn.null_kv": (2, 16)},
        {"attn.value_residual.weight": (D, D), "attn.query_bias_net.weight": (D, D), "attn.k_cache": (F, D)},
        {"mixing.value_residual.weight": (D, D), "mixing.key_bias.0.weight": (D, D)},
    ],
)  # fmt: skip
def test_what_is_looked_up_or_added_is_no_projection(block):
    found = named(model(SQUARE | block), block)
    assert set(found) == {"other"}


@pytest.mark.parametrize(
    "block",
    [
        {"time_proj.0.weight": (F, D), "time_proj.2.weight": (D, F)},
        {"film.0.weight": (F, D), "film.2.weight": (D, F)}, {"film.net.0.weight": (F, D), "film.net.2.weight": (D, F)},
        {"cond.fc1.weight": (F, D), "cond.fc2.weight": (D, F)}, {"style_in.weight": (F, D), "style_out.weight": (D, F)},
        {"modulation.0.weight": (F, D), "modulation.2.weight": (D, F)}, {"t_emb.0.weight": (F, D), "t_emb.2.weight": (D, F)},
        {"vis.0.weight": (D, F), "vis.2.weight": (F, D)}, {"side.a.weight": (F, D), "side.b.weight": (D, F)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("mlp", [("mlp.0.weight", "mlp.2.weight"), ("fc1.weight", "fc2.weight")])
def test_what_lies_beside_the_mlp_is_not_a_second_one(block, mlp):
    shapes = model(SQUARE | dict(zip(mlp, [(F, D), (D, F)], strict=True)) | block)
    assert named(shapes, mlp) == ["up", "down"]
    assert set(named(shapes, block)) <= {"other", "embed"}


def test_without_a_residual_width_what_expands_is_up_in_kernels_too():
    shapes = {f"blocks.{i}.u.{n}.kernel": s for i in range(2) for n, s in (("a", (D, F)), ("b", (F, D)))}
    assert [roles(shapes)[f"blocks.1.u.{name}.kernel"][0].role for name in "ab"] == ["up", "down"]
