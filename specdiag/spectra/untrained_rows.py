"""Rows of an embedding or a head that training hardly touched, by their direction.

Method: Land and Bartolo 2024, arXiv 2405.05417. Rows that no text asks for are all moved alike, so that they share a
direction once the mean and the first principal component of the table are taken out. The score of a row is its cosine
to the mean of rows that are known to be such. Where none is known, the ten rows with the nearest neighbours stand in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray
from specdiag.spectra.limits import UNTOUCHED_SCORE

_COHERENT = UNTOUCHED_SCORE**2
"""Least mean cosine between reference rows: a row of that cosine to each has the limit's cosine to their mean."""
_NEIGHBOUR, _DENSEST = 8, 10
_CANDIDATES = 256
_COLUMNS = 1024
_LEAST_ROWS = 64
_BLOCK_VALUES = 1 << 21
_SAMPLE_VALUES = 1 << 26
"""Values of which the principal component is computed: tables up to this size whole, of others evenly spaced rows."""
_FLOPS = 2e11
"""Work of the search for near neighbours, in fewer dimensions where the table would take more."""
_DIMENSIONS = 32
_SUBSPACE, _ROUNDS = 8, 24
_SMALL, _LARGE = 2.0**-40, 2.0**40
"""Largest values between which sums of fourth powers stay in float32."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowScores:
    """The scores of a table.

    Attributes:
        norms: Frobenius norm of each row, over a power of two where the squares of the values leave float32.
        scores: cosine of each row to the reference; None where there is no reference.
        reference: the rows whose mean it is, empty without one.
        coherence: mean cosine between the reference rows, also where it was too low; None where none were found.
        is_known: whether the reference rows were given.
    """

    norms: Floats
    scores: Floats | None
    reference: tuple[int, ...]
    coherence: float | None
    is_known: bool


def score_rows(raw: RawArray, kind: FloatType, reserved: Sequence[int] = ()) -> RowScores:
    """Score every row of a table.

    Memory beside the table: a sample of it in float32 (256 MiB at most) and some blocks of rows. Mean, norms and scores
    are those of all rows.

    Args:
        raw: the table as it is stored, shape [V, d].
        kind: its type.
        reserved: rows that are known to be untouched; at least three are needed, else they are searched for.

    Returns:
        The scores; none where values are not finite, or no reference is found.
    """
    raw, kind = _in_range(raw, kind)
    mean, norms = _mean_and_norms(raw, kind)
    if not np.isfinite(norms).all():
        return RowScores(norms, None, (), None, bool(reserved))
    axis = _first_axis(raw, kind, mean)
    is_known = len(reserved) >= 3
    rows = tuple(reserved) if is_known else _densest(raw, kind, mean, axis)
    if not rows:
        return RowScores(norms, None, (), None, is_known)
    units = _units(raw[list(rows)], kind, mean, axis)
    total = units.sum(axis=0, dtype=np.float64)
    n = len(rows)
    coherence = float((total @ total - n) / (n * (n - 1)))
    if coherence < (_COHERENT if is_known else _least_density(raw.shape)):
        return RowScores(norms, None, rows if is_known else (), coherence, is_known)
    direction = (total / np.linalg.norm(total)).astype(np.float32)
    scores = np.concatenate([_units(block, kind, mean, axis) @ direction for block in _blocks(raw)])
    return RowScores(norms, scores, rows, coherence, is_known)


def _blocks(raw: RawArray) -> Iterator[RawArray]:
    step = max(1, _BLOCK_VALUES // raw.shape[1])
    return (raw[start : start + step] for start in range(0, raw.shape[0], step))


def _in_range(raw: RawArray, kind: FloatType) -> tuple[RawArray, FloatType]:
    """Divide very large and very small tables by a power of two, which changes no cosine. Such a one is copied."""
    wide = np.dtype(np.float64)
    largest = max((float(np.abs(kind.widen(block, wide)).max(initial=0.0)) for block in _blocks(raw)), default=0.0)
    if not math.isfinite(largest) or largest == 0 or _SMALL < largest < _LARGE:
        return raw, kind
    exponent = math.frexp(largest)[1]
    scaled = [np.ldexp(kind.widen(block, wide), -exponent).astype(np.float32) for block in _blocks(raw)]
    return np.concatenate(scaled), FLOAT_TYPES["F32"]


def _mean_and_norms(raw: RawArray, kind: FloatType) -> tuple[Floats, Floats]:
    total, norms = np.zeros(raw.shape[1]), np.empty(raw.shape[0], np.float32)
    start = 0
    for block in _blocks(raw):
        wide = kind.widen(block, np.dtype(np.float32))
        total += wide.sum(axis=0, dtype=np.float64)
        norms[start : start + len(wide)] = np.linalg.norm(wide, axis=1)
        start += len(wide)
    return (total / raw.shape[0]).astype(np.float32), norms


def _first_axis(raw: RawArray, kind: FloatType, mean: Floats) -> Floats:
    """Compute the first principal component, of a sample where the table is large, by subspace iteration."""
    step = -(-raw.size // _SAMPLE_VALUES)
    sample = kind.widen(raw[::step], np.dtype(np.float32)) - mean
    basis = np.random.default_rng(0).standard_normal((raw.shape[1], min(_SUBSPACE, raw.shape[1]))).astype(np.float32)
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    _, vectors = np.linalg.eigh((image := sample @ basis).T @ image)
    return np.ascontiguousarray(basis @ vectors[:, -1])


def _units(block: RawArray, kind: FloatType, mean: Floats, axis: Floats) -> Floats:
    """Give the directions of rows without the mean and the first component; a row of neither has none, and is 0."""
    rest = kind.widen(block, np.dtype(np.float32)) - mean
    rest -= np.outer(rest @ axis, axis)
    norms = np.linalg.norm(rest, axis=1, keepdims=True)
    rest /= np.where(norms > 0, norms, np.float32(1))
    return rest


def _densest(raw: RawArray, kind: FloatType, mean: Floats, axis: Floats) -> tuple[int, ...]:
    """Find the rows whose 8th-nearest neighbours are the nearest.

    Candidates are found in a random projection, whose size the work allows, and compared in all dimensions. Neighbours
    are looked for in columns of rows that lie far apart in the table: two in one column count once.
    """
    n, d = raw.shape
    if n < _LEAST_ROWS:
        return ()
    size = min(d, max(_DIMENSIONS, int(_FLOPS / (2 * n * n))))
    projection = np.random.default_rng(0).standard_normal((d, size)).astype(np.float32) if size < d else None
    narrow = np.concatenate([_projected(_units(block, kind, mean, axis), projection) for block in _blocks(raw)])
    columns = min(_COLUMNS, n)
    padded = np.zeros((-(-n // columns) * columns, size), np.float32)
    padded[:n] = narrow
    density = np.empty(n, np.float32)
    rows = max(1, 4 * _BLOCK_VALUES // len(padded))
    for start in range(0, n, rows):
        cosines = narrow[start : start + rows] @ padded.T
        nearest = cosines.reshape(len(cosines), -1, columns).max(axis=1)
        density[start : start + rows] = _nth_largest(nearest)
    candidates = np.sort(np.argsort(-density, kind="stable")[:_CANDIDATES])
    units = _units(raw[candidates], kind, mean, axis)
    exact = _nth_largest(units @ units.T)
    best = candidates[np.argsort(-exact, kind="stable")[:_DENSEST]]
    return tuple(int(row) for row in np.sort(best))


def _projected(units: Floats, projection: Floats | None) -> Floats:
    if projection is None:
        return units
    narrow = units @ projection
    norms = np.linalg.norm(narrow, axis=1, keepdims=True)
    narrow /= np.where(norms > 0, norms, np.float32(1))
    return narrow


def _nth_largest(cosines: Floats) -> Floats:
    """Give each row's 8th-largest cosine but for its own, which is 1."""
    return np.partition(cosines, -_NEIGHBOUR - 1, axis=1)[:, -_NEIGHBOUR - 1]


def _least_density(shape: tuple[int, ...]) -> float:
    """Give the mean cosine that ten of V random directions in d dimensions do not reach: ours, by extreme values.

    The largest of V cosines of sd 1/sqrt(d) is about sqrt(2 ln V / d).
    """
    n, d = shape
    return max(UNTOUCHED_SCORE, math.sqrt(2 * math.log(n) / d))
