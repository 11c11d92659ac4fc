"""Values of stored tensors that several matrices are made of: read once while a thread measures these."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from threading import local

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import RawArray


class _Held(local):
    values: dict[tuple[int, int | None], RawArray] | None = None
    """By identity of the tensor and index; None where nothing is to be held."""


_held = _Held()


@contextmanager
def values_held() -> Generator[None]:
    """Hold what this thread reads by `read_once`, until the end of the context. The tensors must live as long."""
    _held.values = {}
    try:
        yield
    finally:
        _held.values = None


def read_once(tensor: StoredTensor, index: int | None) -> RawArray:
    """Read a tensor, or give what was read of it before in `values_held`: nobody may write into that.

    Args:
        tensor: which one.
        index: of its first axis, None for the whole.

    Raises:
        SourceError: the file is gone, was cut short or is damaged.
    """
    if _held.values is None:
        return tensor.read(index)
    place = id(tensor), index
    if place not in _held.values:
        _held.values[place] = tensor.read(index)
    return _held.values[place]
