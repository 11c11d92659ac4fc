"""How often the tensors of one file or model show the same bytes: a small file may claim any number of large views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

_ALWAYS = 8 << 20
"""Bytes that may be shown again however little is stored: what takes seconds to measure."""


@dataclass(slots=True)
class Repeats:
    """The bytes that views show beyond those that are stored.

    As many may be shown again as are stored: then a model and its transposed or fused twin over the same memory fit.
    """

    stored: dict[int, int] = field(default_factory=dict[int, int])
    shown: dict[int, int] = field(default_factory=dict[int, int])
    seen: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])
    again: int = 0
    total: int = 0

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the memory behind tensors, shared memory once."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.stored[storage.data_ptr()] = storage.nbytes()
        self.total = sum(self.stored.values())

    def too_many(self, tensor: torch.Tensor) -> str | None:
        """Why a view is not to be read: what it shows was shown too often. None, and it is counted, where it may be.

        Args:
            tensor: one whose storage is as long as its strides reach, of those that are held.
        """
        place = tensor.untyped_storage().data_ptr()
        view = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if view in self.seen:
            return None
        held, shown = self.stored[place], self.shown.get(place, 0)
        again = max(0, shown + tensor.nbytes - held) - max(0, shown - held)
        if again and self.again + again > max(_ALWAYS, self.total):
            others = " beside other views of them" if tensor.nbytes <= held else ""
            return f"a view that repeats {held} stored bytes to {tensor.nbytes}{others}"
        self.seen.add(view)
        self.shown[place] = shown + tensor.nbytes
        self.again += again
        return None
