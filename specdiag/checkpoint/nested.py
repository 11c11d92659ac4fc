"""A walk through the nested dictionaries and lists of a torch file that loses no tensor and comes to an end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import cast

import torch

from specdiag.checkpoint.containers import find_beside
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.loose_tensors import loose_tensors, parts_of
from specdiag.checkpoint.modules import module_entries
from specdiag.checkpoint.training_state import training_state
from specdiag.errors import SourceError
from specdiag.text.counts import counted

_DEPTH = 64
_REPEATED = 100_000
_ENTERED = 1_000_000
_SCALARS = frozenset((type(None), bool, int, float, str, bytes))
_DIGITS = 10**100
_CHARACTERS = 1 << 26
"""Characters of all names together, of which a file may repeat a long key in each."""


@dataclass(slots=True)
class Visits:
    """Containers that were entered, and the entries of those that were entered again under another name.

    Attributes of modules are gone through once, in all walks together.
    """

    entered: set[int] = field(default_factory=set[int])
    repeated: int = 0
    attributes: set[int] = field(default_factory=set[int])


class Walk:
    """The tensors below one value, under the names of their keys joined with dots.

    Attributes:
        tensors: names and tensors, in stored order.
        left: path and kind of what was not entered, such as an optimizer's state.
    """

    def __init__(self, label: str, visits: Visits | None = None) -> None:
        """Begin with nothing.

        Args:
            label: the file, for messages.
            visits: shared by walks that are limited together.
        """
        self.tensors: dict[str, torch.Tensor] = {}
        self.left: list[tuple[str, str]] = []
        self._label = label
        self._visits = visits or Visits()
        self._paths: dict[str, tuple[object, ...]] = {}
        self._open: set[int] = set()
        self._n_characters = 0
        self._within_module = False
        self._listed: set[int] = set()

    def enter(self, value: object, path: tuple[object, ...] = ()) -> Walk:
        """Add the tensors below `value`.

        Args:
            value: whatever the file holds there.
            path: the keys that lead to it.

        Returns:
            This walk.

        Raises:
            SourceError: two tensors get one name, or dictionaries are nested too deeply or share too much.
        """
        if isinstance(value, torch.Tensor):
            self._add(path, value)
        elif (entries := _entries(value)) is not None:
            if id(value) not in self._open:
                self._descend(value, entries, path)
        elif isinstance(value, Inert):
            self._name(path, f"an object of {value.kind}", [value.args, value.state])
        elif isinstance(value, AbstractSet):
            self._name(path, "a set", list(cast("AbstractSet[object]", value)))
        return self

    def _descend(self, value: object, entries: Iterable[tuple[object, object]], path: tuple[object, ...]) -> None:
        kind = training_state(value)
        if kind is not None:
            self.left.append((joined(path), kind))
            return
        self._count(value, path)
        self._open.add(id(value))
        outermost = isinstance(value, Inert) and not self._within_module and module_entries(value) is not None
        self._within_module |= outermost
        beside = find_beside(cast("Mapping[object, object]", value)) if isinstance(value, Mapping) else {}
        for key, inner in entries:
            if key in beside and training_state(inner) is None:
                self._name((*path, key), beside[key], [inner], joint=", ")
            elif type(inner) not in _SCALARS:
                self.enter(inner, (*path, key))
        self._open.discard(id(value))
        if outermost:
            self._within_module = False
            for keys, kind, n in loose_tensors(cast("Inert", value), path, self._listed, self._visits.attributes):
                self.left.append((self._joined(keys), f"{kind}, {counted(n, 'tensor')}"))

    def _count(self, value: object, path: tuple[object, ...]) -> None:
        if len(path) > _DEPTH:
            raise SourceError(f"'{self._label}' nests dictionaries more than {_DEPTH} deep: save the state_dict alone")
        if id(value) in self._visits.entered:
            self._visits.repeated += _length(value)
        if self._visits.repeated > _REPEATED:
            raise SourceError(
                f"'{self._label}' holds the same dictionaries under more than {_REPEATED} names: "
                "save the state_dict alone"
            )
        self._visits.entered.add(id(value))
        if len(self._visits.entered) > _ENTERED:
            raise SourceError(
                f"'{self._label}' holds more than {_ENTERED} lists and dictionaries: save the state_dict alone"
            )

    def _add(self, path: tuple[object, ...], tensor: torch.Tensor) -> None:
        name = self._joined(path)
        if name in self.tensors:
            first, second = (" > ".join(_quoted(key) for key in keys) for keys in (self._paths[name], path))
            raise SourceError(
                f"'{self._label}' holds two tensors of the name '{brief(name)}', under the keys {first} and {second}: "
                "rename one"
            )
        self.tensors[name] = tensor
        self._listed.add(id(tensor))
        self._paths[name] = path

    def _joined(self, path: tuple[object, ...]) -> str:
        name = joined(path)
        self._n_characters += len(name)
        if self._n_characters > _CHARACTERS:
            raise SourceError(f"'{self._label}' holds keys too long for names, such as '{brief(name)}'")
        return name

    def _name(self, path: tuple[object, ...], description: str, parts: Sequence[object], joint: str = " with ") -> None:
        """Note what is left out, if it holds tensors."""
        n_tensors = count_tensors(parts)
        if n_tensors:
            self.left.append((joined(path), f"{description}{joint}{counted(n_tensors, 'tensor')}"))


def count_tensors(value: object) -> int:
    """Count the tensors below a value, those of inert objects too. Each container is counted once.

    Args:
        value: anything that a torch file holds.
    """
    return sum(isinstance(inner, torch.Tensor) for inner in all_values(value))


def all_values(value: object) -> Iterator[object]:
    """Go through everything below a value, within inert objects too. Each container is entered once.

    Args:
        value: anything that a torch file holds.

    Yields:
        The value, and all below it.
    """
    visited, waiting = set[int](), [value]
    while waiting:
        inner = waiting.pop()
        yield inner
        if not isinstance(inner, torch.Tensor) and id(inner) not in visited:
            visited.add(id(inner))
            waiting.extend(parts_of(inner))


def joined(path: Iterable[object]) -> str:
    """Join the keys that lead to a tensor to its name, with dots between them."""
    return ".".join(spelled(key) for key in path)


def spelled(key: object) -> str:
    """Write a key as text: bytes of old files are decoded, lone surrogates are escaped."""
    if isinstance(key, str) and key.isascii():
        return key
    if isinstance(key, bytes):
        return key.decode("utf-8", "backslashreplace")
    return (key if isinstance(key, str) else _written(key)).encode("utf-8", "backslashreplace").decode()


def _quoted(key: object) -> str:
    """Write a key for a message, in quotes where it is text."""
    return brief(repr(key) if isinstance(key, (str, bytes)) else _written(key))


def _written(key: object) -> str:
    """Write as `repr` does, also integers of some thousand digits, which Python refuses to write.

    An inert object is written by its kind alone: what it holds may be written in no time.
    """
    if isinstance(key, Inert):
        return f"<{key.kind}>"
    if isinstance(key, (tuple, frozenset)):
        return f"({', '.join(_written(part) for part in cast('Iterable[object]', key))})"
    if isinstance(key, int) and abs(key) > _DIGITS:
        return f"{key:#x}"
    try:
        return repr(key)
    except (ValueError, RecursionError, RuntimeError):
        return f"<{type(key).__name__}>"


def _entries(value: object) -> Iterable[tuple[object, object]] | None:
    """List keys and values of a container; None for anything else."""
    if isinstance(value, Mapping):
        return cast("Mapping[object, object]", value).items()
    if isinstance(value, (list, tuple)):
        return enumerate(cast("Sequence[object]", value))
    if not isinstance(value, Inert):
        return None
    if value.items or value.elements:
        return value.items or enumerate(value.elements)
    return module_entries(value)


def _length(value: object) -> int:
    if isinstance(value, Inert):
        return len(value.items or value.elements or module_entries(value) or ())
    return len(cast("Sized", value))
