"""When an exponent is trusted, by what is stored and by what arithmetic does; the ladder that is climbed until it is."""

import numpy as np
import pytest
import torch
from helpers import with_singular_values

import specdiag
from specdiag.records import Settings
from specdiag.spectra import live_alpha
from specdiag.spectra.eigenvalues import spectrum
from specdiag.spectra.exponents import settled
from specdiag.spectra.farms import farms_windows
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.ladder import ROUTES, more_exact, solve
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.spectra.tails import Tail
from specdiag.spectra.trust import judge, trusted_hill

F32, F64 = FLOAT_TYPES["F32"], FLOAT_TYPES["F64"]


def stack(decades, n=80, m=120, kept=None):
    """Singular values over some decades, of which only the `kept` largest are not zero."""
    sigma = np.logspace(0, -decades, n)
    if kept is not None:
        sigma[kept:] = 0
    return with_singular_values(sigma, (n, m))[None]


@pytest.mark.parametrize(
    ("values", "dtype", "status", "is_settled"),
    [
        (stack(1), "float32", "ok", True),
        (stack(0), "float64", "degenerate", True),
        (stack(1, n=40), "float32", "too_few", True),
        (stack(1, kept=30), "float64", "low_rank", False),
        (stack(6), "float32", "ok", False),
    ],
    ids=["plain", "equal", "few", "zeros", "lost"],
)
def test_a_tail_is_judged_by_what_is_stored_and_by_arithmetic(values, dtype, status, is_settled):
    found = judge(spectrum(values.astype(np.float32), F32, dtype=dtype))
    assert found.status == status
    assert found.is_settled == is_settled
    assert (found.fit is None) == (status == "too_few")


def test_another_tail_can_be_lost_where_the_hill_tail_is_not():
    solved = spectrum(stack(3), F64, dtype="float32")
    low = Tail(1.5, 80, float(solved.eigenvalues[0]), 0.1)
    assert judge(solved, 0.3).is_precise
    assert not judge(solved, 0.3, [low]).is_precise


def test_an_exponent_that_is_lost_or_of_zeros_is_none():
    assert trusted_hill(spectrum(stack(1), F64, dtype="float32"), 0.5) == pytest.approx(1.87, abs=0.02)
    assert trusted_hill(spectrum(stack(8), F64, dtype="float32"), 0.5) is None
    assert trusted_hill(spectrum(stack(1, kept=30), F64), 0.5) is None


def test_the_ladder_is_climbed_as_far_as_is_needed_and_no_further():
    def reached(decades):
        values = stack(decades)
        full, _ = settled(spectrum(values, F64, dtype="float32"), values, F64, Settings(dtype="float32"), (80, 120))
        return full.method, full.dtype

    assert [reached(d) for d in (0.5, 4, 12)] == [("gram", "float32"), ("gram", "float64"), ("svd", "float64")]


def test_nothing_is_more_exact_than_singular_values():
    values = stack(1)
    assert more_exact(spectrum(values, F64, dtype="float32")) == ("float64", "exact")
    assert more_exact(spectrum(values, F64)) == ("exact",)
    for dtype in ("float32", "float64"):
        assert more_exact(spectrum(values, F64, method="svd", dtype=dtype)) == ()


@pytest.mark.parametrize("route", ROUTES)
def test_windows_are_pooled_by_every_route(route):
    values = stack(0.5, n=60, m=150)
    whole, cut = solve([values], F64, route), solve(farms_windows(values, 60, 1, 3), F64, route)
    assert (len(whole.eigenvalues), len(cut.eigenvalues)) == (60, 180)
    reference = np.concatenate([np.linalg.svd(w[0], compute_uv=False) ** 2 for w in farms_windows(values, 60, 1, 3)])
    np.testing.assert_allclose(cut.eigenvalues, np.sort(reference), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decades", [0.5, 2, 4, 6, 9])
def test_live_decay_and_analyze_trust_the_same(decades):
    """Both begin in float32 and climb by the same decision."""
    w = torch.from_numpy(stack(decades)[0])
    (record,) = specdiag.analyze({"model.layers.0.mlp.up_proj.weight": w}, dtype="float32", device="cpu", jobs=1)
    (alpha,), (square,) = (live_alpha.exponents([w[None]], basis) for basis in ("alpha", "square"))
    assert alpha == pytest.approx(record.alpha_50, rel=1e-4)
    if record.square_alpha is not None:
        assert square == pytest.approx(record.square_alpha, rel=1e-4)


def test_the_table_of_rules_is_true():
    eigenvalues = np.sort(np.random.default_rng(0).pareto(2, 200) + 0.1)
    for rule in TAIL_RULES.values():
        narrow, wide = rule.fit(eigenvalues, 0.2), rule.fit(eigenvalues, 0.6)
        assert (narrow != wide) == rule.uses_fraction
        # The status of a rule that scans is that of its lowest threshold, which must not be a zero.
        assert rule.uses_fraction or rule.drops_zeros, rule.name
    assert [rule.name for rule in TAIL_RULES.values() if rule.is_hill] == ["hill", "hill-paper"]
    assert [rule.name for rule in TAIL_RULES.values() if rule.is_reference] == ["hill"]
