"""How often the tensors of one file or model show the same bytes: a small file may claim any number of large views."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

_ALWAYS = 8 << 20
"""Bytes that may be shown again however little is stored: they take only seconds to measure."""


@dataclass(slots=True)
class Repeats:
    """The bytes that views show beyond those that are stored.

    As many bytes may be shown again as are stored, enough for a transposed or fused twin over the same memory.
    """

    stored: dict[int, int] = field(default_factory=dict[int, int])
    shown: dict[int, int] = field(default_factory=dict[int, int])
    seen: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])
    again: int = 0
    total: int = 0

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count the stored bytes behind tensors, shared memory once. Call it before `too_many`.

        Args:
            tensors: every tensor of the file or model that can be read.
        """
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.stored[storage.data_ptr()] = storage.nbytes()
        self.total = sum(self.stored.values())

    def too_many(self, tensor: torch.Tensor) -> str | None:
        """Say why a view must not be read: the tensors before it have shown its bytes too often already.

        Args:
            tensor: one of those given to `hold`, whose storage is as long as its strides reach.

        Returns:
            The reason; None where the view may be read, which is then counted.
        """
        place = tensor.untyped_storage().data_ptr()
        view = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if view in self.seen:
            return None
        n_stored, n_shown = self.stored[place], self.shown.get(place, 0)
        again = max(0, n_shown + tensor.nbytes - n_stored) - max(0, n_shown - n_stored)
        if again and self.again + again > max(_ALWAYS, self.total):
            beside_others = " beside other views of them" if tensor.nbytes <= n_stored else ""
            return f"a view that repeats {n_stored} stored bytes to {tensor.nbytes}{beside_others}"
        self.seen.add(view)
        self.shown[place] = n_shown + tensor.nbytes
        self.again += again
        return None
