"""Layers and roles that some matrices fill, in a few words."""

import pytest

from specdiag.text.places import places

MODEL = [(f"h.{layer}.{role}", layer, role) for layer in range(6) for role in "qkv"]
MODEL += [("embed", None, "embed"), ("pooler", None, "other")]


def chosen(layers, roles="qkv"):
    return {name for name, layer, role in MODEL if layer in layers and role in roles}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (chosen((0, 1, 2)), "all of layers 0 to 2"),
        (chosen((0, 1, 4)), "all of layers 0, 1 and 4"),
        (chosen((2,)), "all of layer 2"),
        (chosen((2, 4)) | {"pooler"}, "all of layers 2 and 4, pooler"),
        (chosen((2,)) | {"h.0.q"}, "all of layer 2, h.0.q"),
        (chosen(range(6), "qv"), "every q and v"),
        (chosen(range(6), "q") | {"embed", "pooler"}, "every q, all outside of the layers"),
        (chosen((2,)) | chosen((0, 1), "qk"), ""),
        ({"h.0.q", "h.3.k"}, ""),
        ({"embed"}, ""),
        ({name for name, _, _ in MODEL} - {"h.2.k"}, "all but h.2.k"),
        ({name for name, _, _ in MODEL}, ""),
        (set(), ""),
    ],
)
def test_places(names, expected):
    assert places(names, MODEL) == expected


def test_a_layer_of_one_matrix_is_named():
    assert places({"a.0"}, [("a.0", 0, "q"), ("a.1", 1, "q")]) == ""


def test_names_are_safe_to_print():
    model = [("a\x1b[2J", None, "other"), ("h.0.q", 0, "q"), ("h.0.k", 0, "k"), ("h.1.q", 1, "q"), ("h.1.k", 1, "k")]
    assert "\x1b" not in places({"a\x1b[2J", "h.0.q", "h.0.k"}, model)


def test_layers_that_are_too_many_to_name():
    model = [(f"h.{layer}.{role}", layer, role) for layer in range(40) for role in ("q", "k")]
    assert places([name for name, layer, _ in model if layer % 2], model) == ""
