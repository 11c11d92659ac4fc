"""A comparison tells a matrix that was replaced, scaled, cut or stored anew from one that was trained."""

import pytest
import torch

import specdiag
from specdiag.comparison.answer import facts, headline

NAMES = [f"model.layers.{layer}.self_attn.{role}_proj.weight" for layer in range(4) for role in "qkvo"]
NAME, OTHER = NAMES[5], NAMES[6]


def model():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(96, 96, generator=generator) for name in NAMES}


def answered(after):
    found = specdiag.compare(model(), after)
    return headline(found), dict(facts(found))


def reordered(w):
    return w[torch.randperm(96, generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("change", "way"),
    [
        (lambda w: w.T, "same singular values, other directions: transposed, reordered or rotated"),
        (reordered, "same singular values, other directions: transposed, reordered or rotated"),
        (lambda w: torch.randn(96, 96, generator=torch.Generator().manual_seed(2)), "other values, cosine below 0.1"),
    ],
    ids=["transposed", "reordered", "drawn-anew"],
)
def test_what_replaced_a_matrix_is_told_by_its_singular_values(change, way):
    w = model()[NAME]
    first, more = answered(model() | {NAME: change(w).contiguous()})
    assert first.startswith("1 of 16 matrices changed: replaced, not tuned.")
    assert more["Replaced"] == f"{NAME}: {way}"
    assert "Update" not in more


def test_two_matrices_that_were_exchanged_name_each_other():
    w = model()
    first, more = answered(w | {NAME: w[OTHER], OTHER: w[NAME]})
    assert first.startswith("2 of 16 matrices changed: replaced, not tuned.")
    assert f"{NAME} holds the values of {OTHER}" in more["Replaced"]
    assert f"{OTHER} holds the values of {NAME}" in more["Replaced"]


def test_a_layer_of_another_is_told_from_saved_reports(tmp_path):
    w = model()
    before, after = specdiag.analyze(w), specdiag.analyze(w | {NAME: w[OTHER].clone()})
    found = specdiag.compare(before, after)
    assert dict(facts(found))["Replaced"] == f"{NAME} holds the values of {OTHER}"


def test_tuned_matrices_are_not_called_replaced():
    generator = torch.Generator().manual_seed(3)
    first, more = answered({name: w + 0.5 * torch.randn(96, 96, generator=generator) for name, w in model().items()})
    assert "replaced" not in first
    assert "Replaced" not in more
    assert "Scaled" not in more


def test_a_scale_is_named_with_its_factor():
    w = model()
    first, more = answered(w | {NAME: 1.02 * w[NAME]})
    assert more["Scaled"] == f"{NAME} by 1.02"
    assert "Update" not in more
    assert "replaced" not in first


@pytest.mark.parametrize(("dtype", "short"), [(torch.float16, "F16"), (torch.bfloat16, "BF16")])
def test_rounding_to_another_type_is_no_training(dtype, short):
    _, more = answered({name: w.to(dtype) for name, w in model().items()})
    assert more["Stored"].startswith(f"16 matrices as {short}, before F32; no change is larger than rounding to it")
    assert "Update" not in more


def test_training_beside_another_type_is_not_called_rounding():
    _, more = answered({name: (1.1 * w + 0.1 * w.T).to(torch.bfloat16) for name, w in model().items()})
    assert more["Stored"] == "16 matrices as BF16, before F32"
    assert "Update" in more


def test_another_shape_comes_first():
    w = model()
    first, _ = answered(w | {NAME: w[NAME][:, :80].contiguous()})
    assert first.startswith(f"1 tensor has another shape: {NAME} (96x96, now 96x80). The other 15 are equal")


def test_the_layers_that_moved_most_and_least_are_named():
    w = model()
    generator = torch.Generator().manual_seed(4)
    after = {
        name: value + 0.1 * (1 + i // 4) * torch.randn(96, 96, generator=generator)
        for i, (name, value) in enumerate(w.items())
    }
    said = answered(after)[1]["By layer"]
    assert said.startswith("3 most (40.")
    assert said.endswith("0 least (10.0 %); medians")
    even = {name: value + 0.1 * torch.randn(96, 96, generator=generator) for name, value in w.items()}
    assert "By layer" not in answered(even)[1]


def test_models_trained_apart_are_told_so():
    generator = torch.Generator().manual_seed(5)
    first, more = answered({name: torch.randn(96, 96, generator=generator) for name in NAMES})
    assert first == "None of 16 matrices resembles its counterpart: trained apart, or neurons in another order."
    assert "Update" not in more
