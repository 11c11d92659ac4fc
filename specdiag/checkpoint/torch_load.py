"""Opening a file that torch.save wrote without running any code that it carries."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import pickle
import re
import struct
import warnings
from collections.abc import Sequence

import torch

from specdiag.checkpoint.zip_entries import check_zip, is_zip
from specdiag.errors import SourceError

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_DAMAGED = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
)
"""Errors of torch.load on damaged files, besides UnpicklingError."""
INERT = (argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath)
"""Classes beside torch's own list that training scripts keep with the weights, such as arguments.

Their constructors only store what they are given.
"""


class ForeignPickleError(SourceError):
    """The file wants to run what was not allowed."""


def load_torch(path: pathlib.Path, label: str, allowed: Sequence[type] = INERT) -> object:
    """Load a file on the CPU. Tensors of the zip format stay on disk until they are used.

    Args:
        path: the file, zip format or the legacy one.
        label: its name in messages.
        allowed: classes that it may make, beside tensors and plain containers.

    Returns:
        Whatever the file holds.

    Raises:
        ForeignPickleError: it wants to run something else.
        SourceError: it is damaged, or no file of torch.save.
    """
    zipped = is_zip(path, label)
    if zipped and any(entry.filename.endswith("/constants.pkl") for entry in check_zip(path, label)):
        raise SourceError(f"'{label}' is a TorchScript program, which is not continued: save its state_dict instead")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # about pickle protocols and storage classes, of no use to the reader
            if zipped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with _Bounded(path.open("rb", buffering=0)) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ForeignPickleError(_refused(str(error), label)) from error
    except MemoryError as error:
        raise SourceError(f"'{label}' asks for more memory than there is: it is damaged, fetch it again") from error
    except (*_DAMAGED, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"'{label}' is not a readable torch checkpoint ({reason}): fetch it again") from error


class _Bounded(io.BufferedReader):
    """A file that never reads more than is left: a pickle may state a false length, and Python would allocate it."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _refused(message: str, label: str) -> str:
    """Shorten torch's long message to the callable that the pickle wanted, or to what can be done."""
    match = _GLOBAL.search(message)
    if match is None:
        return f"'{label}' is a pickle that cannot be opened without running it: save its weights as safetensors"
    return (
        f"'{label}' wants to run {match[1].rstrip('.')} when it is opened, and it was not allowed to: "
        "save its weights alone, as safetensors or a state_dict"
    )
