"""Folders of torch.distributed.checkpoint: `.metadata`, and the files of chunks beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from specdiag.checkpoint.distributed.joining import Piece, join_pieces
from specdiag.checkpoint.distributed.metadata import Metadata, SavedTensor, StoredChunk, read_metadata
from specdiag.checkpoint.distributed.model import choose_model
from specdiag.checkpoint.distributed.stacked import is_megatron, read_run, unstack_layers
from specdiag.checkpoint.distributed.values import ChunkValues
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import METADATA
from specdiag.checkpoint.shards import stays_inside
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import spelled_type
from specdiag.errors import SourceError
from specdiag.files import Table
from specdiag.system.paused_collection import paused_collection


@paused_collection()
def list_distributed(path: Path, label: str, part: str | None = None) -> Listing:
    """List the weights of a distributed checkpoint. Its `.metadata` is read, and the sizes of the other files.

    Args:
        path: of `.metadata`.
        label: its name in messages.
        part: keys, joined with dots, that lead to one of several models in it; None for its only one.

    Returns:
        The weights, each joined from its chunks when it is read; notes on what was left out.

    Raises:
        SourceError: it is damaged or unsupported, a file is missing, or chunks do not cover their tensor.
    """
    where = label.rpartition("/")[0] or "."
    metadata = read_metadata(path, label)
    model = choose_model(metadata.tensors, where, part)
    chosen, notes = model.flat_names, model.notes
    tensors, files = stored_tensors(metadata, chosen, path.parent, where)
    config: Table = {}
    if is_megatron(path.parent, where):
        tensors, stacked = unstack_layers(tensors, where)
        config, doubts = read_run(path.parent, where)
        notes += [*stacked, *doubts]
    taken = part if model.is_part else None
    return Listing(tensors, tuple(notes), config, tuple(sorted(files)), part=taken, models=model.models)


def stored_tensors(
    metadata: Metadata, chosen: Mapping[str, str], folder: Path, where: str
) -> tuple[list[StoredTensor], dict[str, Path]]:
    """Find the chunks of some tensors. The sizes of their files are checked, and nothing is read.

    Args:
        metadata: of the checkpoint.
        chosen: flat names by the names that the tensors get.
        folder: of the checkpoint.
        where: its name in messages.

    Returns:
        The tensors, each joined from its chunks when it is read, and the files that hold them by their names there.

    Raises:
        SourceError: a file is missing or too short, or chunks do not cover their tensor.
    """
    chunks = metadata.chunks(set(chosen.values()))
    for flat in chosen.values():
        _check_sizes(flat, metadata.tensors[flat], chunks[flat], where)
    stored = [chunk for group in chunks.values() for chunk in group]
    files = _files(folder, {chunk.file for chunk in stored}, where)
    tensors = [_tensor(name, flat, metadata.tensors[flat], chunks[flat], files, where) for name, flat in chosen.items()]
    _check_lengths(stored, files, where)
    return tensors, files


def find_files(folder: Path, chunks: Collection[StoredChunk], where: str) -> dict[str, Path]:
    """Find the files of chunks, which have to lie in the folder and be long enough.

    Args:
        folder: of the checkpoint.
        chunks: of tensors, or objects.
        where: the folder's name in messages.

    Raises:
        SourceError: one is missing, too short or elsewhere.
    """
    files = _files(folder, {chunk.file for chunk in chunks}, where)
    _check_lengths(chunks, files, where)
    return files


def _tensor(
    name: str, flat: str, saved: SavedTensor, chunks: Sequence[StoredChunk], files: Mapping[str, Path], where: str
) -> StoredTensor:
    dtype = spelled_type(saved.dtype)
    values = [
        ChunkValues(files[file], f"{where}/{file}", begin, length, flat, offsets, sizes, dtype)
        for offsets, sizes, file, begin, length in chunks
    ]
    pieces = [Piece(chunk.offsets, chunk.sizes, chunk.read) for chunk in values]
    nbytes = math.prod(saved.shape) * saved.dtype.itemsize
    return join_pieces(name, saved.shape, dtype, pieces, nbytes=nbytes, label=where)


def _check_sizes(flat: str, saved: SavedTensor, chunks: Sequence[StoredChunk], where: str) -> None:
    """Refuse chunks that are larger than what is stored for them: their values would be made of nothing."""
    for chunk in chunks:
        n_bytes = math.prod(chunk.sizes) * saved.dtype.itemsize
        if n_bytes > chunk.length:
            raise SourceError(
                f"{where} stores {chunk.length} bytes for the chunk of '{brief(flat)}' at {list(chunk.offsets)}, which "
                f"has {n_bytes}: it is damaged, fetch it again"
            )


def _files(folder: Path, names: Iterable[str], where: str) -> dict[str, Path]:
    """Find the files of chunks, which have to lie in the folder."""
    paths = {name: _inside(folder, name, where) for name in names}
    missing = sorted(name for name, path in paths.items() if not path.is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"{where} lacks {brief(missing[0])}{more}, which its {METADATA} names: fetch it again")
    return paths


def _check_lengths(chunks: Iterable[StoredChunk], files: Mapping[str, Path], where: str) -> None:
    """Refuse files that are shorter than their chunks together: a small file could claim to be a large tensor."""
    needed: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for chunk in chunks:
        end, total = needed[chunk.file]
        needed[chunk.file] = max(end, chunk.begin + chunk.length), total + chunk.length
    for name, path in files.items():
        size = path.stat().st_size
        if max(needed[name]) > size:
            raise SourceError(
                f"'{where}/{name}' has {size} bytes, and its {METADATA} names {max(needed[name])}: "
                "it was cut short, or is of another save; fetch it again"
            )


def _inside(folder: Path, file: str, where: str) -> Path:
    """Give the path of a file that `.metadata` names, which must not lead out of its folder."""
    if not stays_inside(file):
        raise SourceError(
            f"'{where}/{METADATA}' is damaged: it names {brief(repr(file))}, no file inside its own folder"
        )
    path = folder / file
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # a circle of links, which is no file
        return path
    if not any(real.is_relative_to(root) for root in (home, *_store(home))):
        raise SourceError(f"'{where}/{brief(file)}' is a link that leads out of its folder: copy the file there")
    return path


def _store(folder: Path) -> list[Path]:
    """Find where the hub's cache keeps the files that a snapshot links to."""
    return [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
