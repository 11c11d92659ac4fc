"""Matrices that were replaced, scaled or stored anew instead of trained, told by their numbers on both sides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import isclose

from specdiag.comparison.records import Comparison, ModuleChange
from specdiag.records import ModuleRecord
from specdiag.text.counts import counted
from specdiag.text.names import listed

_LIKE = 0.1
"""Cosine from which weights have a common origin: a fine-tune keeps 0.9 and more, weights trained apart stay near 0."""
_SAME = 1e-5
"""Relative difference of norms up to which singular values are taken for equal. A choice: float32 moves them less."""
_ALONG = 1e-3
"""Share of a squared change that may point away from the matrix where the change is called a scale. A choice."""
_LEAST_SCALE = 1e-3
"""Change of a scale from which it is named."""
_ROUNDING = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3}
"""Largest relative error of rounding a normal number to a storage type."""
_TYPICAL = 0.6
"""Share of that error that rounding many values moves a matrix by, at most: 1/sqrt(3) where it is evenly spread."""
_CLEAR = 4.0
"""Times that a scale must lie farther from 1 than rounding moves a matrix. A choice."""
_NAMED = 3
_MOVED = "transposed, reordered or rotated"


def replaced(comparison: Comparison) -> list[ModuleChange]:
    """Find the matrices that have nothing of those before: a cosine below 0.1, or the values of another matrix.

    Args:
        comparison: as `compare` returned it.
    """
    sources = _taken_from(comparison)
    return [m for m in comparison.modules if m.name in sources or _is_unlike(m)]


def replacements(comparison: Comparison) -> Iterator[str]:
    """Say in what way each of them was replaced, those of one way together.

    Args:
        comparison: as `compare` returned it.

    Yields:
        Such as "h.0.q holds the values of h.1.q".
    """
    sources = _taken_from(comparison)
    ways: dict[str, list[str]] = defaultdict(list)
    for m in replaced(comparison):
        if m.name not in sources:
            same = f"same singular values, other directions: {_MOVED}"
            ways[same if _has_same_norms(m.before, m.after) else "other values, cosine below 0.1"].append(m.name)
    pairs = [f"{name} holds the values of {source}" for name, source in sources.items()]
    if pairs:
        yield listed(pairs, _NAMED)
    for way, names in ways.items():
        yield f"{listed(names, _NAMED)}: {way}"


def all_replaced(comparison: Comparison) -> str:
    """Say in what way each matrix was replaced, where all were.

    Args:
        comparison: as `compare` returned it.
    """
    sources, changes = _taken_from(comparison), replaced(comparison)
    n = len(changes)
    if len(sources) == n:
        return f"Each of {n} matrices holds the values of another."
    same = sum(m.name not in sources and _has_same_norms(m.before, m.after) for m in changes)
    if same == n:
        return f"None of {n} matrices resembles its counterpart, and all keep their singular values: {_MOVED}."
    ways = "" if sources or same else ": trained apart, or for long from a random start"
    return f"None of {n} matrices resembles its counterpart{ways}."


def scaled(comparison: Comparison) -> list[tuple[str, float]]:
    """Find the matrices that were multiplied by a number, with the number.

    Args:
        comparison: as `compare` returned it.
    """
    return [(m.name, s) for m in comparison.modules if (s := _scale(m)) is not None]


def storage(changed: Sequence[ModuleChange]) -> str | None:
    """Say that matrices are stored in another type, and whether rounding alone may explain their change.

    Args:
        changed: matrices that are not equal on both sides.
    """
    kinds = {(m.before.storage_dtype, m.after.storage_dtype) for m in changed if _is_stored_anew(m)}
    if not kinds:
        return None
    n = sum(map(_is_stored_anew, changed))
    types = ", ".join(f"{after}, before {before}" for before, after in sorted(kinds))
    end = ""
    if all(m.delta is not None and m.delta.status == "zero" for m in changed):
        end = "; their values are the same"
    elif is_rounding(changed):
        end = "; no change is larger than rounding to it (specdiag verify proves it)"
    return f"{counted(n, 'matrix', 'matrices')} as {types}{end}"


def is_rounding(changed: Iterable[ModuleChange]) -> bool:
    """Tell whether rounding to another storage type may explain every change.

    Args:
        changed: matrices that are not equal on both sides.
    """
    changed = list(changed)
    return bool(changed) and all(_is_stored_anew(m) and _is_within_rounding(m) for m in changed)


def _taken_from(comparison: Comparison) -> dict[str, str]:
    """Give the matrices whose values are, bit for bit, those of another before: of several, the first."""
    owners: dict[str, dict[str, None]] = defaultdict(dict)
    for m in comparison.modules:
        if m.before.digest is not None and m.before.status == "ok":
            owners[m.before.digest][m.name] = None
    return {
        m.name: next(iter(found))
        for m in comparison.modules
        if m.unchanged is False
        and m.after.digest is not None
        and (found := owners.get(m.after.digest))
        and m.name not in found
    }


def _is_unlike(m: ModuleChange) -> bool:
    compared = m.before.status not in ("zero", "failed") and m.after.status not in ("zero", "failed")
    cosine = None if m.delta is None else m.delta.cosine
    return compared and m.unchanged is not True and cosine is not None and abs(cosine) < _LIKE


def _has_same_norms(a: ModuleRecord, b: ModuleRecord) -> bool:
    pairs = ((a.frobenius_norm, b.frobenius_norm), (a.spectral_norm, b.spectral_norm), (a.entropy, b.entropy))
    return all(x is not None and y is not None and isclose(x, y, rel_tol=_SAME) for x, y in pairs)


def _scale(m: ModuleChange) -> float | None:
    d, before, after = m.delta, m.before.frobenius_norm, m.after.frobenius_norm
    if d is None or d.cosine_distance is None or not d.relative_change or not before or after is None:
        return None
    scale, is_turned = after / before, d.cosine_distance > 1
    distance = 2 - d.cosine_distance if is_turned else d.cosine_distance
    # At the s of least squares |B - s A|/|A| is |B|/|A| times the sine: rounding B alone gives it a share of |B|.
    rounding = 0.0 if m.after.storage_dtype == "F32" else _TYPICAL * _ROUNDING.get(m.after.storage_dtype, 0.0)
    residual = 2 * distance * scale**2
    if residual > max(_ALONG * d.relative_change**2 * scale, (rounding * scale) ** 2):
        return None
    if rounding and abs(scale * (1 - distance) - 1) < _CLEAR * rounding:
        return None
    factor = -scale * (1 - distance) if is_turned else scale * (1 - distance)
    return factor if abs(factor - 1) > _LEAST_SCALE else None


def _is_within_rounding(m: ModuleChange) -> bool:
    """Compare a change with rounding to the type after: to a finer one than before, nothing is rounded."""
    if m.delta is None:
        return False
    change = 0.0 if m.delta.status == "zero" else m.delta.relative_change
    return change is not None and change <= _TYPICAL * _ROUNDING.get(m.after.storage_dtype, 0.0)


def _is_stored_anew(m: ModuleChange) -> bool:
    return m.before.storage_dtype != m.after.storage_dtype
