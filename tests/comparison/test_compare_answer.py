"""The first lines of `compare`: how far a model moved, where most, and in what way."""

import pytest
import torch
from command import execute
from models import write_checkpoint

import specdiag
from specdiag.comparison.answer import facts, headline


def model(**changed):
    generator = torch.Generator().manual_seed(0)
    state = {
        f"model.layers.{layer}.self_attn.{role}_proj.weight": torch.randn(96, 96, generator=generator)
        for layer in range(4)
        for role in "qkvo"
    }
    return state | {f"model.layers.{name}.weight": value for name, value in changed.items()}


def moved(share, rank=None):
    """Every matrix of the model with a change of this share of its norm, perhaps of low rank."""
    generator = torch.Generator().manual_seed(1)

    def change(w):
        d = torch.randn(96, 96, generator=generator)
        if rank is not None:
            d = d[:, :rank] @ d[:rank]
        return w + share * d * (w.norm() / d.norm())

    return {name: change(w) for name, w in model().items()}


def answered(before, after):
    found = specdiag.compare(before, after)
    return headline(found), dict(facts(found))


def test_equal_models():
    first, more = answered(model(), model())
    assert first == "No matrix changed: 16 of 16 are equal, bit for bit. Norms and biases were not compared."
    assert more["Unchanged"] == "16 matrices"


def test_models_without_a_common_matrix_are_not_called_equal():
    first, _ = answered(model(), {name: torch.randn(80, 80) for name in model()})
    assert first == "No matrix was compared: none has one of its name and shape on the other side."


def test_a_fine_tune_of_all_directions():
    first, more = answered(model(), moved(0.1))
    assert first == "16 of 16 matrices changed. All weights together moved by 10.0 % of their norm."
    assert "spread over many directions" in more["Update"]
    assert more["Tails"].startswith("kept: alpha changed by ")


def test_a_merged_adapter_is_told_by_its_rank():
    _, more = answered(model(), moved(0.1, rank=4))
    assert more["Update"] == "of rank 8 or less in every matrix, as merging an adapter leaves it"


def test_one_matrix_that_was_replaced_is_named():
    name = "model.layers.2.self_attn.v_proj.weight"
    first, more = answered(model(), {**moved(0.1), name: torch.randn(96, 96)})
    assert first.startswith("16 of 16 matrices changed")
    assert more["Changed most"].startswith(f"{name} (1")
    assert more["Changed most"].endswith("; the others 10.0 %")


def test_frozen_layers_and_roles_are_named():
    tuned = moved(0.1)
    layers = {name: tuned[name] if ".2." in name or ".3." in name else w for name, w in model().items()}
    assert answered(model(), layers)[1]["Unchanged"] == "8 matrices: all of layers 0 and 1"
    roles = {name: tuned[name] if ".q_" in name or ".v_" in name else w for name, w in model().items()}
    assert answered(model(), roles)[1]["Unchanged"] == "8 matrices: every k and o"


def test_equal_changes_have_no_largest_one():
    assert answered(model(), moved(0.1))[1]["Changed most"] == "none: all by 10.0 %"


def test_a_conversion_is_told_in_the_first_line():
    first, _ = answered(model(), {name: w.bfloat16() for name, w in model().items()})
    assert first.startswith("16 of 16 matrices changed, none by more than the storage type rounds.")


def test_what_has_no_counterpart():
    name = "model.layers.0.self_attn.q_proj.weight"
    _, more = answered(model(), {name: model()[name], "model.layers.0.mlp.up_proj.weight": torch.randn(96, 96)})
    assert more == {"Unchanged": "1 matrix", "Not compared": "matrices: 15 only before, 1 only after"}


NAME = "model.layers.2.self_attn.v_proj.weight"
REST = "The other 15 are equal, bit for bit. Norms and biases were not compared."


@pytest.mark.parametrize(
    ("value", "said"), [(float("nan"), "NaN or infinite values in"), (0.0, "only zeros in")], ids=["nan", "zeros"]
)
def test_a_damaged_matrix_comes_before_how_far_the_others_moved(value, said):
    broken = model() | {NAME: torch.full((96, 96), value)}
    assert answered(model(), broken)[0] == f"AFTER is damaged: {said} {NAME}. {REST}"
    found = specdiag.compare(model(), {name: torch.full((96, 96), value) for name in model()})
    assert headline(found) == f"AFTER is damaged: {said} all 16 matrices. No matrix can be compared."


