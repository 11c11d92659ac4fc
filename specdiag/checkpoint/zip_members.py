"""Members of zip archives that torch wrote, whose values stay on disk."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from specdiag.checkpoint.checksums import Checksums
from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.plain_values import read_range
from specdiag.checkpoint.torch_rebuild import itemsize
from specdiag.checkpoint.zip_entries import damaged, extent, read_member
from specdiag.errors import ComputationError


class Archive:
    """The members of a zip archive that torch wrote, mapped to memory at their first use.

    Attributes:
        members: by name.
    """

    def __init__(self, path: Path, file: BinaryIO, entries: Sequence[zipfile.ZipInfo]) -> None:
        """Begin with the order of bytes.

        Args:
            path: the file.
            file: the same, open.
            entries: its members, checked by `check_zip`.
        """
        self.members = {entry.filename: entry for entry in entries}
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        order = next((name for name in self.members if name.rpartition("/")[2] == "byteorder"), None)
        self._mapped = MappedFile(path, "little" if order is None else self.read(order).decode("ascii"))

    def read(self, member: str) -> bytes:
        """Read all of a small member.

        Args:
            member: its name.
        """
        return read_member(self.members[member], self._file, self._size)

    def storage(self, member: str, dtype: torch.dtype, n_values: int | None = None) -> torch.UntypedStorage:
        """Give the bytes of a member, which stay on disk.

        Args:
            member: its name.
            dtype: of its values.
            n_values: how many of them are wanted; None for all.

        Raises:
            UnpicklingError: it holds fewer.
        """
        begin, end = extent(self.members[member], self._file, self._size)
        self._mapped.checksums.add(begin, end, self.members[member])
        n_bytes = end - begin if n_values is None else n_values * itemsize(dtype)
        if n_bytes > end - begin:
            raise pickle.UnpicklingError(f"{member!r:.60} of {n_bytes} bytes in {end - begin}")
        return self._mapped.bytes(begin, n_bytes, dtype)

    def place(self) -> FileMap | None:
        """Locate the file in memory, None where it was not mapped."""
        return self._mapped.place()


class MappedFile:
    """A file that is mapped to memory at its first use. Changes to its pages are not written back."""

    def __init__(self, path: Path, order: str) -> None:
        """Begin without mapping it.

        Args:
            path: the file.
            order: of the bytes of a value, `little` or `big`.

        Raises:
            UnpicklingError: there is no such order.
        """
        if order not in ("little", "big"):
            raise pickle.UnpicklingError(f"byte order {order!r:.20}")
        self._path = path
        self._swap = order != sys.byteorder
        self._whole: torch.UntypedStorage | None = None
        self.checksums = Checksums(path)

    def bytes(self, begin: int, n_bytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
        """Give bytes of the file: a copy where they are not aligned, or in the byte order of another processor.

        Args:
            begin: offset of the first byte.
            n_bytes: how many.
            dtype: of their values.

        Raises:
            ComputationError: the file cannot be mapped into memory.
        """
        if n_bytes == 0:
            return torch.UntypedStorage(0)
        if begin % itemsize(dtype) or self._swap:
            return self._copied(begin, n_bytes, dtype)
        if self._whole is None:
            size = self._path.stat().st_size
            try:
                self._whole = cast("torch.UntypedStorage", torch.UntypedStorage.from_file(str(self._path), False, size))
            except RuntimeError as error:  # the file is there, and torch has no class for a full memory
                raise ComputationError(f"{error}: give more memory, or save the weights as safetensors") from error
        return self._whole[begin : begin + n_bytes]

    def _copied(self, begin: int, n_bytes: int, dtype: torch.dtype) -> torch.UntypedStorage:
        values = np.empty(n_bytes, np.uint8)
        read_range(self._path, str(self._path), begin, values)
        member = self.checksums.damaged_member(begin, values)
        if member is not None:
            raise damaged(member)
        part = torch.from_numpy(values).untyped_storage()
        if self._swap:
            part.byteswap(dtype)
        return part

    def place(self) -> FileMap | None:
        """Locate the file in memory, None where it was not mapped."""
        if self._whole is None:
            return None
        return FileMap(self._path, self._whole.data_ptr(), self._whole.nbytes(), self.checksums)
