"""Opening a checkpoint: from a path or hub id to lazy matrices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from specdiag.checkpoint.adapters.adapter import Adapter, read_adapter, remarks_on_updates
from specdiag.checkpoint.adapters.config import read_adapter_config
from specdiag.checkpoint.adapters.defects import find_defects
from specdiag.checkpoint.adapters.merge import applied, merge
from specdiag.checkpoint.adapters.rows import update_rows
from specdiag.checkpoint.contents import Contents, read_contents
from specdiag.checkpoint.file_selection import is_adapter_file
from specdiag.checkpoint.folder import Folder, open_folder
from specdiag.checkpoint.inventory import Sorting, sort_tensors
from specdiag.checkpoint.opening import Opening
from specdiag.checkpoint.pipeline import component_folders, join
from specdiag.checkpoint.source import locate
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import UsageError
from specdiag.system.paused_collection import paused_collection


@paused_collection()
def open_checkpoint(
    location: str | os.PathLike[str],
    *,
    revision: str | None = None,
    file: str | None = None,
    part: str | None = None,
    role_map: Path | None = None,
    experts: int | None = None,
    seed: int = 0,
    base: str | os.PathLike[str] | None = None,
    stream: bool = False,
) -> Checkpoint:
    """Open a checkpoint. Headers are read, and downloaded files where it is on the hub.

    Values are not, but for small tensors whose names leave open whether they are buffers, such as `pe` and `mask`.

    Args:
        location: a directory, a file, `org/name`, `org/name@revision`, `hf://org/name@revision/path`, or a
            URL of the hub. A path that exists wins.
        revision: branch, tag or commit on the hub.
        file: a file or folder within a directory or repository, instead of its best one; a glob, such as
            `model-*.safetensors`, takes several files that make up one model.
        part: one of several models in it, by the keys or the prefix that its tensors have.
        role_map: TOML file with roles for names that the built-in rules do not know.
        experts: analyse this many experts of each layer, drawn at random; None for all.
        seed: seed of that draw.
        base: the model that an adapter is applied to, given as `location` is; without it an adapter's updates are
            analysed by themselves.
        stream: read what is on the hub by ranges, one tensor at a time, and write nothing to disk. Only safetensors.

    Returns:
        The checkpoint, its matrices not read.

    Raises:
        UsageError: the options contradict each other, several different models tie, `base` does not go with it, or
            there is nothing to stream.
        SourceError: the source is not there, cannot be reached, is damaged, unsupported, or no checkpoint, or an
            adapter does not fit its base.

    Example:
        >>> checkpoint = open_checkpoint("org/name")
        >>> [matrix.name for matrix in checkpoint.matrices if matrix.module.role == "q"][:1]
        ['model.layers.0.self_attn.q_proj.weight']
    """
    if stream and not any(locate(place).repo for place in (location, base) if place is not None):
        raise UsageError(
            f"stream=True is for models on the hub: a local one such as '{location}' is read by ranges anyway"
        )
    folder, pick, parts = _located(location, revision, file, stream=stream)
    if parts and role_map is not None:
        raise UsageError(f"{folder.source.location} has several components: pick one with file= for role_map=")

    def sort(pick: str | None) -> Checkpoint:
        contents = read_contents(folder, pick, part)
        options = Sorting(role_map, experts, seed)
        adapter = _adapter(contents, folder)
        if base is not None:
            return _applied(contents, adapter, base, options, stream=stream)
        if adapter is not None:
            checkpoint = update_rows(adapter, contents.source, contents.config, options, contents.notes)
            return replace(checkpoint, defects=find_defects(adapter, contents.source.files[0]))
        return sort_tensors(contents.tensors, contents.source, contents.config, options, contents.notes)

    checkpoint = join(folder, {part: sort(part) for part in parts}) if parts else sort(pick)
    opening = {"revision": revision, "file": file, "part": part, "base": base, "stream": stream,
               "role_map": role_map, "experts": experts, "seed": seed}  # fmt: skip
    return replace(checkpoint, opening=Opening.of(opening))


def read_base(location: str | os.PathLike[str], *, stream: bool = False) -> Contents:
    """List the tensors of the model that an adapter is applied to.

    Args:
        location: as for `open_checkpoint`.
        stream: as for `open_checkpoint`.

    Returns:
        Its tensors, not sorted into matrices.

    Raises:
        UsageError: it is several models, or an adapter itself.
        SourceError: it cannot be read.
    """
    folder, pick, parts = _located(location, stream=stream)
    if parts:
        raise UsageError(f"{folder.source.location} has several components: give the folder of one as base=")
    contents = read_contents(folder, pick)
    if _adapter(contents, folder) is not None:
        raise UsageError(f"{folder.source.location} is an adapter, or carries one: base= takes the plain model")
    return contents


def read_update(location: str | os.PathLike[str], *, stream: bool = False) -> tuple[Adapter, Contents]:
    """List the updates of an adapter.

    Args:
        location: as for `open_checkpoint`.
        stream: as for `open_checkpoint`.

    Returns:
        The adapter, and what its files hold.

    Raises:
        UsageError: it is several models, no adapter, or a model with an adapter in it.
        SourceError: it cannot be read.
    """
    folder, pick, parts = _located(location, stream=stream)
    contents = read_contents(folder, pick) if not parts else None
    adapter = None if contents is None else _adapter(contents, folder)
    if contents is None or adapter is None:
        raise UsageError(f"{folder.source.location} is no adapter: give a folder or file of LoRA updates")
    if adapter.holds_base:
        raise UsageError(f"{folder.source.location} holds the weights that its adapter changes: save the adapter alone")
    return adapter, contents


def _located(
    location: str | os.PathLike[str], revision: str | None = None, file: str | None = None, *, stream: bool = False
) -> tuple[Folder, str | None, Sequence[str]]:
    """Find the folder, the file to read of it, and its components where it is a pipeline and no file was picked."""
    place = locate(location, revision, file)
    folder = open_folder(place, stream=stream)
    pick = place.file or folder.only
    return folder, pick, () if pick else component_folders(folder)


def _adapter(contents: Contents, folder: Folder) -> Adapter | None:
    file = contents.source.files[0]
    config = read_adapter_config(folder, file)
    is_declared = bool(config.settings) and is_adapter_file(file)
    return read_adapter(contents.tensors, {None: config}, contents.source.location, is_declared=is_declared)


def _applied(
    contents: Contents, adapter: Adapter | None, location: str | os.PathLike[str], options: Sorting, *, stream: bool
) -> Checkpoint:
    """Apply the adapter to its base model."""
    where = contents.source.location
    if adapter is None:
        raise UsageError(f"{where} is no adapter: leave out base={os.fspath(location)}")
    if adapter.holds_base:
        raise UsageError(f"{where} holds the weights that its adapter changes: leave out base={os.fspath(location)}")
    base = read_base(location, stream=stream)
    tensors = merge(adapter, base.tensors, where, base.source.location)
    source = msgspec.structs.replace(contents.source, base=str(base.source))
    notes = (*contents.notes, *base.notes, *remarks_on_updates(adapter))
    checkpoint = sort_tensors(tensors, source, base.config, options, notes)
    updates = applied(adapter, base.tensors, where, base.source.location)
    defects = find_defects(adapter, contents.source.files[0], [tensor.name for tensor in base.tensors])
    return replace(checkpoint, adapter=dict(adapter.config.settings), updates=updates, defects=defects)
