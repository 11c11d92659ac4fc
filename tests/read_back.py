"""Contents of an opened checkpoint, read for tests."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from specdiag.checkpoint.tensors import Checkpoint


def values(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    """The whole tensor behind a matrix."""
    return next(matrix for matrix in checkpoint.matrices if matrix.name == name).tensor.read(None)


def assert_complete(checkpoint: Checkpoint) -> None:
    """Every tensor is a matrix, or was skipped with a reason."""
    names = {matrix.name for matrix in checkpoint.matrices} | {skipped.name for skipped in checkpoint.skipped}
    assert len(names) == checkpoint.n_tensors
