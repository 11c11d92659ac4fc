"""The names of distributed checkpoints: which folders hold one, and which files belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from specdiag.checkpoint.parts import METADATA, PART
from specdiag.errors import SourceError
from specdiag.text.names import listed

_ACCELERATE = re.compile(r"pytorch_model_fsdp_\d+")
"""Folders in which accelerate keeps the model of a checkpoint, whose config.json lies beside them."""
BACKEND = "metadata.json"
"""The file in which Megatron says how it saved."""
COMMON = "common.pt"
"""The file of what its processes have alike, such as the arguments of the run."""
_OF_ONE_PROCESS = re.compile(r"__\d+\.metadata")
_SLICES = re.compile(r"(?P<folder>(?:.*/)?)shard-(?P<rank>\d+)-model-(?P<number>\d+)-of-(?P<total>\d+)\.safetensors")
_MOST = 1000
_LISTED = 8


def refuse_unfinished(names: Iterable[str], where: str) -> None:
    """Refuse chunks without the file that says what they are.

    Args:
        names: files of one folder.
        where: the folder, for messages.

    Raises:
        SourceError: there are files of chunks, and no `.metadata` of all processes.
    """
    names = list(names)
    bases = {name.rpartition("/")[2] for name in names}
    parts = [name for name in names if name.endswith(PART)]
    if any(map(_OF_ONE_PROCESS.fullmatch, bases)) and METADATA not in bases:
        raise SourceError(
            f"{where} was saved by each process for itself (use_collectives=False), and no file says how the tensors "
            "were divided: save it with collectives"
        )
    if parts and METADATA not in bases:
        raise SourceError(
            f"{where} holds {listed(parts, _LISTED)} and no {METADATA}, which a distributed checkpoint writes last: "
            "the save did not finish; wait for it, or give an earlier checkpoint"
        )


def parts_beside(name: str, names: Iterable[str]) -> list[str]:
    """List the files in the folder of a `.metadata` that are read with it: chunks, and how Megatron saved.

    Args:
        name: any file of weights; others than `.metadata` have no such files.
        names: all files, relative to the same root.
    """
    folder, _, base = name.rpartition("/")
    if not base.endswith(METADATA):
        return []
    beside = [other for other in names if other.rpartition("/")[0] == folder]
    return [other for other in beside if other.endswith(PART) or other.rpartition("/")[2] in (BACKEND, COMMON)]


def accelerate_models(names: Iterable[str], folder: str) -> list[str]:
    """List the `.metadata` of the models in a checkpoint of accelerate.

    Args:
        names: all files, relative to the root.
        folder: the checkpoint with a `/` behind it, or nothing for the root.

    Raises:
        SourceError: a model was not saved to the end.
    """
    inside: dict[str, list[str]] = {}
    for name in names:
        parent, _, base = name.removeprefix(folder).partition("/")
        if name.startswith(folder) and _ACCELERATE.fullmatch(parent) and "/" not in base:
            inside.setdefault(f"{folder}{parent}", []).append(name)
    for parent, files in inside.items():
        refuse_unfinished(files, parent)
    return [f"{parent}/{METADATA}" for parent, files in inside.items() if f"{parent}/{METADATA}" in files]


def is_accelerate_folder(path: str) -> bool:
    """Tell whether a path is that of a model within a checkpoint of accelerate."""
    return _ACCELERATE.fullmatch(path.rpartition("/")[2]) is not None


def slices_set(name: str) -> tuple[str, ...] | None:
    """Give what the names of all slices of a model have in common; None for other files.

    Args:
        name: a file, such as `shard-00001-model-00001-of-00002.safetensors`, of the first process's slices.
    """
    match = _SLICES.fullmatch(name)
    return None if match is None else (match["folder"], "slices", match["total"])


def neighbours(name: str) -> Sequence[str]:
    """List the files that may hold the slices of the processes before and after that of a file.

    Args:
        name: a file of slices; others have no neighbours.
    """
    match = _SLICES.fullmatch(name)
    if match is None:
        return ()
    rank, total, width = int(match["rank"]), min(int(match["total"]), _MOST), len(match["number"])
    return [
        f"{match['folder']}shard-{other:0{len(match['rank'])}d}-model-{number:0{width}d}-of-{match['total']}.safetensors"
        for other in (rank - 1, rank + 1)
        for number in range(1, total + 1)
    ]
