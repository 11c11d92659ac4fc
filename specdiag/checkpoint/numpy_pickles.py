"""Arrays and numbers of numpy within pickles, recognised and read without making them."""

from __future__ import annotations

import struct
from typing import cast

from specdiag.checkpoint.inert import Inert

_MODULES = ("numpy.core.", "numpy._core.", "numpy.")
_ARRAYS = ("multiarray._reconstruct", "numeric._frombuffer")
_SCALAR = "multiarray.scalar"
_FORMS = {
    "f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u8": "Q", "u4": "I", "u2": "H",
    "u1": "B", "b1": "?",
}  # fmt: skip
"""struct's letters for numpy's types."""


def is_array(value: object) -> bool:
    """Tell an array of numpy that was not made."""
    return isinstance(value, Inert) and _name(value) in _ARRAYS


def plain_number(value: object) -> object:
    """Read a number of numpy; anything else stays what it is.

    Args:
        value: what a torch file holds.
    """
    if not isinstance(value, Inert) or _name(value) != _SCALAR or len(value.args) != 2:
        return value
    kind, data = value.args
    if not isinstance(kind, Inert) or not kind.args or not isinstance(data, bytes):
        return value
    form = _FORMS.get(str(kind.args[0]))
    order = ">" if _is_big(kind) else "<"
    if form is None or struct.calcsize(order + form) != len(data):
        return value
    return struct.unpack(order + form, data)[0]


def _is_big(kind: Inert) -> bool:
    state = kind.state[0] if kind.state else None
    return isinstance(state, tuple) and ">" in cast("tuple[object, ...]", state)[1:2]


def _name(value: Inert) -> str:
    name = value.made_by.name
    return next((name.removeprefix(module) for module in _MODULES if name.startswith(module)), "")
