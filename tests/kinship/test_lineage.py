"""Verdicts of lineage: other forms change none, and each relation gets its own."""

import numpy as np
import pytest
import torch
from changes_of_form import Changes
from related_models import GROUPS, HEAD_DIM, HEADS, LAYERS, D, config, llama, opened, tuned
from wired_models import random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.checkpoint.memory import from_state_dict
from specdiag.function.blocks import find_blocks

SAME = 1e-6


def related(a, b):
    return specdiag.lineage(a, b, device="cpu", jobs=1).relations[0]


@pytest.fixture(scope="module")
def base():
    return llama()


def other_form(kind):
    model = random_model(kind)
    blocks = find_blocks(open_source(model))[0]
    Changes(kind, model, [block.wiring for block in blocks], blocks[0].attention.n_rotated).all()
    return model


@pytest.mark.parametrize(
    "kind", ["llama", "gpt2", "bert", "mixtral", "qwen3", "gemma2", "gpt_neox", "whisper", "opt", "nemotron"]
)
def test_other_forms_are_the_same_function(kind):
    found = related(random_model(kind), other_form(kind))
    assert found.verdict == "same function"
    assert found.worst < SAME
    assert found.mlp is not None
    assert found.cosine is None or found.cosine > 0.999


def test_other_forms_leave_distances(base):
    """To a third model, whatever the relation."""
    from lineage_forms import changed

    other = changed(base)
    for third in (tuned(base, 0.05), llama(1)):
        one, two = related(opened(base), opened(third)), related(opened(other), opened(third))
        assert one.verdict == two.verdict
        for name in ("attention", "mlp", "worst", "ratio"):
            assert getattr(two, name) == pytest.approx(getattr(one, name), abs=SAME)


def test_a_turned_stream_is_the_same_function(base):
    from lineage_forms import turned

    found = related(opened(base), opened(turned(base)))
    assert found.verdict == "same function"
    assert found.worst < SAME
    assert abs(found.cosine) < 0.3
    assert "turned" in " ".join(found.signs)


def test_a_scaled_stream_is_taken_out(base):
    writers = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight")
    scaled = {name: value * 3 if name.endswith(writers) else value for name, value in base.items()}
    found = related(opened(base), opened(scaled))
    assert found.verdict == "same function"
    assert found.worst < SAME
    assert found.scale == pytest.approx(3)
    assert related(opened(scaled), opened(base)).scale == pytest.approx(1 / 3)


def test_names_do_not_matter(base):
    renamed = {f"model.language_model.{name.removeprefix('model.')}": value for name, value in base.items()}
    assert related(opened(base), opened(renamed)).verdict == "same function"


@pytest.mark.parametrize(("size", "verdict"), [(1e-4, "same function"), (0.03, "derived"), (0.1, "derived")])
def test_a_fine_tune(base, size, verdict):
    found = related(opened(base), opened(tuned(base, size)))
    assert (found.verdict, found.basis) == (verdict, "spectra")
    assert all(layer.carries for layer in found.layers)
    assert found.cosine > 0.9


def test_strangers(base):
    found = related(opened(base), opened(llama(1)))
    assert found.verdict == "no relation shown"
    assert not any(layer.carries for layer in found.layers)
    assert abs(found.cosine) < 0.2
    assert not found.signs


def test_spectra_that_leave_it_open_are_decided_by_the_products(base):
    found = related(opened(base), opened(tuned(base, 0.9)))
    assert (found.verdict, found.basis) == ("derived", "products")
    assert 0.2 < found.cosine < 0.9


def test_an_edit_of_one_matrix_is_no_same_function(base):
    """The median over layers does not move."""
    for name in ("mlp.down_proj", "self_attn.q_proj"):
        edited = dict(base)
        edited[f"model.layers.2.{name}.weight"] = llama(3)[f"model.layers.2.{name}.weight"]
        found = related(opened(base), opened(edited))
        assert found.attention < SAME
        assert found.verdict == "derived"


def test_only_the_mlp_moved(base):
    moved = tuned(base, 0.05)
    mixed = {name: moved[name] if ".mlp." in name else value for name, value in base.items()}
    found = related(opened(base), opened(mixed))
    assert found.verdict == "derived"
    assert found.attention < SAME < found.mlp
    assert "only the MLP moved" in " ".join(found.signs)


def test_layers_of_a_stranger(base):
    stranger = llama(1)
    half = {
        name: value if any(f".layers.{i}." in name for i in (0, 1)) else stranger[name] for name, value in base.items()
    }
    found = related(opened(half), opened(base))
    assert (found.verdict, found.basis) == ("derived", "part of the layers")
    assert [layer.layer_a for layer in found.layers if layer.carries] == [0, 1]
    assert "2 of 5 layers carry it: 0-1." in found.signs


def without(state, layer):
    kept = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) == layer:
                continue
            parts[2] = str(int(parts[2]) - (int(parts[2]) > layer))
        kept[".".join(parts)] = value
    return kept


@pytest.mark.parametrize("gone", [0, 2, 4])
def test_a_layer_less(base, gone):
    fewer = opened(without(tuned(base, 0.03), gone), num_hidden_layers=LAYERS - 1)
    for found, side in ((related(opened(base), fewer), "layer_a"), (related(fewer, opened(base)), "layer_b")):
        assert found.verdict == "derived"
        assert [getattr(layer, side) for layer in found.layers] == [i for i in range(LAYERS) if i != gone]
        assert "layers left out or repeated" in " ".join(found.signs)


def test_a_stranger_with_a_layer_less(base):
    fewer = opened(without(llama(1), 2), num_hidden_layers=LAYERS - 1)
    assert related(opened(base), fewer).verdict in ("no relation shown", "undecided")


