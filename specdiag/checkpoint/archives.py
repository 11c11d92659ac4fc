"""Zip archives that may hold weights, told apart by the names of their members."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from specdiag.checkpoint import conversions
from specdiag.errors import SourceError
from specdiag.files import is_regular

Kind = Literal["npz", "exported", "torch"]
_ZIP = b"PK\x03\x04"
_FIRST = 1024
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of torch.save before its zip format: a pickled number."""
_WEIGHTS_CONFIG = "_weights_config.json"
_REFUSED: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda name: name.endswith(".weights.h5"),
        f"a Keras model, not supported: {conversions.KERAS}",
    ),
    (
        lambda name: name.endswith("serialized_exported_program.json"),
        "an exported program of an older torch, not supported: save the state_dict of what torch.export.load gives",
    ),
    (
        lambda name: name.endswith(("coremldata.bin", ".mlmodel")),
        "a Core ML package, not supported: analyse the model that it was converted from",
    ),
)


def archive_kind(path: Path, label: str) -> Kind:
    """Tell what a zip archive holds.

    Args:
        path: a file of weights.
        label: its name in messages.

    Returns:
        `torch` also for what is no zip archive, or a damaged one, which its reader reports.

    Raises:
        SourceError: it is a known kind of archive that is not read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_FIRST)
        if not head.startswith(_ZIP) or _first_name(head).endswith("/data.pkl"):  # as torch.save begins
            return "torch"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # noqa: BLE001 - zipfile lets many kinds of errors through
        return "torch"
    return _kind(names, label)


def _first_name(head: bytes) -> str:
    """Read the name of the first member of an archive from the header before its content."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].decode("utf-8", "replace")


def written_by_torch(path: Path) -> bool:
    """Tell whether torch.save wrote a file, whatever its name.

    Args:
        path: the file.
    """
    try:
        if not is_regular(path):
            return False
        with path.open("rb") as file:
            head = file.read(len(_LEGACY))
        if head != _LEGACY and not head.startswith(_ZIP):
            return False
        with contextlib.nullcontext() if head == _LEGACY else zipfile.ZipFile(path) as archive:
            return archive is None or any(name.rpartition("/")[2] == "data.pkl" for name in archive.namelist())
    except Exception:  # noqa: BLE001 - zipfile lets many kinds of errors through
        return False


def _kind(names: Sequence[str], label: str) -> Kind:
    bases = {name.rpartition("/")[2] for name in names}
    if any("data/weights/" in name and name.endswith(_WEIGHTS_CONFIG) for name in names):
        return "exported"
    if "data.pkl" in bases:
        return "torch"
    if all(name.endswith(".npy") for name in names):
        return "npz"
    kind = next((what for fits, what in _REFUSED if any(map(fits, names))), None)
    if kind is not None:
        raise SourceError(f"'{label}' is {kind}")
    return "torch"
