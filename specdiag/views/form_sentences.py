"""The form in which weights are stored, in sentences: how far it moves the numbers, and which conclusions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from specdiag.analysis.summary import contrast_in_balance
from specdiag.records import Contrast, ModuleRecord
from specdiag.spectra.limits import MIN_EIGENVALUES
from specdiag.views.sentences import is_clear


def gauge(records: tuple[ModuleRecord, ...]) -> list[str]:
    """Write how far square_alpha depends on the form in which the matrices are stored, where that is known."""
    shifts = [abs(r.gauge_shift) for r in records if r.gauge_shift is not None]
    if not shifts:
        return []
    return [
        f"The balanced form, which computes the same, has another square_alpha: by {median(shifts):.3f} in the median "
        f"of {len(shifts)} matrices, by {max(shifts):.3f} at most."
    ]


def few_products(function: tuple[ModuleRecord, ...]) -> list[str]:
    """Write how many heads have too few rows for an exponent."""
    short = sum(r.status == "too_few" for r in function)
    if not short:
        return []
    return [
        f"{short} of {len(function)} spectra of the function have fewer than {MIN_EIGENVALUES} values: stable rank and "
        "norms, no exponent."
    ]


def contrast_answer(records: Sequence[ModuleRecord]) -> str | None:
    """Say whether the balanced form leaves the contrast of attention and MLP as it is; None where it is not known.

    Args:
        records: stored rows of a report.
    """
    both = contrast_in_balance(records)
    if both is None:
        return None
    stored, balanced = both
    before, after = _conclusion(stored), _conclusion(balanced)
    verdict = f"also {after}" if before == after else f"{after}: the conclusion changes, as stored {before}"
    return f"{verdict} (MLP less attention by square_alpha {_numbers(balanced)}, as stored {_numbers(stored)})"


def _conclusion(c: Contrast) -> str:
    if not is_clear(c):
        return "no clear difference"
    return f"{'attention' if c.difference > 0 else 'MLP'} heavier-tailed"


def _numbers(c: Contrast) -> str:
    return f"{c.difference:+.3f} in {c.n_positive} of {c.n_layers} layers"