def test_heads_are_matched_though_some_are_gone(base):
    """The last group of keys with its heads is left out."""
    kept, cut = HEADS // 2 * HEAD_DIM, GROUPS // 2 * HEAD_DIM
    fewer = dict(base)
    for i in range(LAYERS):
        at = f"model.layers.{i}.self_attn."
        fewer[f"{at}q_proj.weight"] = base[f"{at}q_proj.weight"][-kept:]
        fewer[f"{at}o_proj.weight"] = base[f"{at}o_proj.weight"][:, -kept:]
        for name in "kv":
            fewer[f"{at}{name}_proj.weight"] = base[f"{at}{name}_proj.weight"][-cut:]
    found = related(
        opened(base), opened(fewer, num_attention_heads=HEADS // 2, num_key_value_heads=GROUPS // 2, head_dim=HEAD_DIM)
    )
    assert found.attention < SAME
    assert found.verdict == "derived", "fewer heads do not compute the same"
    assert "A has 4 heads a layer and B 2" in " ".join(found.signs)


def test_pruned_and_rounded(base):
    def pruned(value):
        limit = value.abs().flatten().median()
        return torch.where(value.abs() > limit, value, 0.0)

    names = [name for name, value in base.items() if ".layers." in name and value.ndim == 2]
    zeroed = base | {name: pruned(base[name]) for name in names}
    found = related(opened(base), opened(zeroed))
    assert found.verdict == "derived"
    assert "50 % of the weights of B are zero and 0 % of A's: pruned." in found.signs
    rounded = {name: value.bfloat16() for name, value in base.items()}
    found = related(opened(base), opened(rounded))
    assert found.verdict == "same function"
    assert "A is stored as F64, B is stored as BF16." in found.signs


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: opened(llama(width=36), hidden_size=36, head_dim=HEAD_DIM), "A has width 48 and B 36"),
        (lambda: opened(llama(head_dim=6), head_dim=6), "A has head size 12 and B 6"),
        (lambda: opened(llama(), model_type="strange"), "B: wiring of model_type strange is unknown"),
        (lambda: from_state_dict({"fc.weight": torch.ones(8, 8)}), "B: "),
        (
            lambda: opened(llama() | {"model.layers.3.mlp.up_proj.weight": torch.full((80, D), float("nan")).double()}),
            "B: model.layers.3.mlp holds values that are infinite or NaN",
        ),
    ],
    ids=["width", "head size", "wiring", "no blocks", "not finite"],
)
def test_what_cannot_be_compared(base, other, reason):
    for found, named in ((related(opened(base), other()), reason), (related(other(), opened(base)), None)):
        assert found.verdict == "not comparable"
        assert found.attention is None
        assert named is None or found.reason.startswith(named)


def test_a_config_without_a_model_type_takes_that_of_the_others(base):
    bare = from_state_dict(base, config={k: v for k, v in config().items() if k not in ("model_type", "architectures")})
    found = specdiag.lineage(bare, opened(base), device="cpu")
    assert found.relations[0].verdict == "same function"
    assert "the wiring of llama was taken" in found.notes[0]
    two = specdiag.lineage(bare, bare, device="cpu")
    assert two.relations[0].verdict == "not comparable"


def test_one_layer_has_no_unequal_ones():
    one, other = llama(layers=1), tuned(llama(layers=1), 0.03)
    found = related(opened(one, num_hidden_layers=1), opened(other, num_hidden_layers=1))
    assert found.ratio is None
    assert (found.verdict, found.basis) == ("derived", "products")
    assert related(opened(one), opened(llama(1, layers=1))).verdict == "undecided"


def test_dead_heads_count(base):
    dead = dict(base)
    for i in range(LAYERS):
        weight = base[f"model.layers.{i}.self_attn.o_proj.weight"].clone()
        weight[:, :HEAD_DIM] = 0
        dead[f"model.layers.{i}.self_attn.o_proj.weight"] = weight
    found = related(opened(base), opened(dead))
    assert found.verdict == "derived"
    assert np.isfinite(found.attention)
    assert related(opened(dead), opened(dead)).verdict == "same function"


def test_jobs_change_nothing(base):
    one, two = (specdiag.lineage(opened(base), opened(llama(1)), jobs=n, device="cpu") for n in (1, 2))
    assert one.relations == two.relations


def test_exchanged_layers_are_named(base):
    moved = {n.replace("layers.1.", "layers.X.").replace("layers.3.", "layers.1."): v for n, v in base.items()}
    moved = {n.replace("layers.X.", "layers.3."): v for n, v in moved.items()}
    found = related(opened(base), opened(moved))
    assert found.verdict == "derived"
    assert (
        found.signs[0] == "Layers stand in another place: layer 1 of A is layer 3 of B, layer 3 of A is layer 1 of B."
    )
    assert not any("further training" in sign for sign in found.signs)


def test_exchanged_queries_and_keys_are_named():
    base = llama()
    for name in [n for n in base if "k_proj" in n or "v_proj" in n]:
        base[name] = torch.cat([base[name], base[name].flip(0) * 1.3])
    q, k = (f"model.layers.2.self_attn.{x}_proj.weight" for x in "qk")
    exchanged = base | {q: base[k], k: base[q]}
    found = related(*(opened(state, num_key_value_heads=HEADS) for state in (base, exchanged)))
    assert found.verdict == "derived"
    assert "Queries and keys of layer 2 changed places." in found.signs


def test_a_fine_tune_has_no_exchanged_parts(base):
    found = related(opened(base), opened(tuned(base, 0.03)))
    assert not any("place" in sign for sign in found.signs)
