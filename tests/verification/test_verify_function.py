"""A copy in another form is not verified; the last line says whether lineage finds the same function."""

import pytest
import torch
from lineage_forms import changed
from related_models import llama, opened, tuned

import specdiag


@pytest.mark.parametrize(
    ("change", "verdict", "sentence"),
    [
        (changed, "same function", "the copy is in another form, or was trained a little"),
        (lambda state: tuned(state, 1e-4), "same function", "differ by no more than rounding changes them"),
        (lambda state: tuned(state, 0.03), "derived", "the models are kin"),
        (lambda _: llama(1), "no relation shown", "The layers compute something else (distance"),
    ],
)
def test_the_function_of_a_copy(change, verdict, sentence):
    base = llama()
    found = specdiag.verify(opened(base), opened(change(base)))
    assert (found.verdict, found.function) == ("not verified", verdict)
    assert sentence in found.notes[-1]


def test_nothing_is_said_of_a_right_copy_or_unknown_wiring():
    base = llama()
    assert specdiag.verify(opened(base), opened({n: v.float() for n, v in base.items()})).function is None
    odd = {"fc.weight": torch.ones(8, 8)}
    assert specdiag.verify(odd, {"fc.weight": torch.zeros(8, 8)}).function is None
