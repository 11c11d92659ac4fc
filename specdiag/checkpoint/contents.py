"""The contents of one model: its files are chosen, fetched and listed, and its tensors get their final names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from specdiag.checkpoint.distributed.folders import parts_beside
from specdiag.checkpoint.distributed.slices import join_slices
from specdiag.checkpoint.file_notes import index_notes, metadata_notes, projector_notes, shard_notes, size_notes
from specdiag.checkpoint.file_selection import ModelFiles, choose, holds_files
from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.layouts.find import Found, distributed_folder, find_layout
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief, leave_out_long
from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.shard_sets import all_of_its_set
from specdiag.checkpoint.shards import check_index, encoding_notes, parse_json, read_index, require_distinct
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.weight_names import is_index, weight_files
from specdiag.checkpoint.wrappers import unwrap
from specdiag.errors import SourceError, UsageError
from specdiag.files import Table
from specdiag.records import Source
from specdiag.system.paused_collection import paused_collection
from specdiag.text.names import listed


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors of one model, not yet sorted into matrices.

    Attributes:
        source: where they lie, with the files that were chosen.
        config: the config.json beside them, or what the file itself says of its architecture.
        tensors: all that is stored, under final names, weights in the place of their codes.
        notes: what was remarked.
    """

    source: Source
    config: Table
    tensors: list[StoredTensor]
    notes: tuple[str, ...]


def read_contents(folder: Folder, pick: str | None, part: str | None = None) -> Contents:
    """List the tensors of one model, whose files are chosen and fetched first, and check that they belong together.

    Args:
        folder: what holds it.
        pick: a file or folder inside; None for the best file at the top.
        part: one of several models in it; None for its only one.

    Returns:
        The tensors, not sorted into matrices.

    Raises:
        UsageError: `pick` names nothing, or several different models tie.
        SourceError: files are missing, damaged, unsupported, or belong to different models.
    """

    def read(name: str) -> bytes:
        folder.files.fetch([name])
        return folder.files.read(name, folder.label(name))

    is_flat = holds_files(folder.names, pick)
    found = find_layout(folder.names, pick, folder.source.location, is_flat, read)
    if found is not None:
        folder.files.fetch([found.folder + name for name in (*found.files, *found.beside)])
        return _in_pieces(folder, found, part)
    if not is_flat and pick not in folder.names:
        pick = distributed_folder(folder.names, pick, folder.source.location, read) or pick
    model = choose(folder.names, pick, folder.source.location, folder.files.broken, folder.files.is_torch)
    weight_map: dict[str, str] = {}
    content: Table = {}
    notes: list[str] = []
    if model.index is not None:
        data = read(model.index)
        content = parse_json(data, model.index)
        weight_map = read_index(content, model.index)
        notes = [*metadata_notes(model.index, content), *encoding_notes(data, model.index)]
    files = model.files or tuple(dict.fromkeys(weight_map.values()))
    require_files(files, folder, model.name)
    folder.files.fetch([*files, *(name for file in files for name in parts_beside(file, folder.names))])
    contents = _in_files(folder, model, files, weight_map, part)
    if model.index is not None:
        notes += size_notes(model.index, content, contents.tensors)
    return replace(contents, notes=(*notes, *contents.notes))


@paused_collection()
def _in_files(
    folder: Folder, model: ModelFiles, files: Sequence[str], weight_map: Mapping[str, str], part: str | None
) -> Contents:
    """List the tensors of single files, shards or an index, which are there."""
    listings = [folder.files.list(name, folder.label(name), part) for name in files]
    tensors, joined = join_slices(listings, files, folder.source.location, folder.has)
    notes = [*shard_notes(model), *projector_notes(model, folder.names), *joined]
    notes += [note for listing in listings for note in listing.notes]
    require_distinct(tensors, folder.source.location)
    if model.index is not None:
        labels = {name: folder.label(file) for name, file in weight_map.items()}
        notes += [*index_notes(model.index, files), *check_index(model.index, labels, tensors)]
    for name, listing in zip(files, listings, strict=True):
        files = (*files, *_beside(name, listing))
    config = next((listing.config for listing in listings if listing.config), {})
    taken = {listing.part for listing in listings}
    if len(taken) > 1:
        raise UsageError(f"{folder.source.location} has part={part} in only some of {listed(files, 3)}: name one file")
    models = listings[0].models if len(listings) == 1 else {}
    listing = Listing(tensors, tuple(notes), config, part=next(iter(taken), None), models=models)
    return _contents(folder, files, listing, model.name, part)


@paused_collection()
def _in_pieces(folder: Folder, found: Found, part: str | None) -> Contents:
    """List a model in pieces, which its layout joins."""
    from specdiag.checkpoint.layouts.pieces import Place  # needs torch

    place = Place(
        where=folder.label(found.folder.rstrip("/")) if found.folder else folder.source.location,
        names=found.files,
        path=lambda name: folder.files.path(found.folder + name),
        beside=found.beside,
    )
    listing = found.layout.read(place)
    require_distinct(listing.tensors, folder.source.location)
    inner = found.folder
    while inner and not folder.has(f"{inner}config.json"):  # a Trainer keeps it above its global_step
        inner = inner.rstrip("/").rpartition("/")[0]
        inner = f"{inner}/" if inner else ""
    files = tuple(found.folder + name for name in found.files)
    return _contents(folder, files, listing, f"{inner}{found.files[0].rpartition('/')[2]}", part)


def _contents(folder: Folder, files: Sequence[str], listing: Listing, beside: str, part: str | None) -> Contents:
    """Give tensors their final names, and read the configuration beside one of their files."""
    tensors, notes = leave_out_long(listing.tensors), [*listing.notes]
    ignored = tuple(name for name in weight_files(folder.names) if name not in files)
    source = msgspec.structs.replace(folder.source, files=tuple(files), ignored=ignored, part=part)
    tensors, renamed = unwrap(tensors, source.location, None if listing.part else part, listing.models)
    config, doubts = (listing.config, list[str]()) if listing.config else folder.config(beside)
    tensors, dequantised = dequantise(tensors, config)
    return Contents(source, config, tensors, (*notes, *renamed, *doubts, *dequantised))


def _beside(name: str, listing: Listing) -> list[str]:
    """Name the further files that a listing was read from, relative to the root."""
    folder = name.rpartition("/")[0]
    return [f"{folder}/{file}".lstrip("/") for file in listing.beside]


def require_files(files: Sequence[str], folder: Folder, promised_by: str) -> None:
    """Refuse a model whose files are not all there.

    Args:
        files: those that are needed.
        folder: what holds them.
        promised_by: the index that names them, or one of them.

    Raises:
        SourceError: some are missing.
    """
    missing = [name for name in files if not folder.has(name)]
    if not missing:
        return
    shown = listed((brief(name) for name in sorted(missing)), 4)
    there = [name for name in weight_files(folder.names) if name.rpartition("/")[0] == promised_by.rpartition("/")[0]]
    remedy = "the repository itself has no such files" if folder.source.kind == "hub" else "fetch it again"
    hint = ""
    if is_index(promised_by):
        glob = f"file='{all_of_its_set(there[0])}'" if there else "file="
        hint = (
            f"; where no such files belong to it, delete {promised_by}, or read what is there without the index: {glob}"
        )
    raise SourceError(f"{folder.source.location} lacks {shown}, which {promised_by} names: {remedy}{hint}")
