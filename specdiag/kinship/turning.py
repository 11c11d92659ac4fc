"""The turn of the residual stream between two models: the rotation that takes embeddings of one to the other's.

If x is the stream of the first, T'x is that of the second: its readers are W T, its writers T'W, its embeddings E T.
The least-squares T is the orthogonal factor of E_a'E_b (Schoenemann 1966, Psychometrika 31).
"""

from __future__ import annotations

import numpy as np

from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.function.arrays import Array
from specdiag.spectra.float_types import FLOAT_TYPES


def turn_between(a: Checkpoint, b: Checkpoint, width: int | None) -> Array | None:
    """Find the turn by the largest embeddings of both models.

    Args:
        a: a model.
        b: another.
        width: d of both.

    Returns:
        T, shape [d, d]; None where the models have no such tables of one shape, of d rows or more.

    Raises:
        SourceError: a tensor cannot be read.
    """
    first, second = (_embedding(model) for model in (a, b))
    if first is None or second is None or first.shape != second.shape or width != first.shape[1]:
        return None
    if first.shape[0] < first.shape[1]:
        return None
    one, other = (_values(matrix) for matrix in (first, second))
    product = one.T @ other
    if not np.isfinite(product).all():
        return None
    left, _, right = np.linalg.svd(product)
    return left @ right


def _embedding(model: Checkpoint) -> WeightMatrix | None:
    tables = [m for m in model.matrices if m.module.role == "embed" and len(m.shape) == 2 and m.rank is None]
    return max(tables, key=lambda m: m.shape[0], default=None)


def _values(matrix: WeightMatrix) -> Array:
    raw = matrix.slicer.cut(matrix.tensor.read(matrix.slicer.index))[0]
    return FLOAT_TYPES[matrix.tensor.values_dtype].widen(raw, np.dtype(np.float64))
