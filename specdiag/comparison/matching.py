"""Pairs of names before and after: equal, or equal once one prefix is taken off or replaced.

The layer `encoder.layer.0` of a plain model is `bert.encoder.layer.0` in a model with a head, and `model.layers.0` of a
language model is `model.language_model.layers.0` in one that also sees. Nothing is matched where two fit equally well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from specdiag.architecture.names import is_index


@dataclass(frozen=True, slots=True)
class Matching:
    """Names of two sides, paired.

    Attributes:
        pairs: (name before, name after, the shorter of the two), in the order of the names before.
        prefix_before: what was taken off names before.
        prefix_after: what was taken off names after; at most one of the two is not empty.
        replaced: a path in names before and the one that stands for it after, or None.
        ambiguous: prefixes of which none fits more than twice as many names as every other; none of them was taken off.
    """

    pairs: tuple[tuple[str, str, str], ...]
    prefix_before: str = ""
    prefix_after: str = ""
    replaced: tuple[str, str] | None = None
    ambiguous: tuple[str, ...] = ()


def match(a: Collection[str], b: Collection[str], fit: Callable[[str, str], bool] | None = None) -> Matching:
    """Pair the names of two checkpoints.

    Args:
        a: unique names.
        b: unique names.
        fit: whether a tensor before and one after may be the same, by shape; None where only names are known.

    Returns:
        The pairs, and what was taken off the names of one side or replaced in them.
    """
    in_b = set(b)
    found = _without_prefix(a, b, {name: name for name in a if name in in_b})
    if found.ambiguous:
        return found
    before, after = {pair[0] for pair in found.pairs}, {pair[1] for pair in found.pairs}
    rest_a, rest_b = [n for n in a if n not in before], [n for n in b if n not in after]
    paths = _replaced(rest_a, rest_b, fit or (lambda _, __: True))
    if paths is None:
        return found
    old, new = (f"{path}." if path else "" for path in paths)
    free = set(rest_b)
    moved = {n: new + n.removeprefix(old) for n in rest_a if n.startswith(old) and new + n.removeprefix(old) in free}
    renamed = {pair[0]: pair[1] for pair in found.pairs} | moved
    return replace(found, pairs=_in_order(a, renamed), replaced=paths)


def _without_prefix(a: Collection[str], b: Collection[str], equal: dict[str, str]) -> Matching:
    """Pair names that are equal, or become so without one prefix."""
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


def _replaced(a: Collection[str], b: Collection[str], fit: Callable[[str, str], bool]) -> tuple[str, str] | None:
    """Find the paths above two stacks of blocks that hold the same, where no other stack holds half as much of it."""
    stacks_a, stacks_b = _stacks(a), _stacks(b)
    counts = Counter[tuple[str, str]]()
    for old, inside in stacks_a.items():
        for new, others in stacks_b.items():
            shared = inside.keys() & others.keys()
            if old.rpartition(".")[2] == new.rpartition(".")[2] and shared:
                counts[old, new] += sum(fit(inside[rest], others[rest]) for rest in shared)
    ranked = counts.most_common(2)
    if not ranked or ranked[0][1] == 0 or (len(ranked) > 1 and 2 * ranked[1][1] >= ranked[0][1]):
        return None
    old, new = (path.split(".") for path in ranked[0][0])
    while old and new and old[-1] == new[-1]:
        old.pop()
        new.pop()
    return ".".join(old), ".".join(new)


def _stacks(names: Collection[str]) -> dict[str, dict[str, str]]:
    """Group names by the path of their stack of blocks, each by what follows in it."""
    stacks: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        segments = name.split(".")
        place = next((i for i, segment in enumerate(segments) if i and is_index(segment)), None)
        if place is not None:
            stacks[".".join(segments[:place])][".".join(segments[place:])] = name
    return stacks


def _prefixes(longer: Collection[str], shorter: Collection[str]) -> Counter[str]:
    """Count for each prefix how many names of `shorter` it explains.

    Prefixes are dotted beginnings of `longer` before one of these names.
    """
    names = set(shorter)
    return Counter(name[: i + 1] for name in longer for i, c in enumerate(name) if c == "." and name[i + 1 :] in names)


def _in_order(a: Collection[str], renamed: dict[str, str]) -> tuple[tuple[str, str, str], ...]:
    return tuple((name, renamed[name], min(name, renamed[name], key=len)) for name in a if name in renamed)
