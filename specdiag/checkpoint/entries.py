"""The entries of a dictionary in a torch file, each with the tensors below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.nested import Visits, Walk, spelled
from specdiag.checkpoint.torch_tensors import tensor_shape
from specdiag.text.counts import counted
from specdiag.text.names import listed

_LISTED = 8


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A key of a dictionary, with the tensors below it.

    Attributes:
        key: of the dictionary.
        value: whatever lies there.
        walk: the tensors below it.
    """

    key: object
    value: object
    walk: Walk

    @property
    def name(self) -> str:
        """Its key as text."""
        return spelled(self.key)

    @property
    def loose(self) -> bool:
        """True for a tensor."""
        return isinstance(self.value, torch.Tensor)

    @property
    def holder(self) -> bool:
        """True for what has tensors below it."""
        return bool(self.walk.tensors) and not self.loose


def list_entries(content: Mapping[object, object], label: str) -> list[Entry]:
    """List the entries of a dictionary, with the tensors below each.

    Args:
        content: names and values.
        label: the file, for messages.

    Raises:
        SourceError: two tensors below an entry get one name, or dictionaries share too much.
    """
    visits, nothing = Visits(), Walk(label)

    def walked(value: object) -> Walk:
        walk = Walk(label, visits).enter(value)
        return walk if walk.tensors or walk.left else nothing

    return [Entry(key, value, walked(value)) for key, value in content.items()]


def is_matrix(tensor: torch.Tensor) -> bool:
    """Tell whether two of its dimensions are larger than 1."""
    return tensor.dim() > 1 and sum(size > 1 for size in tensor_shape(tensor)) > 1


def tensors_first(entries: Sequence[Entry]) -> list[Entry]:
    """Sort entries: first those with tensors."""
    return sorted(entries, key=lambda entry: not entry.walk.tensors)


def describe_entry(entry: Entry) -> str:
    """Describe an entry for a sentence."""
    name, n_tensors = brief(entry.name), len(entry.walk.tensors)
    if isinstance(entry.value, torch.Tensor):
        shape = "x".join(map(str, tensor_shape(entry.value)))
        return f"{name} (1 tensor of {shape or 'one value'})"
    if n_tensors:
        return f"{counted(n_tensors, 'tensor')} under '{name}'"
    return f"{name} ({entry.walk.left[0][1]})" if entry.walk.left else name


def describe_contents(entries: Sequence[Entry]) -> str:
    """Describe entries for a sentence, the first few by name."""
    return listed(map(describe_entry, tensors_first(entries)), _LISTED) or "none"
