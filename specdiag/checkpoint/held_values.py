"""Values that several matrices are made of: read once, and computed once, while a thread measures these."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from threading import local
from typing import TypeVar, TypeVarTuple, cast

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import RawArray

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Held(local):
    values: dict[Hashable, object] | None = None
    """By identity of the tensor and index, or by function and arguments; None where nothing is to be held."""


_held = _Held()


@contextmanager
def values_held() -> Generator[None]:
    """Hold what this thread reads and computes once, until the end of the context. Its sources must live as long."""
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
    return _once((id(tensor), index), lambda: tensor.read(index))


def compute_once(compute: Callable[[*_Ts], _T], *sources: *_Ts) -> _T:
    """Compute, or give what was computed of these sources before in `values_held`: nobody may write into that.

    Args:
        compute: a function.
        sources: its arguments, told apart by identity.
    """
    return _once((compute, *map(id, sources)), lambda: compute(*sources))


def _once(key: Hashable, get: Callable[[], _T]) -> _T:
    if _held.values is None:
        return get()
    if key not in _held.values:
        _held.values[key] = get()
    return cast("_T", _held.values[key])
