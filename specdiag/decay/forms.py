"""A plan as the weights are stored beside one from their balanced form, which computes the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import correlation, fmean

from specdiag.decay.assignment import Rule
from specdiag.decay.effect import AGREE
from specdiag.decay.plan import Basis
from specdiag.decay.targets import DecayTarget
from specdiag.errors import UsageError
from specdiag.report import SpectralReport

UNTESTED = "Plans on the balanced form were not tested: whether they train better is open."
_MANY = 0.25
"""Change of a ratio from which on a module is counted."""


def require_balanced(report: SpectralReport, values: Sequence[float | None]) -> None:
    """Refuse a plan on the balanced form where no module has one.

    Args:
        report: that the plan is made from.
        values: of the modules that take part.

    Raises:
        UsageError: no module has a value.
    """
    if any(value is not None for value in values):
        return
    reasons = [n for n in report.provenance.notes if n.endswith("are left out.") or "left out of the function" in n]
    why = " ".join(reasons) or "No module has a square_alpha."
    raise UsageError(f"basis='function' plans on the balanced form, which no module has. {why} Choose basis='square'.")


def notes(
    basis: Basis,
    targets: Sequence[DecayTarget],
    ratios: Callable[[Sequence[float | None]], list[float]],
    rule: Rule,
) -> list[str]:
    """Compare the plan by square_alpha as stored with that of the balanced form, where both are known.

    Args:
        basis: of the plan.
        targets: its Parameters.
        ratios: gives the ratios of the plan's rule.
        rule: that rule.
    """
    said = [UNTESTED] if basis == "function" else []
    if rule in ("uniform", "none"):
        return said
    known = [target for target in targets if target.mean("balanced_alpha") is not None]
    if len(known) < 3 or len(known) < len(targets) / 2:
        return said
    stored, balanced = (
        _of(ratios([t.mean(column) if t in known else None for t in targets]), targets, known)
        for column in ("square_alpha", "balanced_alpha")
    )
    moved = [abs(a - b) for a, b in zip(stored, balanced, strict=True)]
    same = correlation(stored, balanced) if min(len(set(stored)), len(set(balanced))) > 1 else None
    n_many = sum(change >= _MANY for change in moved)
    related = "" if same is None else f" (correlation {same:+.2f})"
    other = "the stored form" if basis == "function" else "the balanced form, which computes the same,"
    text = (
        f"By square_alpha of {other} ratios differ by {fmean(moved):.2f} in "
        f"the mean and {max(moved):.2f} at most, {n_many} of {len(known)} by {_MANY} or more{related}."
    )
    return [*said, text + _conclusion(known, stored, balanced, same)]


def _of(ratios: Sequence[float], targets: Sequence[DecayTarget], known: Sequence[DecayTarget]) -> list[float]:
    return [ratio for target, ratio in zip(targets, ratios, strict=True) if target in known]


def _conclusion(
    known: Sequence[DecayTarget], stored: Sequence[float], balanced: Sequence[float], same: float | None
) -> str:
    """Say whether a conclusion of the plan changes with the form."""
    sides = [_more(known, ratios) for ratios in (stored, balanced)]
    if sides[0] != sides[1]:
        return f" The conclusion changes: as stored {sides[0]} gets more decay in the mean, in balance {sides[1]}."
    if same is not None and same < AGREE:
        return " The order of the modules changes: do not conclude from either plan alone."
    return "" if sides[0] is None else f" Either way {sides[0]} gets more decay in the mean."


def _more(known: Sequence[DecayTarget], ratios: Sequence[float]) -> str | None:
    """Name the family that gets more decay; None where there is one alone."""
    by_family = {
        family: [ratio for target, ratio in zip(known, ratios, strict=True) if target.family == family]
        for family in ("attention", "mlp")
    }
    if not all(by_family.values()):
        return None
    return "attention" if fmean(by_family["attention"]) > fmean(by_family["mlp"]) else "the MLP"
