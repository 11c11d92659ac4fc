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
    assert first == "None of 16 matrices resembles its counterpart: trained apart, or for long from a random start."
    assert "Update" not in more


def test_matrices_in_another_order_are_not_called_trained_apart():
    w = model()
    first, _ = answered({name: w[other] for name, other in zip(NAMES, NAMES[::-1], strict=True)})
    assert first == "Each of 16 matrices holds the values of another."
    first, _ = answered({name: value.T.contiguous() for name, value in w.items()})
    assert first.endswith("and all keep their singular values: transposed, reordered or rotated.")


def test_a_change_beyond_a_finer_type_is_no_rounding():
    generator = torch.Generator().manual_seed(6)
    before = {name: w.bfloat16() for name, w in model().items()}
    tuned = {name: w.float() + 1e-3 * torch.randn(96, 96, generator=generator) for name, w in before.items()}
    more = dict(facts(specdiag.compare(before, tuned)))
    assert more["Stored"] == "16 matrices as F32, before BF16"
    assert "Update" in more
    more = dict(facts(specdiag.compare(before, {name: w.float() for name, w in before.items()})))
    assert more["Stored"] == "16 matrices as F32, before BF16; their values are the same"


def test_a_low_rank_update_is_seen_beside_rounding():
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(96, 1, generator=generator), torch.randn(1, 96, generator=generator)
    _, more = answered({name: (w + 2.5e-3 * left @ right).bfloat16() for name, w in model().items()})
    assert more["Stored"] == "16 matrices as BF16, before F32"
    assert "few directions" in more["Update"]


def test_a_few_values_that_another_type_rounds_are_compared():
    before = {name: (0.02 * w).bfloat16() for name, w in model().items()}
    more = dict(facts(specdiag.compare(before, {name: w.half() for name, w in before.items()})))
    assert more["Stored"].startswith("16 matrices as F16, before BF16; no change is larger than rounding")
    assert "By layer" not in more


@pytest.mark.parametrize("factor", [-1, -0.5])
def test_another_sign_is_a_scale(factor):
    w = model()
    _, more = answered(w | {NAME: factor * w[NAME]})
    assert more["Scaled"] == f"{NAME} by {factor:g}"
    assert "Update" not in more


def test_what_was_damaged_before_does_not_count_as_replaced_among_the_rest():
    w = model()
    before = w | {NAME: torch.full((96, 96), torch.nan)}
    first = headline(specdiag.compare(before, w | {NAME: w[OTHER].clone(), NAMES[0]: w[NAMES[0]] + 0.01 * w[OTHER]}))
    assert "1 of the other 15 matrices changed. All" in first


def test_one_of_two_equal_matrices_is_named_as_the_origin():
    w = model()
    before = w | {OTHER: w[NAMES[7]].clone()}
    more = dict(facts(specdiag.compare(before, before | {NAME: before[OTHER].clone()})))
    assert more["Replaced"] == f"{NAME} holds the values of {OTHER}"


def test_a_change_of_type_alone_changes_no_value():
    stored = {name: torch.randn(64, 48).bfloat16() for name in NAMES[:2]}
    wide = {name: tensor.float() for name, tensor in stored.items()}
    assert headline(specdiag.compare(stored, wide)) == "No value changed. 2 of 2 matrices are stored in another type."
    one = specdiag.compare({NAME: stored[NAMES[0]]}, {NAME: stored[NAMES[0]].float()})
    assert headline(one) == "No value changed. The matrix is stored in another type."
    tuned = specdiag.compare({NAME: wide[NAMES[0]]}, {NAME: wide[NAMES[0]] + 0.01 * torch.randn(64, 48)})
    assert headline(tuned).startswith("The one matrix changed. All weights together moved by ")
