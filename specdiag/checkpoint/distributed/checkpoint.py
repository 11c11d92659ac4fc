"""Folders of torch.distributed.checkpoint: `.metadata`, and the files of chunks beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from specdiag.checkpoint.distributed.joining import Piece, join_pieces
from specdiag.checkpoint.distributed.metadata import SavedTensor, StoredChunk, read_metadata
from specdiag.checkpoint.distributed.model import choose_model
from specdiag.checkpoint.distributed.values import ChunkValues
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import METADATA
from specdiag.checkpoint.shards import stays_inside
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import spelled_type
from specdiag.errors import SourceError


def list_distributed(path: Path, label: str) -> Listing:
    """List the weights of a distributed checkpoint. Its `.metadata` is read, and the sizes of the other files.

    Args:
        path: of `.metadata`.
        label: its name in messages.

    Returns:
        The weights, each joined from its chunks when it is read; notes on what was left out.

    Raises:
        SourceError: it is damaged or unsupported, a file is missing, or chunks do not cover their tensor.
    """
    where = label.rpartition("/")[0] or "."
    metadata = read_metadata(path, label)
    chosen, notes = choose_model(metadata.tensors, where)
    chunks = metadata.chunks(set(chosen.values()))
    for flat in chosen.values():
        _check_sizes(flat, metadata.tensors[flat], chunks[flat], where)
    files = _checked_files(path.parent, [chunk for group in chunks.values() for chunk in group], where)
    tensors = [_tensor(name, flat, metadata.tensors[flat], chunks[flat], files, where) for name, flat in chosen.items()]
    return Listing(tensors, tuple(notes), beside=tuple(sorted(files)))


def _tensor(
    name: str, flat: str, saved: SavedTensor, chunks: Sequence[StoredChunk], files: dict[str, Path], where: str
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


def _checked_files(folder: Path, chunks: Iterable[StoredChunk], where: str) -> dict[str, Path]:
    """Find the files of chunks, and check that they lie in the folder and are as long as it takes."""
    ends: defaultdict[str, int] = defaultdict(int)
    totals: defaultdict[str, int] = defaultdict(int)
    for chunk in chunks:
        ends[chunk.file] = max(ends[chunk.file], chunk.begin + chunk.length)
        totals[chunk.file] += chunk.length
    paths = {file: _inside(folder, file, where) for file in ends}
    missing = [file for file, path in paths.items() if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise SourceError(f"{where} lacks {brief(missing[0])}{more}, which its {METADATA} names: fetch it again")
    for file, path in paths.items():
        size = path.stat().st_size
        if max(ends[file], totals[file]) > size:
            raise SourceError(
                f"'{where}/{file}' has {size} bytes, and its {METADATA} names {max(ends[file], totals[file])}: "
                "it was cut short, or is of another save; fetch it again"
            )
    return paths


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
