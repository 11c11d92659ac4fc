"""From units to rows: read, scanned and measured one after the other, tiny matrices of one shape together."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from specdiag.analysis.batches import Batch, Unit
from specdiag.analysis.cache import Results
from specdiag.checkpoint.held_values import read_once, values_held
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.errors import ComputationError, SourceError
from specdiag.records import ModuleRecord, Settings
from specdiag.spectra.float_types import FloatType, RawArray
from specdiag.spectra.measure import Eigenvalues, failed, measure
from specdiag.spectra.scan import Scan, scan, scans
from specdiag.spectra.together import spectra

if TYPE_CHECKING:
    from specdiag.spectra.eigenvalues import Spectrum

_log = logging.getLogger("specdiag")

Result = tuple[WeightMatrix, ModuleRecord, Eigenvalues]

_small_batch = Lock()
"""Small units are bound by the interpreter: two threads that share it need a quarter more time than one."""
_TINY_VALUES = 1 << 12
"""The most values of a matrix that is measured together with others: a batch takes little memory."""


@dataclass(frozen=True, slots=True)
class Read:
    """A matrix that was read: its raw values of shape [s, rows, cols], their type and what is wrong with them."""

    matrix: WeightMatrix
    stack: RawArray
    storage: FloatType
    scanned: Scan


def measure_units(batch: Batch, settings: Settings, kept: Results | None) -> list[Result]:
    """Measure all matrices of a batch.

    Args:
        batch: units that one worker takes.
        settings: what to compute.
        kept: results that need not be computed.
    """
    with _small_batch if batch.kind == "small" else values_held() if batch.kind == "family" else nullcontext():
        tiny = [unit for unit in batch.units if batch.kind == "small" and _is_tiny(unit)]
        return _measure_tiny(tiny, settings) + [
            measure_read(item, settings, None, kept) if isinstance(item, Read) else item
            for unit in batch.units
            if batch.kind != "small" or not _is_tiny(unit)
            for item in read_unit(unit, settings, kept)
        ]


def _is_tiny(unit: Unit) -> bool:
    (matrix,) = unit.matrices
    return matrix.balanced_eps is None and math.prod(matrix.slicer.shape) <= _TINY_VALUES


def _measure_tiny(units: Sequence[Unit], settings: Settings) -> list[Result]:
    """Measure one matrix of each unit, those of one shape and type together."""
    results: list[Result] = []
    alike: dict[tuple[tuple[int, ...], FloatType], list[tuple[WeightMatrix, RawArray]]] = defaultdict(list)
    for unit in units:
        raw, (matrix,) = _values(unit), unit.matrices
        if raw is None:
            results.append(_without_numbers(matrix, settings))
        else:
            stack = matrix.slicer.cut(raw)
            alike[stack.shape, matrix.float_type(stack)].append((matrix, stack))
    for (_, storage), group in alike.items():
        stacks = np.array([stack for _, stack in group])
        scanned = scans(stacks, storage)
        solved = spectra(stacks, storage, scanned, settings)
        results += [
            measure_read(Read(matrix, stack, storage, facts), settings, full, None)
            for (matrix, _), stack, facts, full in zip(group, stacks, scanned, solved, strict=True)
        ]
    return results


def _values(unit: Unit) -> RawArray | None:
    """Read what a unit is cut from; None, and a line in the log, where that cannot be."""
    try:
        return read_once(unit.tensor, unit.index)
    except (SourceError, OSError) as error:
        _log.error("%s could not be read: %s", unit.tensor.name, error)
        return None


def read_unit(unit: Unit, settings: Settings, kept: Results | None) -> Iterator[Read | Result]:
    """Read each matrix of a unit.

    Args:
        unit: what is read at once.
        settings: what to compute.
        kept: results that need not be computed.

    Yields:
        The matrix with its raw values; its row where that was kept, or where the tensor cannot be read.
    """
    raw = _values(unit)
    if raw is None:
        yield from (_without_numbers(matrix, settings) for matrix in unit.matrices)
        return
    for matrix in unit.matrices:
        stack = np.ascontiguousarray(matrix.slicer.cut(raw))
        storage = matrix.float_type(stack)
        # The cache alone asks for the digest of a balanced form: no report shows its row.
        scanned = scan(stack, storage, with_digest=kept is not None or matrix.balanced_eps is None)
        found = None if kept is None or scanned.digest is None else kept.find(matrix, storage, scanned.digest)
        yield Read(matrix, stack, storage, scanned) if found is None else (matrix, *found)


def measure_read(item: Read, settings: Settings, solved: Spectrum | None, kept: Results | None) -> Result:
    """Measure a matrix.

    Args:
        item: its values.
        settings: what to compute.
        solved: its spectrum, where that was computed.
        kept: receives the row.
    """
    if solved is None and settings.device != "cpu":
        settings = replace(settings, dtype="float64")
    try:
        record, eigenvalues = measure(item.matrix, item.stack, item.storage, item.scanned, settings, solved)
    except ComputationError as error:
        _log.error("%s: %s", item.matrix.key, error)
        return _without_numbers(item.matrix, settings)
    if kept is not None:
        kept.keep(item.matrix, item.storage, record, eigenvalues)
    _log.debug("%s: %s, alpha %s", record.key, record.status, record.alpha)
    return item.matrix, record, eigenvalues


def _without_numbers(matrix: WeightMatrix, settings: Settings) -> Result:
    return matrix, failed(matrix, settings), Eigenvalues(np.empty(0))
