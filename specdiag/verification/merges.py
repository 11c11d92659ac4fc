"""A weight that an adapter should have changed: the change that was made beside the one that was asked for.

X = W' - W and D = expected - W. strength = <X, D>/<D, D>, residual |X - D|/|D|, unexplained |X - strength D|/|X|.
Float storage is replayed: cast(W + D) value by value, with the usual orders of rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from specdiag.verification.copies import CODES, compare_copy, is_cast
from specdiag.verification.records import Outcome
from specdiag.verification.values import Values, Wide, blocks, spacing

_ARITHMETIC = 0.004
"""Error of a product whose factors and result are rounded to bfloat16, relative to the product."""
_COARSE = "a product of less precision than the storage"
_SLACK = 1.25
_TOLERANCE = 0.02
"""Error of a strength that arithmetic and ties of rounding explain."""
_NEARLY_ALL = 0.999
_TELLING = 0.1
"""Standard error of a strength up to which codes of few bits can tell."""

Replay = tuple[str, Callable[[], Values]]
"""Its name, and the merged values before they are cast."""


@dataclass(frozen=True, slots=True)
class Merge:
    """A merged weight beside what it should be.

    Attributes:
        outcome: `rounded`, `within rounding`, `cannot be told`, `differs`, and of an update of zero that of a copy.
        n_different: values that the best replay does not reproduce; None for codes.
        residual: |X - D|/|D|; None where D is zero.
        rounding: the residual that the roundings of W and of the merged weight explain.
        strength: <X, D>/<D, D>.
        unexplained: |X - strength D|/|X|; None where X is zero.
        kept: the strength of a right merge in this storage.
        arithmetic: the order of rounding that reproduces the values best.
        n_lost: values that are finite on one side alone, or infinite in another way.
        size: |D|/|W|.
        change: |X|/|D|.
    """

    outcome: Outcome
    n_different: int | None
    residual: float | None
    rounding: float | None
    strength: float | None = None
    unexplained: float | None = None
    kept: float | None = None
    arithmetic: str | None = None
    n_lost: int = 0
    size: float = 0.0
    change: float = 0.0

    @property
    def is_right(self) -> bool:
        """True unless the weight differs from a right merge."""
        return self.outcome != "differs"

    @property
    def is_scaled(self) -> bool:
        """True where the change is the update, but for its scale."""
        if self.unexplained is None or self.rounding is None:
            return False
        return self.unexplained * self.change <= max(_SLACK * self.rounding, _TOLERANCE * self.change)


@dataclass(slots=True)
class _Sums:
    """Sums over all values."""

    dd: float = 0.0
    xx: float = 0.0
    xd: float = 0.0
    kept_d: float = 0.0
    ww: float = 0.0
    error: float = 0.0
    steps: float = 0.0
    base_steps: float = 0.0
    n_equal: int = 0
    n_decisive: int = 0
    n_on: int = 0
    n_off: int = 0
    n_lost: int = 0


def compare_merge(
    base: Values, expected: Values, after: Values, replays: Iterable[Replay] = (), *, n_roundings: int = 1
) -> Merge:
    """Compare a merged weight with W + D.

    Args:
        base: W, laid as the merged weight is.
        expected: W + D, likewise.
        after: the merged weight.
        replays: other orders of rounding, tried where casting W + D does not give every value.
        n_roundings: how often the merging program rounds a value of the size of W.

    Returns:
        The outcome with its numbers.
    """
    sums = _Sums()
    for cut in blocks(after.raw.size):
        _add(sums, base.wide(cut), expected.wide(cut), after.wide(cut), after, base)
    if sums.dd == 0:
        copy = compare_copy(base, after)
        return Merge(copy.outcome, copy.n_different, None, None, arithmetic=copy.arithmetic, n_lost=copy.n_lost)
    n = after.raw.size
    codes = after.code_error() ** 2 * n
    storage = codes or (1 + n_roundings) * sums.steps + sums.base_steps
    strength = sums.xd / sums.dd
    rest = max(sums.xx - strength * sums.xd, 0.0)
    merge = Merge(
        outcome="differs",
        n_different=None if codes else n - sums.n_equal,
        residual=(sums.error / sums.dd) ** 0.5,
        rounding=(storage / sums.dd) ** 0.5,
        strength=strength,
        unexplained=(rest / sums.xx) ** 0.5 if sums.xx else None,
        kept=None if codes else sums.kept_d / sums.dd,
        n_lost=sums.n_lost,
        size=(sums.dd / sums.ww) ** 0.5 if sums.ww else 0.0,
        change=(sums.xx / sums.dd) ** 0.5,
    )
    if merge.n_lost:
        return merge
    if codes:
        return _in_codes(merge, n)
    merge = _in_floats(merge, sums, after, replays)
    if merge.outcome == "within rounding" and is_cast(base, after):
        return replace(merge, outcome="differs", arithmetic=None)
    return merge


def _add(sums: _Sums, w: Wide, e: Wide, t: Wide, after: Values, base: Values) -> None:
    float64 = np.dtype(np.float64)
    with np.errstate(all="ignore"):
        both = np.isfinite(e) & np.isfinite(w) & np.isfinite(t)
        odd = (e == t) | (np.isnan(e) & np.isnan(t))
        sums.n_lost += int((~both & ~odd).sum())
        sums.n_equal += int((~both & odd).sum())
        w, e, t = w[both], e[both], t[both]
        x, d = t - w, e - w
        on, off = (after.kind.widen(after.kind.narrow(v), float64) for v in (e, w))
        decisive = on != off
        sums.n_equal += int((on == t).sum())
        sums.n_decisive += int(decisive.sum())
        sums.n_on += int((decisive & (on == t)).sum())
        sums.n_off += int((decisive & (off == t)).sum())
        sums.dd += float(np.vdot(d, d))
        sums.xx += float(np.vdot(x, x))
        sums.xd += float(np.vdot(x, d))
        sums.kept_d += float(np.vdot(on - w, d))
        sums.ww += float(np.vdot(w, w))
        sums.error += float(np.vdot(t - e, t - e))
        step = spacing(e, after.kind)
        sums.steps += float(np.vdot(step, step)) / 12
        if base.kind.eps < after.kind.eps:
            sums.base_steps += float(np.vdot(step, step)) / 12


def _in_codes(merge: Merge, n: int) -> Merge:
    """Judge by the size of the error and the strength, where codes of few bits cannot be replayed."""
    assert merge.residual is not None
    assert merge.rounding is not None
    assert merge.strength is not None
    if merge.residual > CODES * merge.rounding:
        return merge
    error = merge.rounding / n**0.5
    if error > _TELLING:
        return replace(merge, outcome="cannot be told")
    right = abs(merge.strength - 1) <= 0.05 + 5 * error
    return replace(merge, outcome="within rounding" if right else "differs")


def _in_floats(merge: Merge, sums: _Sums, after: Values, replays: Iterable[Replay]) -> Merge:
    if merge.n_different == 0:
        outcome = "rounded" if sums.n_decisive else "cannot be told"
        return replace(merge, outcome=outcome, arithmetic="W + D, cast once")
    n = after.raw.size
    for name, values in replays:
        n_different = _n_different(values(), after)
        if merge.n_different is None or n_different < merge.n_different:
            merge = replace(merge, n_different=n_different, arithmetic=name)
        if n_different == 0:
            return replace(merge, outcome="rounded" if sums.n_decisive else "cannot be told")
    assert merge.n_different is not None
    if merge.n_different <= (1 - _NEARLY_ALL) * n and merge.arithmetic is not None and sums.n_decisive > n * 0.01:
        return replace(merge, outcome="within rounding")
    if not _is_plausible(merge, sums, n):
        return merge
    assert merge.residual is not None
    assert merge.rounding is not None
    coarse = merge.residual > _SLACK * merge.rounding
    return replace(merge, outcome="within rounding", arithmetic=_COARSE if coarse else merge.arithmetic)


def _is_plausible(merge: Merge, sums: _Sums, n: int) -> bool:
    """Tell whether rounding explains what is left, and the values that the update decides are on its side."""
    assert merge.residual is not None
    assert merge.rounding is not None
    assert merge.strength is not None
    assert merge.kept is not None
    tolerance = _TOLERANCE * max(1.0, merge.kept) + 5 * merge.rounding / n**0.5
    return (
        merge.residual <= _SLACK * math.hypot(merge.rounding, _ARITHMETIC)
        and abs(merge.strength - merge.kept) <= tolerance
        and sums.n_on > sums.n_off
    )


def _n_different(values: Values, after: Values) -> int:
    float64 = np.dtype(np.float64)
    total = 0
    for cut in blocks(after.raw.size):
        replayed, t = after.kind.widen(after.kind.narrow(values.wide(cut)), float64), after.wide(cut)
        total += int((~((replayed == t) | (np.isnan(replayed) & np.isnan(t)))).sum())
    return total
