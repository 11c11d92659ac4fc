"""A torch file in memory: its tensors point into the map, and their values are read from the file.

Touching a mapped page that the file no longer has ends the process. Reading it raises an error that can be reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from specdiag.checkpoint.checksums import Checksums
from specdiag.checkpoint.plain_values import read_range


@dataclass(frozen=True, slots=True)
class FileMap:
    """A map of a whole file.

    Attributes:
        path: the file.
        begin: address of its first byte.
        n_bytes: its size when it was mapped.
        checksums: of what it holds; none of the legacy format.
    """

    path: Path
    begin: int
    n_bytes: int
    checksums: Checksums

    def fetch(self, view: torch.Tensor, name: str, label: str) -> torch.Tensor:
        """Fetch the values of a tensor, read from the file where it points into the map; any other tensor as it is.

        Args:
            view: a tensor, of any strides.
            name: its name in messages.
            label: the file's name in messages.

        Returns:
            A tensor of the same shape and strides, in memory of its own.

        Raises:
            SourceError: the file is gone, was cut short since it was mapped, or its checksum says that it is damaged.
        """
        offset = view.data_ptr() - self.begin
        if not view.numel() or not 0 <= offset < self.n_bytes:
            return view
        reach = sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True)) + 1
        stored_bytes = np.empty(reach * view.element_size(), np.uint8)
        read_range(self.path, label, offset, stored_bytes)
        self.checksums.refuse_damage(offset, stored_bytes, name, label)
        storage = torch.from_numpy(stored_bytes).untyped_storage()
        values = torch.empty((0,), dtype=view.dtype).set_(storage, 0, view.shape, view.stride())
        values = values.conj() if view.is_conj() else values
        return torch._neg_view(values) if view.is_neg() else values  # pyright: ignore
