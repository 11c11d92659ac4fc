"""The part of a pickle that is being read: opcodes are taken from memory, and a file is read in pieces."""

from __future__ import annotations

from typing import IO

_PIECE = 1 << 16
_LONGEST_LINE = 1 << 20


class Window:
    """Bytes of a file from the place that is being read.

    Attributes:
        data: those that were read.
        position: of the next byte in `data`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        """Begin where the file is.

        Args:
            file: gives no more than it has when it is asked for more.
        """
        self._file = file
        self.data = b""
        self.position = 0

    def read(self, n_bytes: int) -> bytes:
        """Take bytes, fewer at the end of the file.

        Args:
            n_bytes: how many.
        """
        if self.position + n_bytes > len(self.data):
            self._read_on(n_bytes)
        taken = self.data[self.position : self.position + n_bytes]
        self.position += len(taken)
        return taken

    def readline(self) -> bytes:
        """Take a line with its end, cut after a million bytes."""
        end = self.data.find(b"\n", self.position) + 1
        while not end and len(self.data) - self.position < _LONGEST_LINE:
            length = len(self.data) - self.position
            self._read_on(length + 1)
            if len(self.data) == length:
                break
            end = self.data.find(b"\n", length) + 1
        return self.read(min(end or len(self.data), self.position + _LONGEST_LINE) - self.position)

    def give_back(self) -> None:
        """Leave the file behind the last byte that was taken."""
        self._file.seek(self.position - len(self.data), 1)
        self.data, self.position = b"", 0

    def _read_on(self, n_bytes: int) -> None:
        left = self.data[self.position :]
        self.data = left + self._file.read(max(n_bytes - len(left), _PIECE))
        self.position = 0
