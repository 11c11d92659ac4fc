"""Checkpoints in several files: reading their index, and comparing the files with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, cast

from specdiag.checkpoint.long_names import LONGEST, brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError
from specdiag.files import Table

_WITH_MARK = {"utf-8-sig": "UTF-8 with a byte order mark"}
_LONGEST_SEGMENT = 255  # bytes, the limit of file systems


def read_index(content: Mapping[str, object], index: str) -> dict[str, str]:
    """Read the `weight_map` of an index file.

    Args:
        content: of the index file.
        index: its name relative to the repository; its shards lie beside it.

    Returns:
        For each name of a tensor its file, relative to the repository.

    Raises:
        SourceError: it is damaged, or names files outside its own folder.
    """
    entries = content.get("weight_map")
    if not isinstance(entries, dict) or not entries:
        found = "an empty" if entries in ({}, []) else "no" if entries is None else "no dictionary as"
        raise SourceError(f"'{index}' is damaged: it has {found} weight_map; fetch it again")
    weight_map = cast("Table", entries)
    folder = PurePosixPath(index).parent
    paths: dict[str, str] = {}
    for file in weight_map.values():
        if not isinstance(file, str) or not (file in paths or stays_inside(file)):
            raise SourceError(
                f"'{index}' is damaged: it names {brief(repr(file))}, no file inside its own folder; fetch it again"
            )
        paths.setdefault(file, str(folder / file))
    return {name: paths[file] for name, file in weight_map.items()}


def stays_inside(file: str) -> bool:
    """Tell whether a name can be that of a file in the folder that lists it, or below.

    Args:
        file: relative to the folder, with `/` between folders.
    """
    segments = file.split("/")
    return (
        bool(file)
        and len(file) <= LONGEST
        and "\0" not in file
        and not PurePosixPath(file).is_absolute()
        and ".." not in segments
        and not any("\ud800" <= character <= "\udfff" for character in file)
        and all(len(segment.encode()) <= _LONGEST_SEGMENT for segment in segments)
    )


def parse_json(data: bytes, label: str) -> Table:
    """Decode the JSON object of a file.

    Args:
        data: all of the file.
        label: its name in messages.

    Returns:
        The object.

    Raises:
        SourceError: it is something else, or gives a key twice: decoders would keep the last.
    """
    try:
        return _object(data, label, _unique)
    except _RepeatedKeyError as error:
        raise SourceError(f"'{label}' is damaged: it gives {brief(repr(str(error)))} twice; correct it") from error


def _object(data: bytes, label: str, pairs: Callable[[list[tuple[str, object]]], Table]) -> Table:
    try:
        content = json.loads(data, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"'{label}' is damaged, not JSON ({brief(str(error), 500)}): fetch it again") from error
    if not isinstance(content, dict):
        raise SourceError(f"'{label}' is damaged: it holds no JSON object; fetch it again")
    return cast("Table", content)


class RepeatedKey(NamedTuple):
    """A key that a JSON object gives twice, and its first and its last value."""

    key: str
    first: object
    last: object


def parse_config(data: bytes, label: str) -> tuple[Table, tuple[RepeatedKey, ...]]:
    """Decode a config.json as transformers does: the last value counts of a key that is given twice.

    Args:
        data: all of the file.
        label: its name in messages.

    Returns:
        The object, and the keys that are given twice with different values, at any depth.

    Raises:
        SourceError: it is something else.
    """
    repeated: list[RepeatedKey] = []

    def last(pairs: list[tuple[str, object]]) -> Table:
        content = dict(pairs)
        if len(content) < len(pairs):
            first = dict(reversed(pairs))
            repeated.extend(RepeatedKey(k, first[k], content[k]) for k in content if not same(first[k], content[k]))
        return content

    return _object(data, label, last), tuple(repeated)


def same(one: object, other: object) -> bool:
    """Tell whether two values are the same in JSON, in which true is no 1.

    Args:
        one: decoded.
        other: likewise.
    """
    return type(one) is type(other) and json.dumps(one) == json.dumps(other)


def encoding_notes(data: bytes, name: str) -> list[str]:
    """Remark that a JSON file is in an encoding that libraries do not read: they take plain UTF-8 alone.

    Args:
        data: all of a file that `parse_json` decoded.
        name: its name.

    Returns:
        One note, or none.
    """
    encoding = json.detect_encoding(data)
    if encoding == "utf-8":
        return []
    return [f"{name} is written in {_WITH_MARK.get(encoding, encoding)}, not in plain UTF-8."]


class _RepeatedKeyError(Exception):
    """A JSON object with a key that comes twice."""


def _unique(pairs: list[tuple[str, object]]) -> Table:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise _RepeatedKeyError(duplicate(key for key, _ in pairs))
    return content


def require_distinct(tensors: Sequence[StoredTensor], where: str) -> None:
    """Refuse files that hold two tensors of the same name.

    Args:
        tensors: of all files.
        where: the checkpoint, for messages.

    Raises:
        SourceError: two tensors have the same name.
    """
    twice = duplicate(tensor.name for tensor in tensors)
    if twice is not None:
        holders = " and ".join(tensor.file for tensor in tensors if tensor.name == twice)
        raise SourceError(f"{where} holds '{brief(twice)}' twice, in {holders}: these are not one checkpoint")


def check_index(index: str, weight_map: Mapping[str, str], tensors: Sequence[StoredTensor]) -> list[str]:
    """Compare the shards with their index.

    Args:
        index: name of the index file.
        weight_map: what it promises.
        tensors: what the shards hold.

    Returns:
        Notes on tensors that the index lists and its shards lack, on those that lie in another shard than it says, and
        on those that it does not list: they are read.

    Raises:
        SourceError: a shard lacks most of what the index lists for it.
    """
    stored = {tensor.name: tensor.file for tensor in tensors}
    missing = [name for name in weight_map if name not in stored]
    moved = [name for name, file in weight_map.items() if stored.get(name, file) != file]
    promised, lacking = Counter(weight_map.values()), Counter(weight_map[name] for name in missing)
    other = next((name for name in missing if 2 * lacking[weight_map[name]] > promised[weight_map[name]]), None)
    if other is not None:
        raise SourceError(
            f"'{weight_map[other]}' lacks '{brief(other)}', which '{index}' lists"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": index and shards belong to different versions; fetch them again"
        )
    notes = [f"{index} lists {_some(missing)}, which its shards lack."] if missing else []
    notes += [f"{index} lists {_some(moved)} under a shard that does not hold it."] if moved else []
    extra = [tensor.name for tensor in tensors if tensor.name not in weight_map]
    return [*notes, f"{index} does not list {_some(extra)}, which its shards hold."] if extra else notes


def _some(names: Sequence[str]) -> str:
    return brief(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
