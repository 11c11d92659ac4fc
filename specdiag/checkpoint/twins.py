"""Two copies of a model in one checkpoint: the trained weights and a running average, a teacher, a target network."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from msgspec.structs import replace

from specdiag.architecture.names import one_of_each
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted

_WORDS = re.compile(r"[^_\-]+")
_AVERAGE = frozenset(("ema", "swa", "avg", "average", "averaged", "polyak", "shadow", "target", "momentum"))
"""Words in the names of copies that follow the trained weights."""
_MOCO = "encoder_k"
"""The lagging copy of `encoder_q`. As words of their own q and k are those of attention."""
_RIVALS = (frozenset(("teacher", "student")), frozenset(("generator", "discriminator")))
"""Pairs of words in the names of two models of which the user may mean either."""
_DEEPEST = 4
_Place = tuple[str, ...]


@dataclass(slots=True)
class _Group:
    """The tensors below one prefix.

    Attributes:
        members: places in the list of tensors, by their names below the prefix without dots: some averages have none.
        matrices: shapes of those with two dimensions or more, by the same names.
    """

    members: dict[str, int] = field(default_factory=dict[str, int])
    matrices: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])

    def add(self, rest: str, place: int, shape: tuple[int, ...]) -> None:
        self.members[rest] = place
        if len(shape) > 1:
            self.matrices[rest] = shape

    def covers(self, other: _Group) -> bool:
        """Tell whether it has every matrix of `other`, in the same shape."""
        return bool(other.matrices) and all(self.matrices.get(n) == shape for n, shape in other.matrices.items())


def mark_averages(tensors: Sequence[StoredTensor], where: str) -> tuple[list[StoredTensor], list[str]]:
    """Leave out the running average of a model that lies beside the model itself, and refuse two rivals.

    Args:
        tensors: all tensors of a checkpoint.
        where: the checkpoint, for messages.

    Returns:
        The tensors, those of averages with the reason why they are no matrices, and notes.

    Raises:
        SourceError: they are two models, such as a teacher and a student, or a generator and a discriminator.
    """
    parents = _siblings(tensors)
    for parent, groups in parents.items():
        _refuse_rivals(groups, parent, where)
    marked, notes = list(tensors), list[str]()
    for parent, groups in parents.items():
        trained = _Trained.of(groups, parent, tensors)
        for name, average in groups.items():
            twin = _twin(average, trained, parent) if is_average(name) else None
            if twin is not None:
                description = f"copy of the weights under '{twin}'" if twin else "copy of the other weights"
                for place in average.members.values():
                    marked[place] = replace(marked[place], reason=f"averaged or lagging {description}")
                n = counted(len(average.members), "tensor")
                notes.append(f"Left out {n} under '{_path(parent, name)}', a {description}.")
    return marked, notes


def _siblings(tensors: Sequence[StoredTensor]) -> dict[_Place, dict[str, _Group]]:
    """Group the tensors below each parent that has a child with a telling name, such as `ema`.

    Parents within numbered layers are left out.
    """
    parents = {place for name in one_of_each(t.name for t in tensors) for place in _telling(name.split("."))}
    groups_of: dict[_Place, dict[str, _Group]] = {}
    for place, tensor in enumerate(tensors if parents else ()):
        parts = tensor.name.split(".")
        for depth in range(min(_DEEPEST, len(parts) - 1)):
            parent = tuple(parts[:depth])
            if parent in parents:
                groups = groups_of.setdefault(parent, {})
                groups.setdefault(parts[depth], _Group()).add("".join(parts[depth + 1 :]), place, tensor.shape)
    return groups_of


def _telling(parts: Sequence[str]) -> Iterator[_Place]:
    for depth, part in enumerate(parts[: min(_DEEPEST, len(parts) - 1)]):
        if part.isdecimal():
            return
        if _tells(part):
            yield tuple(parts[:depth])


@lru_cache(1024)  # layers repeat a few words
def _tells(part: str) -> bool:
    return is_average(part) or any(_words(part) & rivals for rivals in _RIVALS)


@dataclass(frozen=True, slots=True)
class _Trained:
    """The groups below a parent that are no averages.

    Attributes:
        groups: by name.
        holding: the names of those that hold a matrix of a name and shape.
        rest: all of them as one, under their names below the parent.
    """

    groups: dict[str, _Group]
    holding: dict[tuple[str, tuple[int, ...]], list[str]]
    rest: _Group

    @classmethod
    def of(cls, groups: Mapping[str, _Group], parent: _Place, tensors: Sequence[StoredTensor]) -> _Trained:
        """Collect the groups below a parent that are no averages."""
        trained = cls(
            {name: group for name, group in groups.items() if not is_average(name)}, defaultdict(list), _Group()
        )
        for name, group in trained.groups.items():
            for matrix in group.matrices.items():
                trained.holding[matrix].append(name)
            for place in group.members.values():
                below = tensors[place].name.split(".")[len(parent) :]
                trained.rest.add("".join(below), place, tensors[place].shape)
        return trained

    def covering(self, average: _Group) -> str | None:
        """Find the first group that covers an average. Only groups that hold its rarest matrix are looked at."""
        holders = (self.holding.get(matrix, []) for matrix in average.matrices.items())
        return next((name for name in min(holders, key=len, default=[]) if self.groups[name].covers(average)), None)


def _twin(average: _Group, trained: _Trained, parent: _Place) -> str | None:
    """Find the prefix of the model that a group is an average of: '' for all the rest, None where there is none."""
    other = trained.covering(average)
    if other is not None:
        return _path(parent, other)
    return ".".join(parent) if trained.rest.covers(average) else None


def _refuse_rivals(groups: Mapping[str, _Group], parent: _Place, where: str) -> None:
    by_words: dict[frozenset[str], list[str]] = defaultdict(list)
    for name in groups:
        by_words[_words(name)].append(name)
    for words, ones in by_words.items():
        for other in (other for pair in _RIVALS if len(words & pair) == 1 for other in by_words.get(words ^ pair, ())):
            one = next((one for one in ones if one < other and _are_models(groups[one], groups[other])), None)
            if one is not None:
                raise SourceError(
                    f"{where} holds two models, under '{_path(parent, one)}' and '{_path(parent, other)}': pick one, "
                    f"such as with part={_path(parent, one)}"
                )


def _are_models(one: _Group, other: _Group) -> bool:
    """Tell whether two groups are models of their own, and not single layers with such names."""
    return one.covers(other) or min(len(one.matrices), len(other.matrices)) > 1


def is_average(name: str) -> bool:
    """Tell by its name a copy that follows the trained weights, such as `ema` or `critic_target`."""
    return bool(_words(name) & _AVERAGE) or name.lower() == _MOCO


def _words(name: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(name.lower()))


def _path(parent: _Place, name: str) -> str:
    return ".".join((*parent, name))
