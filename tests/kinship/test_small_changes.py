"""A small fine-tune is derived, and rounding is not: the stored types and codes tell them apart."""

import pytest
import torch
from related_models import llama, opened, tuned

import specdiag


def related(a, b):
    return specdiag.lineage(opened(a), opened(b), device="cpu", jobs=1).relations[0]


def matrices(base, change):
    return base | {name: change(value) for name, value in base.items() if ".layers." in name and value.ndim == 2}


def low_rank(size):
    """Add a change of rank 2 of this size, relative to the matrix."""

    def change(value):
        random = torch.Generator().manual_seed(0)
        left, right = (torch.randn(n, 2, generator=random, dtype=value.dtype) for n in value.shape)
        added = left @ right.T
        return value + added * (size * value.norm() / added.norm())

    return change


def coded(value):
    """Round to 8 bits with a scale for 16 values."""
    parts = value.reshape(-1, 16)
    scale = parts.abs().amax(1, keepdim=True) / 127
    return ((parts / scale).round() * scale).reshape(value.shape)


@pytest.fixture(scope="module")
def base():
    return llama(layers=3)


@pytest.mark.parametrize("size", [0.002, 0.005])
def test_a_fine_tune_of_few_directions(base, size):
    found = related(base, matrices(base, low_rank(size)))
    assert found.verdict == "derived"
    assert "a small fine-tune or edit" in found.signs[0]


def test_a_fine_tune_of_all_directions_and_one_that_nobody_can_tell(base):
    assert related(base, tuned(base, 0.005)).verdict == "derived"
    assert related(base, tuned(base, 2e-4)).verdict == "same function"


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_codes_that_were_decoded(base, kind):
    found = related(base, {name: value.to(kind) for name, value in matrices(base, coded).items()})
    assert found.verdict == "same function"


@pytest.mark.parametrize(("size", "verdict"), [(0.0, "same function"), (0.005, "derived")])
def test_the_coarser_type_decides(base, size, verdict):
    after = {name: value.bfloat16() for name, value in matrices(base, low_rank(size)).items()}
    wide = {name: value.float() for name, value in after.items()}  # the values decide, not the type that holds them
    for sides in ((base, after), (after, base), (base, wide)):
        found = related(*sides)
        assert found.verdict == verdict
        assert any("rounding to BF16 explains 0.8 %" in sign for sign in found.signs) == (verdict == "derived")
