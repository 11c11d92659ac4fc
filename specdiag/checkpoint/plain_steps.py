"""The steps of a pickle that make most of any checkpoint, in one loop: numbers, names, tuples, and what refers to them.

Each does what `pickle` does there. A step that is not here, or whose bytes are not all in memory, is left over.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Protocol

from specdiag.checkpoint.pickle_window import Window

_GET, _PUT = pickle.BINGET[0], pickle.BINPUT[0]
_LONG_GET, _LONG_PUT = pickle.LONG_BINGET[0], pickle.LONG_BINPUT[0]
_BYTE, _SHORT, _INT, _TEXT = (code[0] for code in (pickle.BININT1, pickle.BININT2, pickle.BININT, pickle.BINUNICODE))
_MARK, _TUPLE, _EMPTY_TUPLE = pickle.MARK[0], pickle.TUPLE[0], pickle.EMPTY_TUPLE[0]
_TUPLE1, _TUPLE2 = pickle.TUPLE1[0], pickle.TUPLE2[0]
_FALSE, _OUTSIDE, _REDUCE = pickle.NEWFALSE[0], pickle.BINPERSID[0], pickle.REDUCE[0]
_LONGEST = 5
"""Bytes of a step, without the text that follows some."""


class Machine(Protocol):
    """An unpickler, as far as plain steps go."""

    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]

    def persistent_load(self, pid: object) -> object:
        """Load an object outside the pickle."""
        ...

    def make(self, maker: object, args: object) -> object:
        """Call a known function, or record the call."""
        ...


def run_plain_steps(machine: Machine, window: Window, deepest: int) -> None:
    """Carry out steps up to one that is left to the caller.

    Args:
        machine: its stacks and memo are changed.
        window: the bytes; it is left at the first step that was not carried out.
        deepest: number of containers that may be open at once.

    Raises:
        LookupError: a step takes from an empty stack.
        UnpicklingError: as `persistent_load` and `make` raise it, as all they raise.
    """
    data, position, end = window.data, window.position, len(window.data)
    stack, metastack, memo = machine.stack, machine.metastack, machine.memo
    append = stack.append
    u16, u32, i32 = (struct.Struct(form).unpack_from for form in ("<H", "<I", "<i"))
    last = end - _LONGEST
    while position <= last:
        code = data[position]
        if code == _GET:
            index = data[position + 1]
            if index not in memo:
                break
            append(memo[index])
            position += 2
        elif code == _LONG_PUT:
            memo[u32(data, position + 1)[0]] = stack[-1]
            position += 5
        elif code == _BYTE:
            append(data[position + 1])
            position += 2
        elif code == _MARK:
            if len(metastack) >= deepest:
                break
            metastack.append(stack)
            stack = []
            append = stack.append
            position += 1
        elif code == _TUPLE:
            items = tuple(stack)
            stack = metastack.pop()
            append = stack.append
            append(items)
            position += 1
        elif code == _TEXT:
            stop = position + 5 + u32(data, position + 1)[0]
            if stop > end:
                break
            append(str(data[position + 5 : stop], "utf-8", "surrogatepass"))
            position = stop
        elif code == _REDUCE:
            args = stack.pop()
            stack[-1] = machine.make(stack[-1], args)
            position += 1
        elif code == _TUPLE1:
            stack[-1] = (stack[-1],)
            position += 1
        elif code == _TUPLE2:
            stack[-2:] = [(stack[-2], stack[-1])]
            position += 1
        elif code == _PUT:
            memo[data[position + 1]] = stack[-1]
            position += 2
        elif code == _OUTSIDE:
            stack[-1] = machine.persistent_load(stack[-1])
            position += 1
        elif code == _FALSE:
            append(False)
            position += 1
        elif code == _EMPTY_TUPLE:
            append(())
            position += 1
        elif code == _SHORT:
            append(u16(data, position + 1)[0])
            position += 3
        elif code == _LONG_GET:
            index = u32(data, position + 1)[0]
            if index not in memo:
                break
            append(memo[index])
            position += 5
        elif code == _INT:
            append(i32(data, position + 1)[0])
            position += 5
        else:
            break
    machine.stack, window.position = stack, position
