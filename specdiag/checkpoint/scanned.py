"""Layers that lie in one tensor each, taken apart: every layer gets tensors of its own, read on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from msgspec.structs import replace

from specdiag.architecture.scanned import Scan, find_scanned
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import RawArray

Read = Callable[[int | None], RawArray]


def split_scanned(tensors: Sequence[StoredTensor]) -> tuple[list[StoredTensor], list[str]]:
    """Put the tensors of the layers into the place of those that hold several, as scans of Flax store them.

    Args:
        tensors: all tensors under their final names.

    Returns:
        The tensors, and a note for each module that was taken apart.
    """
    scans = find_scanned({tensor.name: tensor.shape for tensor in tensors})
    apart = [layer for t in tensors for layer in (_layers(t, scans[t.name]) if t.name in scans else [t])]
    notes = [
        f"The {scan.n_layers} layers of {scan.path} lie in one tensor each: they are listed as {scan.path}.0 to "
        f"{scan.path}.{scan.n_layers - 1}."
        for scan in dict.fromkeys(scans.values())
    ]
    return apart, notes


def _layers(tensor: StoredTensor, scan: Scan) -> list[StoredTensor]:
    shape = tensor.shape[: scan.axis] + tensor.shape[scan.axis + 1 :]
    read_layer = _read_first if scan.axis == 0 else _read_second
    return [
        replace(
            tensor,
            name=scan.layer(tensor.name, index),
            shape=shape,
            nbytes=tensor.nbytes // scan.n_layers,
            read=partial(read_layer, tensor.read, tensor.shape[0], index),
            storage=None if tensor.storage is None else (tensor.storage, index),
        )
        for index in range(scan.n_layers)
    ]


def _read_first(read: Read, n: int, layer: int, index: int | None) -> RawArray:
    """Read a layer of a tensor [layers, ...]."""
    del n
    values = read(layer)
    return values if index is None else values[index]


def _read_second(read: Read, n: int, layer: int, index: int | None) -> RawArray:
    """Read a layer of a tensor [n, layers, ...], one index of the first axis at a time."""
    if index is not None:
        return read(index)[layer]
    return np.stack([read(first)[layer] for first in range(n)])
