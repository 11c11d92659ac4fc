"""Results kept by a matrix's values and settings: its row without the name, and its eigenvalues."""

from __future__ import annotations

import hashlib
import logging
import platform
import threading
import zlib
from pathlib import Path

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag.analysis.cache_check import contradiction
from specdiag.analysis.cache_store import Store
from specdiag.analysis.cost import flops
from specdiag.analysis.options import FARMS
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.files import msgpack_decoder
from specdiag.records import ModuleRecord, Settings
from specdiag.spectra.float_types import FloatType
from specdiag.spectra.identity import identity
from specdiag.spectra.measure import Eigenvalues
from specdiag.spectra.solvers import kernels
from specdiag.system.distributions import version

_log = logging.getLogger("specdiag")

RESULTS_VERSION = 7
"""Raised when the same values and settings give other numbers than before: what was kept is then computed anew."""
MIN_FLOPS = 2e7
"""Cheaper matrices (below about 200 x 200, 2 ms) are computed again: to read and check an entry takes a tenth of that,
and it takes a block and an inode of the disk."""


class _Entry(msgspec.Struct, frozen=True):
    record: ModuleRecord
    measured: bytes
    randomized: bytes | None


_decode = msgpack_decoder(_Entry)


class Results:
    """The kept results of one analysis.

    Attributes:
        n_found: how many matrices were not computed.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Args: folder: of the store. settings: of all matrices that are asked for.

        Raises:
            UsageError: everybody may write to the folder, or `$SPECDIAG_CACHE_SIZE` is no size.
        """
        self.store = Store(folder)
        self.n_found = 0
        self._settings = settings
        self._common = (
            RESULTS_VERSION,
            [version(name) for name in ("specdiag", "numpy", "scipy", "torch")],
            platform.machine(),
            kernels(),
            _accelerator(settings.device),
            ModuleRecord.__struct_fields__,
            settings.method,
            settings.dtype,
            settings.tail,
            settings.tail_fraction,
            *(getattr(settings, name) for name in FARMS),
        )
        self._lock = threading.Lock()

    def find(self, matrix: WeightMatrix, storage: FloatType, digest: str) -> tuple[ModuleRecord, Eigenvalues] | None:
        """Look up the row and the eigenvalues of a matrix, under its own name; None where they are to be computed.

        Args:
            matrix: which one.
            storage: the type of its values.
            digest: SHA-256 of its values in that type.
        """
        if flops(matrix, self._settings) < MIN_FLOPS:
            return None
        name = self._name(matrix, storage, digest)
        content = self.store.get(name)
        if content is None:
            return None
        try:
            record, eigenvalues = _opened(content)
        except (msgspec.DecodeError, ValueError) as error:
            return self.store.damaged(name, str(error))
        if problem := contradiction(record, eigenvalues, matrix, self._settings, digest):
            return self.store.damaged(name, problem)
        with self._lock:
            self.n_found += 1
        _log.debug("%s: from the cache", matrix.key)
        return replace(record, **identity(matrix)), eigenvalues

    def keep(self, matrix: WeightMatrix, storage: FloatType, record: ModuleRecord, eigenvalues: Eigenvalues) -> None:
        """Keep what was measured of a matrix, unless `find` would not believe it.

        Args:
            matrix: which one.
            storage: the type of its values.
            record: its row, with the digest of its values.
            eigenvalues: its spectra.
        """
        if record.digest is None or flops(matrix, self._settings) < MIN_FLOPS:
            return
        if contradiction(record, eigenvalues, matrix, self._settings, record.digest):
            return
        randomized = None if eigenvalues.randomized is None else eigenvalues.randomized.tobytes()
        entry = _Entry(record=record, measured=eigenvalues.measured.tobytes(), randomized=randomized)
        self.store.put(self._name(matrix, storage, record.digest), msgspec.msgpack.encode(entry))

    def _name(self, matrix: WeightMatrix, storage: FloatType, digest: str) -> str:
        """A hash of everything that the numbers depend on."""
        values: tuple[object, ...] = (digest, storage.name, storage.eps, matrix.shape, matrix.n_slices, matrix.rank)
        if matrix.ratios is not None:
            values += matrix.ratios
        if matrix.balanced_eps is not None:
            values += ("balanced", matrix.balanced_eps)
        if self._settings.randomize:  # the permutation is drawn by the name too
            values += (self._settings.seed, zlib.crc32(matrix.key.encode()))
        return hashlib.sha256(repr((*self._common, *values)).encode()).hexdigest()


def _opened(content: bytes) -> tuple[ModuleRecord, Eigenvalues]:
    """The row and the spectra of an entry.

    Raises:
        ValueError: it holds something else.
    """
    entry = _decode(content)
    randomized = None if entry.randomized is None else _array(entry.randomized)
    return entry.record, Eigenvalues(_array(entry.measured), randomized)


def _accelerator(device: str) -> str:
    """The kind of device, and of one that torch can name the model."""
    kind = device.partition(":")[0]
    if kind != "cuda":
        return kind
    import torch

    return f"{kind} {torch.cuda.get_device_name(device)}"


def _array(data: bytes) -> NDArray[np.float64]:
    return np.frombuffer(data, np.float64).copy()
