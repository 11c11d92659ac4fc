"""Arguments that are almost right: refused in a sentence that names them, at the doors that take them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from models import queries

import specdiag
from specdiag.errors import UsageError

TINY = 1e-320
"""A number whose inverse is infinite."""
SETTING = {"lr": 1e-3, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def report() -> specdiag.SpectralReport:
    return specdiag.analyze(queries(2, 64, 64), device="cpu")


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda report, given: specdiag.simulate(steps=100, **given),
        lambda report, given: specdiag.recommend(report, steps_left=100, **given),
        lambda report, given: specdiag.audit(report, steps=100, **given),
    ],
    ids=["simulate", "recommend", "audit"],
)
def test_rates_at_which_no_step_can_be_counted(
    report: specdiag.SpectralReport, ask: Callable[..., object], name: str
) -> None:
    with pytest.raises(UsageError, match=rf"^{name}=1e-320: give (0, or )?a number of at least 1e-20"):
        ask(report, SETTING | {name: TINY})
    ask(report, SETTING | {name: 1e-20})


@pytest.mark.parametrize("value", [np.array(0.5), torch.tensor(0.5)], ids=["numpy", "torch"])
def test_arrays_without_axes(report: specdiag.SpectralReport, value: object) -> None:
    for name in ("include", "exclude", "roles"):
        with pytest.raises(UsageError, match=f"^{name}=.*: give a text or several$"):
            specdiag.recommend(report, **{name: value})
    with pytest.raises(UsageError, match=r"^the shape of a=.*: give whole numbers"):
        specdiag.roles({"a": value})
    with pytest.raises(UsageError, match=r"^sources= is a list"):
        specdiag.build_reference(value)


@pytest.mark.parametrize("value", [5, 0.5, np.array([1, 2]), iter(()), {"a": 1}, object()])
def test_sources_that_are_no_list(value: object) -> None:
    with pytest.raises(UsageError, match=r"^sources= is a list"):
        specdiag.build_reference(value)


@pytest.mark.parametrize("name", ["basis", "compat", "rule", "lr_schedule"])
def test_arrays_in_place_of_a_name(report: specdiag.SpectralReport, name: str) -> None:
    with pytest.raises(UsageError, match="array"):
        specdiag.recommend(report, **{name: np.array([1, 2])})
