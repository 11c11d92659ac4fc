"""Experts and layers that are so few that none is the usual one: what one of them lacks, or has in another shape."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from specdiag.auditing.sizes import whole_experts
from specdiag.auditing.stacks import Layer, Member, is_expert
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_MAJORITY = 3
"""Layers of one kind that make it the usual one."""
_EXPERT = re.compile(r"(?<=experts\.)[0-9]{1,6}(?=\.|$)")
_NEEDED = {
    "q": {"k", "v", "o"},
    "o": {"q", "k", "v"},
    "up": {"gate", "down"},
    "gate": {"up", "down"},
    "down": {"gate", "up"},
}
"""Roles that no block leaves out which has these others as matrices of their own. Keys and values may be shared."""
_GAIN_OR_BIAS = re.compile(r"(.*[._])?(\w*norm\w*|ln\w*)\.(weight|bias|scale|gamma)")


def lacking(subject: Subject) -> Iterator[Observation]:
    """Find matrices that one expert lacks and the others have, and those that a block of two layers cannot do without.

    Args:
        subject: a whole checkpoint.

    Yields:
        `missing_matrix` for each.
    """
    skipped = {s.name for s in subject.report.skipped}
    n_whole = whole_experts(subject.config)
    for stem, layers in subject.stacks.items():
        for number, layer in sorted(layers.items()):
            yield from (_missing(f"{stem}{number}.{name}") for name in _of_experts(layer, n_whole))
        for number, member, _ in () if _is_usual(layers) else _differing(layers):
            r = _owner(layers, member)
            others = {
                o.role for o in layers[number].matrices.values() if o.family == r.family and not o.cross_attention
            }
            name = f"{stem}{number}.{member[0]}"
            if not is_expert(*member) and _NEEDED.get(r.role, {""}) <= others and name not in skipped:
                yield _missing(name if member[1] is None else f"{name}[{member[1]}]")


def differing(subject: Subject) -> Iterator[Observation]:
    """Find tensors that one layer lacks or has in another shape, where no majority of layers tells which is right.

    Args:
        subject: a whole checkpoint.

    Yields:
        `layers_differ` for each.
    """
    named = {o.module for o in lacking(subject)}
    odd = {key for layers in subject.stacks.values() for layer in layers.values() for key, _ in odd_experts(layer)}
    for stem, layers in subject.stacks.items():
        if _is_usual(layers):
            continue
        for number, member, other in _differing(layers):
            name = f"{stem}{number}.{member[0]}"
            if name not in named and _owner(layers, member).role != "conv":  # stages of convolutions are unlike
                yield Observation("layers_differ", name, f"not there, and layer {other} has it")
        yield from _small(stem, layers)
        yield from (found for found in _shapes(layers) if found.module not in odd)


def odd_experts(layer: Layer) -> Iterator[tuple[str, str]]:
    """Find matrices of an expert whose shape is not that of most experts of its layer.

    Args:
        layer: with its experts.

    Yields:
        The key of the matrix, and the two shapes in words.
    """
    like: dict[Member, list[ModuleRecord]] = defaultdict(list)
    for (name, part), r in layer.matrices.items():
        if _EXPERT.search(name) is not None:
            like[_EXPERT.sub("#", name), part].append(r)
    for records in like.values():
        (rows, cols), n = Counter((r.rows, r.cols) for r in records).most_common(1)[0]
        if n > len(records) / 2:
            odd = (r for r in records if (r.rows, r.cols) != (rows, cols))
            yield from ((r.key, f"{r.rows}x{r.cols}, not {rows}x{cols} as in the other experts") for r in odd)


def _missing(name: str) -> Observation:
    return Observation("missing_matrix", name, "not there")


def _of_experts(layer: Layer, n_whole: int | None) -> Iterator[str]:
    """Name the matrices that an expert lacks and most of the others of its layer have.

    Those after the whole ones may lack some.
    """
    held: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, _ in layer.matrices:
        if (match := _EXPERT.search(name)) is not None:
            held[name[: match.start()]][match[0]].add(name[match.end() :])
    for place, experts in held.items():
        counts = Counter(map(frozenset, experts.values()))
        usual = max(counts, key=lambda kind: (counts[kind], len(kind)))
        for expert, members in sorted(experts.items()):
            if members < usual and (n_whole is None or int(expert) < n_whole):
                yield from (f"{place}{expert}{rest}" for rest in sorted(usual - members))


def _is_usual(layers: Mapping[int, Layer]) -> bool:
    """Tell whether enough layers hold the same matrices to be the usual ones."""
    return Counter(frozenset(layer.matrices) for layer in layers.values()).most_common(1)[0][1] >= _MAJORITY


def _differing(layers: Mapping[int, Layer]) -> Iterator[tuple[int, Member, int]]:
    """Find layers that hold what another one holds, but for one matrix: the layer, the matrix, the other layer."""
    for number, layer in sorted(layers.items()):
        for other, richer in sorted(layers.items()):
            lost = richer.matrices.keys() - layer.matrices.keys()
            if len(lost) == 1 and len(richer.matrices) == len(layer.matrices) + 1:
                yield number, lost.pop(), other
                break


def _owner(layers: Mapping[int, Layer], member: Member) -> ModuleRecord:
    return next(layer.matrices[member] for layer in layers.values() if member in layer.matrices)


def _small(stem: str, layers: Mapping[int, Layer]) -> Iterator[Observation]:
    """Find a norm that one layer lacks and another one of the same matrices has."""
    for number, layer in sorted(layers.items()):
        for other, richer in sorted(layers.items()):
            lost = {n for n in richer.small.keys() - layer.small.keys() if _GAIN_OR_BIAS.fullmatch(n)}
            is_like = richer.matrices.keys() == layer.matrices.keys() and layer.small.keys() < richer.small.keys()
            if is_like and len({n.rpartition(".")[0] for n in lost}) == 1:
                yield from (
                    Observation("layers_differ", f"{stem}{number}.{n}", f"not there, and layer {other} has it")
                    for n in sorted(lost)
                )
                break


def _shapes(layers: Mapping[int, Layer]) -> Iterator[Observation]:
    """Find the one matrix whose shape differs from that of the layer before, which holds the same matrices."""
    numbers = sorted(layers)
    for number, other in zip(numbers[1:], numbers, strict=False):
        here, there = layers[number].matrices, layers[other].matrices
        if here.keys() != there.keys():
            continue
        changed = [m for m, r in here.items() if (r.rows, r.cols) != (there[m].rows, there[m].cols)]
        if len(changed) == 1:
            r, o = here[changed[0]], there[changed[0]]
            yield Observation("layers_differ", r.key, f"{r.rows}x{r.cols}, and {o.rows}x{o.cols} in layer {other}")
