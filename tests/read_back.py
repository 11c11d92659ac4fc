"""Contents of an opened checkpoint, read for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import Checkpoint


def values(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """The whole tensor behind a matrix."""
    return next(matrix for matrix in checkpoint.matrices if matrix.name == name).tensor.read(None)


def assert_complete(checkpoint: Checkpoint) -> None:
    """Every tensor is a matrix, or was skipped with a reason."""
    names = {matrix.name for matrix in checkpoint.matrices} | {skipped.name for skipped in checkpoint.skipped}
    assert len(names) == checkpoint.n_tensors


def assert_stored(checkpoint: Checkpoint, truth: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the truth is there and no other, with its values, whole and by one index of its first axis."""
    assert_complete(checkpoint)
    assert checkpoint.stored is not None
    found = {tensor.name: tensor for tensor in checkpoint.stored}
    assert set(found) == set(truth)
    for name, expected in truth.items():
        stored, raw = found[name], expected
        if expected.dtype == torch.bfloat16:
            assert stored.dtype == "BF16"
            raw = expected.view(torch.uint16)
        assert stored.shape == tuple(expected.shape), name
        np.testing.assert_array_equal(stored.read(None), raw.numpy(), name)
        np.testing.assert_array_equal(stored.read(len(raw) - 1), raw.numpy()[-1], name)
        assert stored.nbytes == expected.nbytes
