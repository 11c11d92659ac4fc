"""A tensor that should be the same on both sides: equal, rounded to another type, or in codes of few bits."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.records import Outcome
from specdiag.verification.values import Values, blocks, spacing

CODES = 1.6
"""Error of codes over that of rounding to the nearest of equal steps: GPTQ and searched scales stay below 1.4."""
_SLOPE = 0.02
_TRUNCATED = "cut off instead of rounded"
_TWICE = "rounded twice"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy beside what it was made of.

    Attributes:
        outcome: `equal`, `rounded`, `within rounding` or `differs`.
        n_different: values that rounding does not reproduce; None for codes.
        residual: |after - before|/|before|.
        rounding: the residual that the storage explains.
        cosine: of both as vectors; None where one is zero.
        slope: <after, before>/<before, before>.
        n_lost: values that are finite on one side alone, or infinite in another way.
        arithmetic: how it was rounded, where that is not to the nearest.
    """

    outcome: Outcome
    n_different: int | None
    residual: float
    rounding: float
    cosine: float | None = None
    slope: float = 1.0
    n_lost: int = 0
    arithmetic: str | None = None

    @property
    def is_right(self) -> bool:
        """True where the copy is one."""
        return self.outcome != "differs"


def compare_copy(before: Values, after: Values) -> Copy:
    """Compare a tensor with what it was made of.

    Args:
        before: the original.
        after: of the same shape.

    Returns:
        The outcome with its numbers.
    """
    if before.kind.name == after.kind.name and after.rounding == before.rounding and _same_bits(before, after):
        return Copy("equal", 0, 0.0, 0.0)
    sums = np.zeros(5)
    n_different = n_inexact = n_beyond = n_lost = n_away = 0
    for cut in blocks(after.raw.size):
        w, t = before.wide(cut), after.wide(cut)
        replayed = after.kind.widen(after.kind.narrow(w), np.dtype(np.float64))
        with np.errstate(all="ignore"):
            same = (replayed == t) | (np.isnan(replayed) & np.isnan(t))
            n_different += int((~same).sum())
            n_inexact += int((~((w == t) | (np.isnan(w) & np.isnan(t)))).sum())
            both = np.isfinite(w) & np.isfinite(t)
            n_lost += int((~both & ~same).sum() + (np.isfinite(w) & ~np.isfinite(t) & same).sum())
            w, t, same = w[both], t[both], same[both]
            step, error = spacing(w, after.kind), t - w
            n_beyond += int((np.abs(error) > step).sum())
            n_away += int(((np.abs(t) > np.abs(w)) & (error != 0)).sum())
            sums += [
                np.vdot(w, w), np.vdot(t, t), np.vdot(w, t), np.vdot(error, error), np.vdot(step, step) / 12
            ]  # fmt: skip
    of_w, of_t, dot, of_error, of_steps = map(float, sums)
    scale = of_w or 1.0
    codes = (after.code_error() ** 2 + before.code_error() ** 2) * after.raw.size if after.rounding else 0.0
    copy = Copy(
        outcome="differs",
        n_different=n_different,
        residual=(of_error / scale) ** 0.5,
        rounding=((codes or of_steps) / scale) ** 0.5,
        cosine=dot / (of_w * of_t) ** 0.5 if of_w > 0 and of_t > 0 else None,
        slope=dot / of_w if of_w else 1.0,
        n_lost=n_lost,
    )
    return _decided(copy, before, after, n_inexact=n_inexact, n_beyond=n_beyond, n_away=n_away)


def _decided(copy: Copy, before: Values, after: Values, *, n_inexact: int, n_beyond: int, n_away: int) -> Copy:
    """Decide what the numbers say."""
    if copy.n_lost:
        return copy
    if copy.n_different == 0:
        return replace(copy, outcome="rounded" if n_inexact else "equal", rounding=copy.rounding if n_inexact else 0.0)
    if after.rounding is not None:
        right = copy.residual <= CODES * copy.rounding and abs(copy.slope - 1) <= max(copy.rounding, _SLOPE)
        return replace(copy, outcome="within rounding" if right else "differs", n_different=None)
    is_exact = before.rounding is None and before.kind.eps >= after.kind.eps and before.kind.max <= after.kind.max
    if is_exact or n_beyond:
        return copy
    return replace(copy, outcome="within rounding", arithmetic=_TWICE if n_away else _TRUNCATED)


def _same_bits(before: Values, after: Values) -> bool:
    size = f"u{before.raw.dtype.itemsize}"
    return np.array_equal(
        np.ascontiguousarray(before.raw).view(size), np.ascontiguousarray(after.raw).view(size)
    )  # fmt: skip


def narrower(values: Values) -> str | None:
    """Find the narrowest type that holds every value exactly, where it is narrower than the storage.

    Args:
        values: of F32 or F64.

    Returns:
        `BF16`, `F16` or `F32`; None where none does.
    """
    for name in ("BF16", "F16", "F32"):
        kind = FLOAT_TYPES[name]
        if kind.storage.itemsize < values.kind.storage.itemsize and all(
            np.array_equal(kind.widen(kind.narrow(w), np.dtype(np.float64)), w, equal_nan=True)
            for w in (values.wide(cut) for cut in blocks(values.raw.size))
        ):
            return name
    return None


def is_cast(before: Values, after: Values) -> bool:
    """Tell whether values have the precision of a narrower type than both their own and the original's.

    Args:
        before: the original.
        after: floats, of any type.
    """
    name = narrower(after)
    return name is not None and FLOAT_TYPES[name].eps > before.kind.eps
