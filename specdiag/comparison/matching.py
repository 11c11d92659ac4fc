"""Pairs of names before and after: equal, or equal once one prefix is taken off the names of one side.

The layer `encoder.layer.0` of a plain model is `bert.encoder.layer.0` in a model with a head. Nothing is matched where
two prefixes fit equally well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matching:
    """Names of two sides, paired.

    Attributes:
        pairs: (name before, name after, the name without prefix), in the order of the names before.
        prefix_before: what was taken off names before.
        prefix_after: what was taken off names after; at most one of the two is not empty.
        ambiguous: prefixes of which none fits more than twice as many names as every other; none of them was taken off.
    """

    pairs: tuple[tuple[str, str, str], ...]
    prefix_before: str = ""
    prefix_after: str = ""
    ambiguous: tuple[str, ...] = ()


def match(a: Collection[str], b: Collection[str]) -> Matching:
    """Pair the names of two checkpoints.

    Args:
        a: unique names.
        b: unique names.

    Returns:
        The pairs, and the prefix that was taken off the names of one side.
    """
    in_b = set(b)
    equal = {name: name for name in a if name in in_b}
    rest_a, rest_b = [n for n in a if n not in equal], [n for n in b if n not in equal]
    counts = Counter({("a", p): n for p, n in _prefixes(rest_a, rest_b).items()})
    counts += Counter({("b", p): n for p, n in _prefixes(rest_b, rest_a).items()})
    best = max(counts.values(), default=0)
    leading = [prefixed for prefixed, n in counts.items() if 2 * n >= best]
    if len(leading) > 1:
        return Matching(_in_order(a, equal), ambiguous=tuple(sorted(prefix for _, prefix in leading)))
    if not leading:
        return Matching(_in_order(a, equal))
    side, prefix = leading[0]
    free_a, free_b = set(rest_a), set(rest_b)
    if side == "a":
        renamed = {
            n: n.removeprefix(prefix) for n in rest_a if n.startswith(prefix) and n.removeprefix(prefix) in free_b
        }
        return Matching(_in_order(a, equal | renamed), prefix_before=prefix)
    renamed = {n.removeprefix(prefix): n for n in rest_b if n.startswith(prefix) and n.removeprefix(prefix) in free_a}
    return Matching(_in_order(a, equal | renamed), prefix_after=prefix)


def _prefixes(longer: Collection[str], shorter: Collection[str]) -> Counter[str]:
    """Count for each prefix how many names of `shorter` it explains.

    Prefixes are dotted beginnings of `longer` before one of these names.
    """
    names = set(shorter)
    return Counter(name[: i + 1] for name in longer for i, c in enumerate(name) if c == "." and name[i + 1 :] in names)


def _in_order(a: Collection[str], renamed: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    return tuple((name, renamed[name], min(name, renamed[name], key=len)) for name in a if name in renamed)
