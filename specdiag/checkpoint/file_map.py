"""A torch file in memory: its tensors point into the map, and their values are read from the file.

To touch a mapped page that the file no longer has ends the process; to read it is an error that can be told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from specdiag.checkpoint.safetensors_file import read_range


@dataclass(frozen=True, slots=True)
class FileMap:
    """A map of a whole file.

    Attributes:
        path: the file.
        begin: address of its first byte.
        n_bytes: its size when it was mapped.
    """

    path: Path
    begin: int
    n_bytes: int

    def fetch(self, view: torch.Tensor, label: str) -> torch.Tensor:
        """The values of a tensor, read from the file where it points into the map; any other tensor as it is.

        Args:
            view: a tensor, of any strides.
            label: the file, for messages.

        Raises:
            SourceError: the file is gone, or was cut short since it was mapped.
        """
        offset = view.data_ptr() - self.begin
        if not view.numel() or not 0 <= offset < self.n_bytes:
            return view
        reach = sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True)) + 1
        held = np.empty(reach * view.element_size(), np.uint8)
        read_range(self.path, label, offset, held)
        storage = torch.from_numpy(held).untyped_storage()
        values = torch.empty((0,), dtype=view.dtype).set_(storage, 0, view.shape, view.stride())
        values = values.conj() if view.is_conj() else values
        return torch._neg_view(values) if view.is_neg() else values  # pyright: ignore
