"""Files that torch.save wrote, loaded without running any code that they carry."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError

_WRAPPERS = ("model_state_dict", "state_dict", "model", "module")
_BESIDE_WEIGHTS = re.compile(
    r".*(optim|sched|scaler|rng|random|history|metric|config|args|hyper|loop|callback).*"
)
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


def list_torch_file(path: Path, label: str, *, zipped: bool) -> tuple[list[StoredTensor], list[str]]:
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
    weights, notes = _weights(content, label)
    return list_tensors(weights, label), notes


def _check_zip(path: Path, label: str) -> None:
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


def _load(path: Path, label: str, zipped: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickle protocols and storage classes, of no use to the reader
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise SourceError(_refused(str(error), label)) from error
    except MemoryError as error:
        raise SourceError(
            f"'{label}' asks for more memory than there is: it is damaged, fetch it again"
        ) from error
    except (*_DAMAGED, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(
            f"'{label}' is not a readable torch checkpoint ({reason}): fetch it again"
        ) from error


def _refused(message: str, label: str) -> str:
    """torch's long answer in one sentence: the callable that the pickle wanted, or that it is damaged."""
    wanted = _GLOBAL.search(message)
    if wanted is None:
        return (
            f"'{label}' is a damaged or foreign pickle, which was not run: fetch it again, or use safetensors"
        )
    return (
        f"'{label}' wants to run {wanted[1].rstrip('.')} when it is opened, and it was not allowed to: "
        "save its weights alone, as safetensors or a state_dict"
    )


def _weights(content: Mapping[Any, Any], label: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The one dictionary of tensors in what was stored, and a note on the rest."""
    own = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if any(value.dim() > 1 for value in own.values()):
        return _named(own), _rest(label, [name for name in content if name not in own])
    found = {str(name): flat for name, value in content.items() if (flat := dict(_flatten(value, "")))}
    holders = [name for name in found if name in _WRAPPERS]
    holders = holders or [
        name for name in found if not _BESIDE_WEIGHTS.fullmatch(name.lower()) and name not in own
    ]
    if len(holders) > 1:
        listed = ", ".join(f"'{name}'" for name in holders)
        raise SourceError(
            f"'{label}' holds tensors under {listed}: save the one to analyse in a file of its own"
        )
    if holders:
        rest = [name for name in content if name != holders[0]]
        return found[holders[0]], [f"{label}: read the weights under '{holders[0]}'.", *_rest(label, rest)]
    if not own:
        raise SourceError(f"'{label}' holds no tensors; its keys are {_listed(list(content)) or 'none'}")
    return _named(own), _rest(label, [name for name in content if name not in own])


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{name}" if prefix else str(name))


def _named(tensors: Mapping[Any, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {str(name): tensor for name, tensor in tensors.items()}


def _rest(label: str, names: list[Any]) -> list[str]:
    return [f"{label}: ignored its other entries {_listed(names)}."] if names else []


def _listed(names: list[Any]) -> str:
    return ", ".join(str(name) for name in names[:8]) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )
