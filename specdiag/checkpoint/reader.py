"""From what the person typed to a checkpoint of lazy matrices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from specdiag.checkpoint.choice import Choice, choose, shard_notes, weight_files
from specdiag.checkpoint.folder import Folder, open_folder
from specdiag.checkpoint.formats import recognise
from specdiag.checkpoint.safetensors_file import list_safetensors
from specdiag.checkpoint.shards import check_index, read_index, require_distinct
from specdiag.checkpoint.sorting import sort_tensors
from specdiag.checkpoint.source import locate
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.checkpoint.wrappers import unwrap
from specdiag.errors import SourceError
from specdiag.records import Source


def open_checkpoint(
    location: str | os.PathLike[str],
    *,
    revision: str | None = None,
    file: str | None = None,
    role_map: Path | None = None,
    experts: int | None = None,
    seed: int = 0,
) -> Checkpoint:
    """Open a checkpoint. Headers are read, and downloaded files where it is on the hub; no values are.

    Args:
        location: a directory, a file, `org/name`, `org/name@revision`, `hf://org/name@revision/path`, or a
            URL of the hub. A path that exists wins.
        revision: branch, tag or commit on the hub.
        file: a file or folder within a directory or repository, instead of its best one.
        role_map: TOML file with roles for names that the built-in rules do not know.
        experts: analyse this many experts of each layer, drawn at random; None for all.
        seed: of that draw.

    Raises:
        UsageError: the options contradict each other, or several different models tie.
        SourceError: the source is not there, cannot be reached, is damaged, unsupported, or no checkpoint.

    Example:
        >>> checkpoint = open_checkpoint("runs/step-1000")  # doctest: +SKIP
        >>> [matrix.name for matrix in checkpoint.matrices if matrix.module.role == "q"]  # doctest: +SKIP
    """
    found = locate(location, revision, file)
    folder = open_folder(found)
    choice = choose(folder.names, found.file or folder.only, folder.source.location)
    tensors, source, notes = _read(folder, choice)
    tensors, renamed = unwrap(tensors, source.location)
    config, doubts = folder.config(choice.name)
    return sort_tensors(
        tensors,
        source,
        config,
        role_map=role_map,
        experts=experts,
        seed=seed,
        notes=(*notes, *renamed, *doubts),
    )


def _read(folder: Folder, choice: Choice) -> tuple[list[StoredTensor], Source, list[str]]:
    """List the tensors of the chosen files, which are fetched first, and check that they belong together."""
    weight_map: dict[str, str] = {}
    if choice.index is not None:
        folder.fetch([choice.index])
        weight_map = read_index(folder.root / choice.index, choice.index)
    files = choice.files or tuple(dict.fromkeys(weight_map.values()))
    _require(files, folder, choice.name)
    folder.fetch(files)
    tensors: list[StoredTensor] = []
    notes = shard_notes(choice)
    for name in files:
        listed, said = list_file(folder.root / name, folder.label(name))
        tensors += listed
        notes += said
    require_distinct(tensors, folder.source.location)
    if choice.index is not None:
        labels = {name: folder.label(file) for name, file in weight_map.items()}
        notes += check_index(choice.index, labels, tensors)
    ignored = tuple(name for name in weight_files(folder.names) if name not in files)
    return tensors, msgspec.structs.replace(folder.source, files=files, ignored=ignored), notes


def _require(files: Sequence[str], folder: Folder, promised_by: str) -> None:
    missing = [name for name in files if name not in folder.names and not (folder.root / name).exists()]
    if missing:
        named = ", ".join(missing[:4])
        raise SourceError(f"{folder.source.location} lacks {named}, which {promised_by} names: fetch it again")


def list_file(path: Path, label: str) -> tuple[list[StoredTensor], list[str]]:
    """Every tensor of one file in a format that is told from its content, and notes.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it is unreadable, damaged, unsupported, or not a file of weights.
    """
    kind = recognise(path, label)
    if kind == "safetensors":
        return list_safetensors(path, label), []

    from specdiag.checkpoint.torch_file import list_torch_file

    return list_torch_file(path, label, zipped=kind == "torch_zip")
