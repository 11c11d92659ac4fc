"""Names and blocks that differ in indices alone: what they have in common is decided once, the rest is their own."""

import pytest

from specdiag.architecture import names, structure
from specdiag.architecture.names import Neighbours, parse
from specdiag.architecture.roles import roles


@pytest.mark.parametrize(
    ("name", "stack", "block", "parent", "indices", "sequence"),
    [
        ("h.0.attn.q.weight", "h", "h.0", "h.0.attn", (0,), None),
        ("h.12.attn.q.weight", "h", "h.12", "h.12.attn", (12,), None),
        ("m.layers.3.mlp.experts.70.up.weight", "m.layers", "m.layers.3", "m.layers.3.mlp.experts.70", (3,), None),
        ("m.layers.10.mlp.experts.4.up.weight", "m.layers", "m.layers.10", "m.layers.10.mlp.experts.4", (10,), None),
        ("encoderblock_3.mlp.fc.kernel", "encoderblock", "encoderblock_3", "encoderblock_3.mlp", (3,), None),
        ("encoderblock_11.mlp.fc.kernel", "encoderblock", "encoderblock_11", "encoderblock_11.mlp", (11,), None),
        ("a.encoder_layer_2.stages.7.fc.weight", "a.encoder_layer", "a.encoder_layer_2.stages.7",
         "a.encoder_layer_2.stages.7", (2, 7), None),
        ("h.5.mlp.net.2.weight", "h", "h.5", "h.5.mlp", (5,), 2),
        ("h.6.mlp.net.0.weight", "h", "h.6", "h.6.mlp", (6,), 0),
        ("head.weight", "", "", "", (), None),
    ],
)  # fmt: skip
def test_each_name_keeps_its_own_indices(name, stack, block, parent, indices, sequence) -> None:
    neighbours = Neighbours([name])
    parse(names.numbered(name).replace("#", "1"), neighbours)  # its form is known by now
    own = parse(name, neighbours)
    assert (own.stack, own.block, own.parent) == (stack, block, parent)
    assert (own.indices, own.sequence) == (indices, sequence)


def test_modules_beside_it_decide_for_each_name() -> None:
    beside = Neighbours(
        ["layers.0.multihead_attn.k.weight", "layers.0.self_attn.k.weight", "layers.1.multihead_attn.k.weight"]
    )
    assert [parse(f"layers.{i}.multihead_attn.k.weight", beside).cross for i in range(2)] == [True, False]
    haiku = Neighbours(["a.b.0.w", "a.b.0.b", "a.b.1.w", "a.b.1.other"])
    assert [parse(f"a.b.{i}.w", haiku).path for i in range(2)] == ["a.b.#", "a.b.#.w"]


def test_many_layers_are_no_more_to_decide_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(module: object, function: str) -> None:
        true = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *given: calls.append(function) or true(*given))

    counted(names, "_innermost")
    counted(structure, "attentions")
    shapes = {
        f"trunk.layers.{layer}.alike{name}.weight": (48, 16) if name == "wide" else (16, 48)
        for layer in range(300)
        for name in ("wide", "narrow")
    }
    found = roles(shapes)
    assert {modules[0].layer for modules in found.values()} == set(range(300))
    assert {name.split(".")[3]: modules[0].role for name, modules in found.items()} == {
        "alikewide": "up", "alikenarrow": "down",
    }  # fmt: skip
    assert 0 < calls.count("_innermost") <= 2
    assert calls.count("attentions") == 1


def test_blocks_of_other_shapes_are_decided_for_themselves() -> None:
    sides = {"first": ("wide", "narrow"), "second": ("narrow", "wide")}
    shapes = {
        f"{stack}.layers.{layer}.{name}.weight": (48, 16) if side == "wide" else (16, 48)
        for stack, both in sides.items()
        for layer in range(3)
        for name, side in zip(("aaa", "bbb"), both, strict=True)
    }
    found = {name: modules[0].role for name, modules in roles(shapes).items()}
    assert (found["first.layers.2.aaa.weight"], found["first.layers.2.bbb.weight"]) == ("up", "down")
    assert (found["second.layers.2.aaa.weight"], found["second.layers.2.bbb.weight"]) == ("down", "up")


def test_one_name_of_each_pattern_is_chosen() -> None:
    chosen = names.one_of_each(["h.0.q.weight", "h.1.q.weight", "h.1.k.weight", "head.weight"])
    assert [names.numbered(name) for name in chosen] == ["h.#.q.weight", "h.#.k.weight", "head.weight"]


def test_a_hash_in_a_name_is_no_index() -> None:
    neighbours = Neighbours([])
    assert parse("h.3.q.weight", neighbours).indices == (3,)
    assert parse("h.#.q.weight", neighbours).indices == ()


def test_neighbours_are_asked_where_a_rule_speaks_of_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    true = Neighbours.below
    monkeypatch.setattr(Neighbours, "below", lambda self, path: asked.append(path) or true(self, path))
    found = roles({f"layers.{i}.self_attn.q_proj.weight": (64, 64) for i in range(200)})
    assert {modules[0].role for modules in found.values()} == {"q"}
    assert asked == []
