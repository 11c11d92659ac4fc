"""Programs of torch.export (.pt2): a table of weights in JSON, and their bytes as members of the archive."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.shards import parse_json
from specdiag.checkpoint.torch_rebuild import StoredBytes, view_storage
from specdiag.checkpoint.torch_tensors import Unread, list_tensors
from specdiag.checkpoint.zip_entries import check_zip
from specdiag.checkpoint.zip_members import Archive
from specdiag.errors import SourceError
from specdiag.files import TEXT_LIMIT, Table
from specdiag.text.names import listed

_CONFIG = "_weights_config.json"
_FOLDER = "data/weights/"
_CONSTANTS = re.compile(r"(.*/)?data/constants/[^/]*_constants_config\.json")
_LISTED = 8
_DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    33: torch.float8_e8m0fnu,
    34: torch.uint32,
    35: torch.uint64,
}
"""Types by the numbers of torch's schema of exported programs."""


def list_exported(path: Path, label: str) -> Listing:
    """List the weights of an exported program.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        The tensors, their values not read, and a note.

    Raises:
        SourceError: it is damaged, or holds several programs.
    """
    entries = check_zip(path, label, required=None)
    try:
        with path.open("rb") as file:
            return _listed(Archive(path, file, entries), label)
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        reason = brief(str(error).partition("\n")[0], 200)
        raise SourceError(f"'{label}' is not a readable exported program ({reason}): fetch it again") from error


def _listed(archive: Archive, label: str) -> Listing:
    tables = [name for name in archive.members if _FOLDER in name and name.endswith(_CONFIG)]
    if len(tables) > 1:
        raise SourceError(f"'{label}' holds {len(tables)} exported programs: save the one to analyse alone")
    config = _table(archive, tables[0], label)
    folder = tables[0].rpartition("/")[0]
    tensors = {name: _tensor(archive, folder, entry) for name, entry in config.items()}
    constants = listed(_constants(archive, label), _LISTED)
    left = f" Left out its constants {constants}, which are not in its state_dict." if constants else ""
    note = f"Read the weights of the exported program in {label}; nothing of it was run.{left}"
    return Listing(list_tensors(tensors, label, archive.place()), (note,))


def _table(archive: Archive, member: str, label: str) -> Table:
    """Read the entries of a table of weights or constants."""
    if archive.members[member].file_size > TEXT_LIMIT:
        raise SourceError(f"'{label}' is no exported program: '{brief(member)}' has more than {TEXT_LIMIT} bytes")
    config = parse_json(archive.read(member), f"{label}/{member}").get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{brief(member)} has no 'config'")
    return cast("Table", config)


def _constants(archive: Archive, label: str) -> list[str]:
    """Name the tensors that the program holds beside its weights: buffers that are not saved, tensors in its code."""
    tables = [name for name in archive.members if _CONSTANTS.fullmatch(name)]
    return [brief(name) for table in tables for name in _table(archive, table, label)]


def _tensor(archive: Archive, folder: str, entry: object) -> torch.Tensor:
    """Make a view of the member that holds a weight, or a tensor without values where they are pickled."""
    if not isinstance(entry, Mapping):
        raise TypeError("an entry of its table of weights is no object")
    fields = cast("Mapping[str, object]", entry)
    meta = cast("Mapping[str, object]", fields.get("tensor_meta") or {})
    dtype, sizes = _DTYPES.get(cast("int", meta.get("dtype"))), _numbers(meta.get("sizes"))
    if dtype is None or fields.get("use_pickle"):
        oddity = "pickled" if fields.get("use_pickle") else f"type {meta.get('dtype')!r:.20} of torch.export"
        return Unread.of(sizes, torch.float32, oddity)
    storage = archive.storage(f"{folder}/{fields.get('path_name')}", dtype)
    (offset,) = _numbers([meta.get("storage_offset")])
    view = view_storage(StoredBytes(storage, dtype), offset, sizes, _numbers(meta.get("strides")), dtype)
    return cast("torch.Tensor", view)


def _numbers(values: object) -> tuple[int, ...]:
    """Read sizes, strides or an offset, each an object {"as_int": n}."""
    entries = cast("list[object]", values) if isinstance(values, list) else []
    numbers = [cast("Mapping[str, object]", entry).get("as_int") for entry in entries if isinstance(entry, Mapping)]
    if len(numbers) != len(entries) or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
        raise ValueError("sizes that are no whole numbers")
    return tuple(cast("list[int]", numbers))
