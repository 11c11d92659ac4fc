"""Files that torch.save wrote, loaded without running any code that they carry."""

from __future__ import annotations

import argparse
import io
import os
import pathlib
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, cast

import torch

from specdiag.checkpoint.state_dict import find_weights
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import list_tensors
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
"""What torch.load raises on damaged files, besides UnpicklingError."""
_INERT = (argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath)
"""Beside torch's own list: what training scripts keep with the weights (arguments, Lightning's hyper_parameters).

Making one runs nothing but its own constructor, which stores what it is given.
"""


def list_torch_file(path: pathlib.Path, label: str, *, zipped: bool) -> tuple[list[StoredTensor], list[str]]:
    """Every tensor of a torch checkpoint in stored order, and notes about what else it holds.

    Args:
        path: the file.
        label: its name in messages.
        zipped: whether it is the zip format, which is mapped and read on demand; the legacy one is read now.

    Raises:
        SourceError: it is damaged, wants to run code, or holds no weights, or several sets of weights.
    """
    if zipped:
        _check_zip(path, label)
    content = _load(path, label, zipped)
    if isinstance(content, torch.Tensor):
        content = {"tensor": content}
    if not isinstance(content, Mapping):
        raise SourceError(f"'{label}' holds a {type(content).__name__}, not a dictionary of weights")
    weights, notes = find_weights(cast("Mapping[Any, Any]", content), label)
    return list_tensors(weights, label), notes


def _check_zip(path: pathlib.Path, label: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise SourceError(f"'{label}' is a damaged zip archive ({error}): fetch it again") from error
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "data.pkl" not in names:
        raise SourceError(f"'{label}' is a zip archive, but not one that torch.save wrote: unpack it first")
    if "constants.pkl" in names:
        raise SourceError(f"'{label}' is a TorchScript program, not supported: save its state_dict instead")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise SourceError(f"'{label}' was compressed again after torch.save wrote it: fetch the original")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise SourceError(f"'{label}' is a damaged zip archive (entries overlap): fetch it again")


class _Bounded(io.BufferedReader):
    """A file of which no more is asked than is left: lengths in a pickle may lie, and are allocated first."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _load(path: pathlib.Path, label: str, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(_INERT)):
            warnings.simplefilter("ignore")  # about pickle protocols and storage classes, of no use to the reader
            if zipped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with _Bounded(path.open("rb", buffering=0)) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(_refused(str(error), label)) from error
    except MemoryError as error:
        raise SourceError(f"'{label}' asks for more memory than there is: it is damaged, fetch it again") from error
    except (*_DAMAGED, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"'{label}' is not a readable torch checkpoint ({reason}): fetch it again") from error


def _refused(message: str, label: str) -> str:
    """torch's long answer in one sentence: the callable that the pickle wanted, or that it is damaged."""
    wanted = _GLOBAL.search(message)
    if wanted is None:
        return f"'{label}' is a pickle that cannot be opened without running it: save its weights as safetensors"
    return (
        f"'{label}' wants to run {wanted[1].rstrip('.')} when it is opened, and it was not allowed to: "
        "save its weights alone, as safetensors or a state_dict"
    )
