"""Checkpoints in several files: what an index promises, and whether the files keep it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError


def read_index(content: Mapping[str, Any], index: str) -> dict[str, str]:
    """The `weight_map` of an index file: tensor names to files, relative to the repository.

    Args:
        content: of the index file.
        index: its name relative to the repository; its shards lie beside it.

    Raises:
        SourceError: it is damaged, or names files outside its own folder.
    """
    entries = content.get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise SourceError(f"'{index}' is damaged: it has no weight_map; fetch it again")
    weight_map = cast("dict[str, Any]", entries)
    folder = PurePosixPath(index).parent
    for file in weight_map.values():
        if not isinstance(file, str) or not file or PurePosixPath(file).is_absolute() or ".." in file.split("/"):
            raise SourceError(f"'{index}' is damaged: it names the file {file!r} outside its own folder")
    return {name: str(folder / file) for name, file in weight_map.items()}


def parse_json(data: bytes, label: str) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        SourceError: it is something else.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"'{label}' is damaged, not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"'{label}' is damaged: it holds no JSON object; fetch it again")
    return cast("dict[str, Any]", content)


def require_distinct(tensors: Sequence[StoredTensor], where: str) -> None:
    """Refuse files that hold a tensor of the same name.

    Raises:
        SourceError: two of them do.
    """
    twice = duplicate(tensor.name for tensor in tensors)
    if twice is not None:
        holders = " and ".join(tensor.file for tensor in tensors if tensor.name == twice)
        raise SourceError(f"{where} holds '{twice}' twice, in {holders}: these are not one checkpoint")


def check_index(index: str, weight_map: Mapping[str, str], tensors: Sequence[StoredTensor]) -> list[str]:
    """Compare the shards with their index.

    Args:
        index: name of the index file.
        weight_map: what it promises.
        tensors: what the shards hold.

    Returns:
        A note for tensors that the index does not list: they are read all the same.

    Raises:
        SourceError: a tensor that the index lists is not in its shard.
    """
    held = {(tensor.name, tensor.file) for tensor in tensors}
    absent = [name for name, file in weight_map.items() if (name, file) not in held]
    if absent:
        raise SourceError(
            f"'{weight_map[absent[0]]}' lacks '{absent[0]}', which '{index}' lists"
            + (f", and {len(absent) - 1} more" if len(absent) > 1 else "")
            + ": index and shards belong to different versions; fetch them again"
        )
    extra = [tensor.name for tensor in tensors if tensor.name not in weight_map]
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return [f"{index} does not list {extra[0]}{more}, which its shards hold."] if extra else []
