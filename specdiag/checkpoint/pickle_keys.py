"""Keys of dictionaries and elements of sets in a pickle, accepted where hashing them is harmless."""

from __future__ import annotations

import pickle
from typing import cast

import torch

from specdiag.checkpoint.inert import ForeignClass, Inert

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype)
_KEY_DEPTH = 8
_KEY_PARTS = 1000
_KEY_BITS = 1 << 16


def checked_key(key: object) -> object:
    """Give a key back if hashing it is harmless: Python crashes on tuples that are nested 100,000 deep.

    Args:
        key: of a dictionary, or an element of a set.

    Returns:
        The key.

    Raises:
        UnpicklingError: it is of a type that is not known to be harmless, or nested too deep, or hashing it takes long:
            each dictionary would do so again.
    """
    if type(key) is not str:
        _count_parts(key)
    return key


def _count_parts(key: object, depth: int = 0) -> int:
    """Count what is hashed with a key, shared tuples as often as they occur."""
    if isinstance(key, int) and key.bit_length() > _KEY_BITS:
        raise pickle.UnpicklingError(f"a key of {key.bit_length()} bits")
    if isinstance(key, (*_PLAIN, Inert, ForeignClass, torch.Tensor)):
        return 1
    if not isinstance(key, (tuple, frozenset)) or depth >= _KEY_DEPTH:
        raise pickle.UnpicklingError(f"a key of the type {type(key).__name__}")
    n_parts = 1
    for inner in cast("tuple[object, ...]", key):
        n_parts += _count_parts(inner, depth + 1)
        if n_parts > _KEY_PARTS:
            raise pickle.UnpicklingError(f"a key of more than {_KEY_PARTS} parts")
    return n_parts
