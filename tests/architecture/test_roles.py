"""Roles from names and shapes: the table of published names in data/roles.toml, the user's role map, the notes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from specdiag.architecture.roles import modules, roles
from specdiag.errors import UsageError
from specdiag.records import ModuleRole

MODELS = tomllib.loads((Path(__file__).parents[1] / "data" / "roles.toml").read_text())["model"]


def lines(model):
    """Name, shape and expectation of every line of a model."""
    for line in model["tensors"].strip().splitlines():
        name, shape, expected = line.split(maxsplit=2)
        yield name, () if shape == "0d" else tuple(map(int, shape.split("x"))), expected.split()


def expand(expected):
    """The modules that an expectation describes."""
    if expected == ["skip"]:
        return []
    if expected[0] == "?":
        return [ModuleRole(role="other", family="other", layer=int(expected[1]), recognised=False)]
    parts, family, layer, component, cross = [*expected, "-", "-", "-"][:5]
    number, _, names = parts.rpartition("*")
    names = names.split(",")
    labels = names if len(names) > 1 else [None]
    if number:
        labels = [f"expert={i}{f'.{part}' if part else ''}" for i in range(int(number)) for part in labels]
        names = names * int(number)
    return [
        ModuleRole(
            role=role,
            family="attention" if role in ("q", "k", "v") else family,
            layer=None if layer == "-" else int(layer),
            component=None if component == "-" else component,
            cross_attention=cross == "cross",
            part=part,
        )
        for role, part in zip(names, labels, strict=True)
    ]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_published_names(model):
    shapes = {name: shape for name, shape, _ in lines(model)}
    found = roles(shapes, model.get("config"))
    assert found == {name: expand(expected) for name, _, expected in lines(model)}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["name"])
def test_parts_hold_every_value_once(model):
    shapes = {name: shape for name, shape, _ in lines(model)}
    found = modules(shapes, model.get("config"))
    assert set(found.parts).isdisjoint(found.skipped)
    assert found.parts.keys() | found.skipped.keys() == shapes.keys()
    for name, parts in found.parts.items():
        held = sum(n * rows * cols for n, rows, cols in (part.slicer.shape for part in parts))
        stored = 1
        for size in shapes[name]:
            stored *= size
        assert held == stored, name


def test_the_table_covers_the_roles():
    named = {role for model in MODELS for _, _, e in lines(model) for m in expand(e) for role in [m.role]}
    assert named == {
        "q",
        "k",
        "v",
        "kv",
        "o",
        "gate",
        "up",
        "down",
        "router",
        "embed",
        "head",
        "conv",
        "ssm",
        "other",
    }


def test_skip_reasons():
    shapes = {
        "a.bias": (4,),
        "scale": (),
        "h.0.attn.bias": (1, 1, 8, 8),
        "h.0.attn.masked_bias": (1, 1),
        "stages.0.norm.weight": (4, 8),
        "conv1d.weight": (64, 1, 4),
        "score.weight": (1, 64),
        "embeddings.register_tokens": (1, 0, 64),
        "embeddings.position_ids": (1, 512),
        "mlp.experts.gate_up_proj_bias": (8, 64),
    }
    assert modules(shapes).skipped == {
        "a.bias": "1-D: bias, norm or vector",
        "scale": "0-D: a single value",
        "h.0.attn.bias": "buffer: causal attention mask",
        "h.0.attn.masked_bias": "buffer: attention mask",
        "stages.0.norm.weight": "norm",
        "conv1d.weight": "depthwise or one-channel convolution: N < 2",
        "score.weight": "N < 2: at most one eigenvalue",
        "embeddings.register_tokens": "empty: a dimension is 0",
        "embeddings.position_ids": "buffer: indices or running statistics",
        "mlp.experts.gate_up_proj_bias": "bias",
    }


@pytest.mark.parametrize(
    ("bias", "shape", "beside"),
    [
        ("b_Q", (4, 64), {"W_Q": (4, 256, 64)}), ("b1", (8, 96), {"w1": (8, 32, 96)}), ("b", (8, 96), {"w": (8, 96, 32)}),
        ("bias_up", (8, 96), {"weight_up": (8, 32, 96)}), ("bias_in", (8, 96), {}), ("query.bias", (4, 64), {}),
        ("gate_up_proj_bias", (8, 96), {}),
    ],
)  # fmt: skip
def test_biases_of_several_axes_are_left_out(bias, shape, beside):
    found = modules({f"blocks.0.attn.{name}": size for name, size in ({bias: shape} | beside).items()})
    assert found.skipped == {f"blocks.0.attn.{bias}": "bias"}


@pytest.mark.parametrize(
    ("name", "shape", "beside"),
    [
        ("b_q", (64, 4), {"w_q": (64, 64), "a_q": (4, 64)}), ("b_proj.weight", (4, 64), {"w_proj.weight": (4, 64, 64)}),
        ("bias_table", (49, 8), {}), ("b_q", (4, 64), {}),
    ],
)  # fmt: skip
def test_factors_of_an_update_and_tables_are_no_biases(name, shape, beside):
    found = modules({f"blocks.0.attn.{key}": size for key, size in ({name: shape} | beside).items()})
    assert f"blocks.0.attn.{name}" in found.parts


def test_one_note_for_all_tensors_that_could_not_be_split():
    shapes = {f"gpt_neox.layers.{i}.attention.query_key_value.weight": (192, 64) for i in range(3)}
    found = modules(shapes)
    assert len(found.notes) == 1
    assert found.notes[0].startswith("gpt_neox.layers.0.attention.query_key_value.weight and 2 more like it")
    assert "no config.json with a model_type" in found.notes[0]
    assert "whose layout is known" in modules(shapes, {"model_type": "mine"}).notes[0]
    heads = modules(shapes, {"model_type": "gpt_neox"}).notes
    assert "does not say how many heads" in heads[0]
    assert modules(shapes, {"model_type": "gpt_neox", "num_attention_heads": 4}).notes == []
    wrong = modules(shapes, {"model_type": "gpt_neox", "num_attention_heads": 7}).notes
    assert "192 rows do not hold 7 heads" in wrong[0]


def test_a_recurrence_that_fuses_its_projections_stays_whole_whatever_its_shape():
    shapes = {"blk.0.attn_qkv.weight": (192, 64), "blk.0.ssm_out.weight": (64, 64), "blk.3.attn_qkv.weight": (192, 64)}
    found = modules(shapes, {"num_attention_heads": 4})
    assert [part.module.role for part in found.parts["blk.3.attn_qkv.weight"]] == ["q", "k", "v"]
    assert [part.module.role for part in found.parts["blk.0.attn_qkv.weight"]] == ["ssm"]
    assert len(found.notes) == 1
    assert found.notes[0].endswith("Analysed as one matrix of role ssm.")


def test_heads_of_a_latent_projection_are_one_matrix_about_the_latent_axis():
    shapes = {"blk.0.attn_k_b.weight": (16, 512, 128), "blk.0.attn_v_b.weight": (16, 128, 512)}
    found = modules(shapes).parts
    assert [found[name][0].slicer.shape for name in shapes] == [(1, 2048, 512)] * 2


def test_a_patch_convolution_is_known_by_the_config_or_its_name():
    shapes = {"visual.conv1.weight": (64, 3, 16, 16), "visual.conv2.weight": (64, 32, 3, 3)}
    assert [m[0].role for m in roles(shapes).values()] == ["conv", "conv"]
    found = modules(shapes, {"vision_config": {"patch_size": 16}}).parts
    assert found["visual.conv1.weight"][0].slicer.shape == (1, 64, 768)
    assert found["visual.conv1.weight"][0].module.family == "embedding"
    assert found["visual.conv2.weight"][0].slicer.shape == (9, 64, 32)


def write(path, text):
    path.write_text(text)
    return path


SHAPES = {
    "blocks.0.mix.Wq.weight": (64, 64),
    "blocks.1.mix.Wq.weight": (64, 64),
    "blocks.1.mix.Wz.weight": (32, 64),
}


def test_role_map_comes_before_the_rules(tmp_path):
    path = write(
        tmp_path / "map.toml",
        """
        [[rule]]
        pattern = "blocks.1.mix.Wq.weight"
        role = "other"
        family = "attention"
        layer = 7
        [[rule]]
        pattern = "blocks.*.Wq.weight"
        role = "q"
        """,
    )
    found = modules(SHAPES, role_map=path).parts
    assert [part.module for part in found["blocks.0.mix.Wq.weight"]] == [
        ModuleRole(role="q", family="attention", layer=0)
    ]
    assert [part.module for part in found["blocks.1.mix.Wq.weight"]] == [
        ModuleRole(role="other", family="attention", layer=7)
    ]
    assert not found["blocks.1.mix.Wz.weight"][0].module.recognised


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[rule]]\npattern = "nowhere.*"\nrole = "q"', "'nowhere.*'"),
        ('[[rule]]\npattern = "*"\nrole = "queries"', "'queries'"),
        ('[[rule]]\npattern = "*"\nrole = "q"\nkind = 3', "`kind`"),
        ('[[rule]]\npattern = "*"\nrole = "q"\nfamily = "brain"', "'brain'"),
        ('[[rule]]\npattern = "*"', "`role`"),
        ("[[rule", "not valid"),
    ],
)
def test_role_map_errors_name_the_file_and_the_value(tmp_path, text, said):
    path = write(tmp_path / "map.toml", text)
    with pytest.raises(UsageError) as error:
        modules(SHAPES, role_map=path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_role_map_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        modules(SHAPES, role_map=tmp_path / "none.toml")
