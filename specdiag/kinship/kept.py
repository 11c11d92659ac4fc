"""Fingerprints kept between calls: by the files that were read, their sizes and times, or the commit on the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from specdiag.analysis.cache_store import Store
from specdiag.checkpoint.fingerprint import fingerprint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.files import msgpack_decoder, read_whole
from specdiag.function.arrays import Array
from specdiag.kinship.fingerprint import Fingerprint
from specdiag.kinship.spectra import BlockSpectra
from specdiag.system.distributions import version

_VERSION = 1
"""Raised when the same weights give other spectra than before."""


class _Values(msgspec.Struct, frozen=True):
    shape: tuple[int, ...]
    data: bytes


class _Block(msgspec.Struct, frozen=True):
    component: str | None
    layer: int | None
    qk: _Values
    ov: _Values
    mlps: tuple[dict[str, _Values], ...]
    scales: bool


_decode = msgpack_decoder(tuple[_Block, ...])


class KeptFingerprints:
    """Fingerprints in a folder of results."""

    def __init__(self, folder: Path, device: str) -> None:
        """Args: folder: of the store. device: on which spectra are computed."""
        self._store = Store(folder)
        self._device = device

    def find(self, checkpoint: Checkpoint) -> Fingerprint | None:
        """Look a model up; None where it is to be measured.

        Args:
            checkpoint: an open one.
        """
        name = self._name(checkpoint)
        content = None if name is None else self._store.get(name)
        if name is None or content is None:
            return None
        try:
            return Fingerprint(tuple(_opened(block) for block in _decode(content)))
        except (msgspec.DecodeError, ValueError) as error:
            return self._store.damaged(name, str(error))

    def keep(self, checkpoint: Checkpoint, found: Fingerprint) -> None:
        """Keep what was measured of a model.

        Args:
            checkpoint: an open one.
            found: its fingerprint; one with a problem is not kept.
        """
        name = self._name(checkpoint)
        if name is not None and found.problem is None:
            self._store.put(name, msgspec.msgpack.encode([_packed(block) for block in found.blocks]))
            self._store.trim()

    def _name(self, checkpoint: Checkpoint) -> str | None:
        """Hash everything that the spectra depend on; None of a model in memory."""
        source = checkpoint.source
        mark = source.commit or fingerprint(source)
        if mark is None or (source.kind == "hub" and source.base is not None):
            return None
        own = checkpoint.opening.role_path
        opening = (checkpoint.opening.part, checkpoint.opening.base, None if own is None else read_whole(own))
        rest = (source.location, source.files, mark, opening, repr(checkpoint.config), self._device)
        return hashlib.sha256(repr(("lineage", _VERSION, version("specdiag"), rest)).encode()).hexdigest()


def _packed(block: BlockSpectra) -> _Block:
    mlps = tuple({role: _values(sigma) for role, sigma in mlp.items()} for mlp in block.mlps)
    return _Block(block.component, block.layer, _values(block.qk), _values(block.ov), mlps, block.scales)


def _values(array: Array) -> _Values:
    return _Values(array.shape, np.ascontiguousarray(array).tobytes())


def _opened(block: _Block) -> BlockSpectra:
    mlps = tuple({role: _array(sigma) for role, sigma in mlp.items()} for mlp in block.mlps)
    return BlockSpectra(block.component, block.layer, _array(block.qk), _array(block.ov), mlps, block.scales)


def _array(values: _Values) -> Array:
    """Give the array of an entry.

    Raises:
        ValueError: its bytes do not fit its shape.
    """
    return np.frombuffer(values.data, dtype=np.float64).reshape(values.shape)