def test_damage_before_is_named_too():
    broken = model() | {NAME: torch.full((96, 96), torch.inf)}
    assert answered(broken, model())[0] == f"BEFORE is damaged: NaN or infinite values in {NAME}. {REST}"


def test_zeros_that_training_filled_are_no_damage():
    zeros = model() | {NAME: torch.zeros(96, 96)}
    assert answered(zeros, zeros)[0].startswith("No matrix changed: 16 of 16")
    assert answered(zeros, model())[0].startswith("1 of 16 matrices changed")


def test_a_side_that_lacks_matrices_is_named_first():
    fewer = {name: value for name, value in model().items() if "layers.2" not in name}
    rest = "The other 12 are equal, bit for bit. Norms and biases were not compared."
    assert answered(model(), fewer)[0] == f"AFTER lacks 4 of 16 matrices. {rest}"
    assert answered(fewer, model())[0] == f"BEFORE lacks 4 of 16 matrices. {rest}"


def test_a_change_too_small_for_its_digits_is_no_zero():
    assert "moved by less than 0.1 % of their norm" in answered(model(), moved(1e-5))[0]


def test_the_words_on_the_update_agree_with_its_numbers():
    generator = torch.Generator().manual_seed(2)
    d = torch.randn(96, 16, generator=generator) @ torch.randn(16, 96, generator=generator)
    d = d / d.norm() + torch.randn(96, 96, generator=generator) / 80
    said = answered(model(), {name: w + d for name, w in model().items()})[1]["Update"]
    share, random = (int(part.split(" %")[0].split()[-1]) for part in said.split(": ")[1].split(", of a random"))
    assert random < share < 2 * random
    assert "fewer than a random change" in said


def test_equal_matrices_are_not_among_those_that_changed(tmp_path):
    one = {name: w + 0.1 if name == NAME else w for name, w in model().items()}
    for name, state in (("a", model()), ("b", one)):
        write_checkpoint(tmp_path / name, {key: value.numpy() for key, value in state.items()})
    done = execute("compare", "a", "b", "--top", "5", cwd=tmp_path, env={"COLUMNS": "160"})
    assert "The 1 of 16 matrices that changed (--all: every one)" in done.stdout
    assert f"15 matrices: all but {NAME}" in done.stdout
    assert done.stdout.count("_proj.weight") == 3
    equal = execute("compare", "a", "a", "--top", "5", cwd=tmp_path, env={"COLUMNS": "160"})
    assert "_proj.weight" not in equal.stdout


@pytest.mark.parametrize("width", [60, 112])
def test_the_command_begins_with_it(tmp_path, width):
    for name, state in (("a", model()), ("b", moved(0.1))):
        write_checkpoint(tmp_path / name, {key: value.numpy() for key, value in state.items()})
    done = execute("compare", "a", "b", cwd=tmp_path, env={"COLUMNS": str(width)})
    assert " ".join(done.stdout.split()).startswith(
        "16 of 16 matrices changed. All weights together moved by 10.0 % of their norm. Changed most "
    )


def test_a_zero_matrix_that_was_trained_is_named():
    name = "model.layers.1.self_attn.q_proj.weight"
    _, more = answered(model() | {name: torch.zeros(96, 96)}, model())
    assert more["Was zero"] == f"{name}: only zeros before, values after"
    assert "Was zero" not in answered(model(), moved(0.1))[1]


def test_a_change_below_a_tenth_of_a_percent_names_no_extremes():
    assert answered(model(), moved(1e-5))[1]["Changed most"].startswith("none by 0.1 % or more; furthest model.layers.")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_is_told_under_the_rounding_of_the_type(dtype):
    """Every matrix rounded, one of them scaled before: its change is no update and no rounding."""
    name = "model.layers.1.self_attn.q_proj.weight"
    stored = {key: value.to(dtype) for key, value in (model() | {name: 1.05 * model()[name]}).items()}
    _, more = answered(model(), stored)
    assert more["Scaled"].startswith(f"{name} by 1.05")
    assert "Scaled" not in answered(model(), {key: value.to(dtype) for key, value in model().items()})[1]
    small = {key: value.to(dtype) for key, value in model().items()}
    again = small | {name: (1.05 * small[name].float()).to(dtype)}
    assert answered(small, again)[1]["Scaled"].startswith(f"{name} by 1.05")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_update_under_rounding_is_no_scale(dtype):
    stored = {key: (1.02 * value).to(dtype) for key, value in moved(0.02).items()}
    assert "Scaled" not in answered(model(), stored)[1]
