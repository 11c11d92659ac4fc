"""Safetensors files, read without their library: its numpy reader has no bfloat16."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from specdiag.checkpoint.distributed.sharding_info import saved_offsets
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.plain_values import Fill, plain_tensor, read_bytes, read_range
from specdiag.checkpoint.safetensors_header import FIRST_READ, Entry, read_header
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError


def list_safetensors(path: Path, label: str) -> Listing:
    """List every tensor of a safetensors file in the order of its data. Only the header is read.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        The tensors, their values not read.

    Raises:
        SourceError: the file cannot be read, is truncated, or its header is damaged.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error
    fill = partial(read_range, path, label)
    return list_by_ranges(label, size, read_bytes(fill, 0, min(size, FIRST_READ)), fill)


def list_by_ranges(label: str, size: int, head: bytes, fill: Fill) -> Listing:
    """List every tensor of a safetensors file that is read by `fill`, wherever it lies. Only the header is read.

    Args:
        label: its name in messages.
        size: of the whole file, bytes.
        head: its first `FIRST_READ` bytes, or all of them.
        fill: reads it; the tensors keep it.

    Returns:
        The tensors, their values not read.

    Raises:
        SourceError: the file is truncated, or its header is damaged. Errors of `fill` pass through.
    """
    header = read_header(label, size, head, partial(read_bytes, fill))
    tensors = [_stored(label, name, entry, header.data_start, fill) for name, entry in header.entries.items()]
    return Listing(tensors, offsets=saved_offsets(header.metadata, label))


def _stored(label: str, name: str, entry: Entry, data_start: int, fill: Fill) -> StoredTensor:
    begin, end = entry.data_offsets
    offset = data_start + begin
    return plain_tensor(name, entry.shape, entry.dtype, offset=offset, nbytes=end - begin, label=label, fill=fill)
