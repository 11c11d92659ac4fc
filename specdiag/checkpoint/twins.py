"""Two copies of one model under one roof: a running average, a teacher, a target network beside what is trained."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

_WORDS = re.compile(r"[^_\-]+")
_AVERAGE = frozenset(("ema", "swa", "avg", "average", "averaged", "polyak", "shadow", "target", "momentum"))
"""Words in the names of copies that follow the trained weights."""
_MOCO = "encoder_k"
"""The lagging copy of `encoder_q`. As words of their own q and k are those of attention."""
_RIVALS = (frozenset(("teacher", "student")), frozenset(("generator", "discriminator")))
"""Words that tell two models apart of which either may be asked for."""
_DEEPEST = 4
_Place = tuple[str, ...]


@dataclass(slots=True)
class _Group:
    """The tensors below one prefix.

    Attributes:
        members: their names below it, without dots (some averages are saved so), and their places in the list.
        matrices: of those with two dimensions or more, the shapes.
    """

    members: dict[str, int] = field(default_factory=dict[str, int])
    matrices: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def add(self, rest: str, place: int, shape: tuple[int, ...]) -> None:
        self.members[rest] = place
        if len(shape) > 1:
            self.matrices[rest] = shape

    def covers(self, other: _Group) -> bool:
        """Whether it has every matrix of `other`, in the same shape."""
        return bool(other.matrices) and all(self.matrices.get(n) == shape for n, shape in other.matrices.items())


def mark_averages(tensors: Sequence[StoredTensor], where: str) -> tuple[list[StoredTensor], list[str]]:
    """Leave out the running average of a model that lies beside the model itself, and refuse two equal rivals.

    Args:
        tensors: all tensors of a checkpoint.
        where: the checkpoint, for messages.

    Returns:
        The tensors, those of averages with the reason why they are no matrices, and notes.

    Raises:
        SourceError: they are two models of one structure, such as a teacher and a student.
    """
    parents = _siblings(tensors)
    for parent, groups in parents.items():
        _refuse_rivals(groups, parent, where)
    marked, notes = list(tensors), list[str]()
    for parent, groups in parents.items():
        for name, average in groups.items():
            twin = _twin(name, average, groups, parent, tensors)
            if twin is not None:
                said = f"copy of the weights under '{twin}'" if twin else "copy of the other weights"
                for place in average.members.values():
                    marked[place] = replace(marked[place], reason=f"averaged or lagging {said}")
                notes.append(f"Left out {len(average.members)} tensors under '{_path(parent, name)}', a {said}.")
    return marked, notes


def _siblings(tensors: Sequence[StoredTensor]) -> dict[_Place, dict[str, _Group]]:
    """The groups of tensors below each parent where one has a telling name, but for parents in numbered layers."""
    split = [tensor.name.split(".") for tensor in tensors]
    parents = {place for parts in split for place in _telling(parts)}
    found: dict[_Place, dict[str, _Group]] = {}
    for place, (tensor, parts) in enumerate(zip(tensors, split, strict=True)):
        for depth in range(min(_DEEPEST, len(parts) - 1)):
            parent = tuple(parts[:depth])
            if parent in parents:
                groups = found.setdefault(parent, {})
                groups.setdefault(parts[depth], _Group()).add("".join(parts[depth + 1 :]), place, tensor.shape)
    return found


def _telling(parts: Sequence[str]) -> Iterator[_Place]:
    for depth, part in enumerate(parts[: min(_DEEPEST, len(parts) - 1)]):
        if part.isdecimal():
            return
        if _lags(part) or any(_words(part) & rivals for rivals in _RIVALS):
            yield tuple(parts[:depth])


def _twin(
    name: str, average: _Group, groups: Mapping[str, _Group], parent: _Place, tensors: Sequence[StoredTensor]
) -> str | None:
    """The prefix of the model that a group is an average of; empty where that is all the rest; None: of none."""
    if not _lags(name):
        return None
    for other, group in groups.items():
        if not _lags(other) and group.covers(average):
            return _path(parent, other)
    rest = _Group()
    for other, group in groups.items():
        if not _lags(other):
            for place in group.members.values():
                below = tensors[place].name.split(".")[len(parent) :]
                rest.add("".join(below), place, tensors[place].shape)
    return ".".join(parent) if rest.covers(average) else None


def _refuse_rivals(groups: Mapping[str, _Group], parent: _Place, where: str) -> None:
    named = [(name, _words(name)) for name in groups]
    for one, words in named:
        for other, others in named:
            if one < other and _rivals(words, others) and groups[one].covers(groups[other]):
                raise SourceError(
                    f"{where} holds two models of one structure, under '{_path(parent, one)}' and "
                    f"'{_path(parent, other)}': save the one to analyse alone"
                )


def _rivals(words: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two names differ in nothing but a pair of telling words."""
    return any(words ^ others == pair and len(words & pair) == 1 for pair in _RIVALS)


def _lags(name: str) -> bool:
    return bool(_words(name) & _AVERAGE) or name.lower() == _MOCO


def _words(name: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(name.lower()))


def _path(parent: _Place, name: str) -> str:
    return ".".join((*parent, name))
