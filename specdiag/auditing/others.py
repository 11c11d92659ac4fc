"""The small tensors beside the matrices of a checkpoint: norm gains, biases and other float tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from specdiag.architecture.names import numbered
from specdiag.auditing.thresholds import Observation
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.scan import scan

_ELSEWHERE = re.compile(r"tied to .*|not selected|expert sampling.*|buffer.*|empty.*")
"""Reasons to leave a tensor out that is checked elsewhere, or may hold any value, as masks do."""
_GAIN = re.compile(r"(.*[._])?(\w*norm\w*|ln\w*)\.(weight|scale|gamma)")
_VARIANCE = re.compile(r"(.*\.)?running_var")
_MASK = re.compile(r".*mask(ed)?(_bias)?")


def others(checkpoint: Checkpoint) -> tuple[StoredTensor, ...] | None:
    """Find the float tensors of a checkpoint that are no matrices.

    Args:
        checkpoint: not read yet.

    Returns:
        Norm gains, biases and the like; None where tensors are not listed, as those of pipelines.
    """
    if checkpoint.stored is None:
        return None
    left_out = {s.name for s in checkpoint.skipped if not _ELSEWHERE.fullmatch(s.reason) or _VARIANCE.fullmatch(s.name)}
    return tuple(
        t
        for t in checkpoint.stored
        if t.name in left_out and t.reason is None and t.values_dtype in FLOAT_TYPES
        and 0 not in t.shape and not _MASK.fullmatch(t.name)
    )  # fmt: skip


def read_others(tensors: Sequence[StoredTensor]) -> Iterator[Observation]:
    """Find bad values in norm gains, biases and whatever else is no matrix.

    Args:
        tensors: as `others` found them; each is read once.

    Yields:
        Counts of values that are not finite, saturated, or negative variances; tensors that could not be read; the
        largest gain of each norm; norms whose gains are zero in every layer.
    """
    gains: dict[str, set[bool]] = {}
    for tensor in tensors:
        try:
            stored = tensor.read(None)
        except (SourceError, OSError) as error:
            yield Observation("failed", tensor.name, str(error))
            continue
        values = scan(np.ascontiguousarray(stored).reshape(1, 1, -1), FLOAT_TYPES[tensor.values_dtype])
        if values.n_nonfinite:
            yield Observation("nonfinite", tensor.name, values.n_nonfinite)
        if values.n_saturated:
            yield Observation("saturated", tensor.name, values.n_saturated)
        if _VARIANCE.fullmatch(tensor.name):
            widened = FLOAT_TYPES[tensor.values_dtype].widen(stored, np.dtype(np.float64))
            yield Observation("negative_variance", tensor.name, int(np.count_nonzero(widened < 0)))
        if _GAIN.fullmatch(tensor.name):
            if not values.n_saturated:
                yield Observation("large", tensor.name, values.largest)
            gains.setdefault(numbered(tensor.name), set()).add(values.largest == 0 and not values.n_nonfinite)
    dead = [name for name, zero in gains.items() if zero == {True}]
    yield from (Observation("zero_gains", name.replace("#", "*"), "all zero") for name in dead)
