"""Unpickling that imports and runs nothing: an object that a pickle wants to make becomes an inert record of it."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sized
from typing import IO, Any, ClassVar, cast

from specdiag.checkpoint.inert import ForeignClass, Inert
from specdiag.checkpoint.pickle_keys import checked_key
from specdiag.checkpoint.pickle_window import Window
from specdiag.checkpoint.plain_steps import run_plain_steps

Maker = Callable[..., object]
_TENSOR_TAKES = 4
"""Arguments of a function that makes a tensor, at least; those that copy take fewer."""
_TEXT_OF_ONE = 256
"""Characters that count as much as a container."""
_LISTED = 1000
_OPEN = 100_000
MOST_OBJECTS = 1_000_000
"""Largest number of containers and inert objects in one file.

Each takes some hundred bytes of memory, and may take a single byte of the file.
"""


class CrowdedError(Exception):
    """A pickle of more than any checkpoint has. The message says what it holds."""


_PLAIN_LOAD: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)  # pyright: ignore


def _counting(code: bytes) -> Callable[[InertUnpickler], None]:
    """Make a step that counts a container and then loads it as pickle itself does."""

    def load(unpickler: InertUnpickler) -> None:
        unpickler.count()
        _PLAIN_LOAD[code[0]](unpickler)

    return load


class InertUnpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage] - the one in C has no such hooks
    """An unpickler that calls the functions it is given and no others, and imports nothing.

    Attributes:
        foreign: names of what was asked for and not made.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    append: Callable[[Any], None]
    memo: dict[int, Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PLAIN_LOAD)

    def __init__(
        self,
        file: IO[bytes],
        known_objects: Mapping[str, object],
        makers: frozenset[Maker],
        outside: Callable[[object], object],
        most_objects: int = MOST_OBJECTS,
    ) -> None:
        """Begin to read.

        Args:
            file: gives no more than it has when it is asked for more.
            known_objects: objects by module and name, in the place of what would be imported.
            makers: those among them that may be called.
            outside: gives what the pickle refers to outside itself.
            most_objects: largest number of containers and inert objects.
        """
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self._window = Window(file)
        self._n_counted = 0
        self._most_objects = most_objects
        self.foreign: dict[str, None] = {}
        self._known = known_objects
        self._makers = makers
        self._outside = outside

    def load(self) -> object:
        """Load the one object of the pickle. Frames, which only gather small reads, are passed over.

        Returns:
            The object: tensors and plain containers, or an inert record.

        Raises:
            UnpicklingError: the pickle asks for what no checkpoint holds.
            CrowdedError: it holds more objects than any checkpoint.
            EOFError: it ends too early. Other damage raises what Python raises there, such as LookupError.
        """
        window, dispatch = self._window, self.dispatch
        read = self.read = window.read
        self.readline = window.readline
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        try:
            self._run_plain_steps(window)
            while code := read(1):
                dispatch[code[0]](self)
                self._run_plain_steps(window)
        except pickle._Stop as stop:  # pyright: ignore
            window.give_back()
            return stop.value
        raise EOFError("a pickle without its end")

    def _run_plain_steps(self, window: Window) -> None:
        run_plain_steps(self, window, _OPEN)
        self.append = self.stack.append

    def persistent_load(self, pid: object) -> object:
        """Load an object outside the pickle, such as a storage of values."""
        return self._outside(pid)

    def find_class(self, module: str, name: str) -> object:
        """Look up a known object; give the name alone of any other."""
        full = f"{module}.{name}"
        return self._known[full] if full in self._known else ForeignClass(full)

    def get_extension(self, code: int) -> None:
        """Refuse a class that is given by number: no file can say what the numbers of this process stand for.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"extension code {code}")

    def make(self, maker: object, args: object, state: object = None) -> object:
        """Call a known function, or record the call of another.

        Args:
            maker: the class or function that the pickle calls.
            args: its arguments, a tuple.
            state: its keyword arguments; known functions get none.

        Returns:
            The object, or an inert record of it.

        Raises:
            UnpicklingError: the arguments are no tuple, or the object cannot be called.
            CrowdedError: there are more objects than any checkpoint has.
        """
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")
        arguments = cast("tuple[object, ...]", args)
        if callable(maker) and maker in self._makers:
            if 0 < len(arguments) < _TENSOR_TAKES:
                self.count(sum(map(_weight, arguments)))
            return maker(*arguments)
        if isinstance(maker, ForeignClass):
            self.count()
            if len(self.foreign) < _LISTED:
                self.foreign[maker.name] = None
            return Inert(maker, arguments, [] if state is None else [state])
        if isinstance(maker, Inert):
            self.count(1 + len(arguments))
            return Inert(maker.made_by, (maker, *arguments))
        raise pickle.UnpicklingError(f"a call of a {type(maker).__name__}")

    def count(self, n: int = 1) -> None:
        """Count further containers or objects.

        Args:
            n: how many.

        Raises:
            CrowdedError: they are more than any checkpoint has.
        """
        self._n_counted += n
        if self._n_counted > self._most_objects:
            raise CrowdedError(f"more than {self._most_objects} lists, dictionaries and objects")

    def _mark(self) -> None:
        if len(self.metastack) >= _OPEN:
            raise CrowdedError(f"containers nested more than {_OPEN} deep")
        _PLAIN_LOAD[pickle.MARK[0]](self)

    def _instantiate(self, klass: object, args: object) -> None:
        self._push(self.make(klass, tuple(cast("list[object]", args))))

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        return self.stack.pop()

    def _reduce(self) -> None:
        args = self._pop()
        self._push(self.make(self._pop(), args))

    def _reduce_with_keywords(self) -> None:
        keywords, args = self._pop(), self._pop()
        self._push(self.make(self._pop(), args, keywords))

    def _build(self) -> None:
        state = self._pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state.append(state)
        elif not isinstance(target, (OrderedDict, ForeignClass)):
            raise pickle.UnpicklingError(f"a state for a {type(target).__name__}")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Inert):
            target.items.extend((checked_key(key), value) for key, value in pairs)
        elif isinstance(target, dict):
            cast("dict[Any, Any]", target).update((checked_key(key), value) for key, value in pairs)
        else:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.elements.extend(items)
        elif isinstance(target, list):
            cast("list[Any]", target).extend(items)
        elif isinstance(target, set):
            cast("set[Any]", target).update(map(checked_key, items))
        else:
            raise pickle.UnpicklingError(f"elements for a {type(target).__name__}")

    def _set_one(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _dictionary(self) -> None:
        self.count()
        items = self.pop_mark()
        self._push({})
        self._set(items)

    def _frozen(self) -> None:
        self._push(frozenset(map(checked_key, self.pop_mark())))

    def _bytes_to_change(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self._push(bytearray(self.read(length)))

    def _frame(self) -> None:
        self.read(8)

    dispatch[pickle.FRAME[0]] = _frame
    dispatch[pickle.MARK[0]] = _mark
    dispatch[pickle.EMPTY_DICT[0]] = _counting(pickle.EMPTY_DICT)
    dispatch[pickle.EMPTY_LIST[0]] = _counting(pickle.EMPTY_LIST)
    dispatch[pickle.EMPTY_SET[0]] = _counting(pickle.EMPTY_SET)
    dispatch[pickle.LIST[0]] = _counting(pickle.LIST)
    dispatch[pickle.REDUCE[0]] = _reduce
    dispatch[pickle.NEWOBJ[0]] = _reduce
    dispatch[pickle.NEWOBJ_EX[0]] = _reduce_with_keywords
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.SETITEM[0]] = _set_one
    dispatch[pickle.SETITEMS[0]] = lambda self: self._set(self.pop_mark())
    dispatch[pickle.APPEND[0]] = lambda self: self._extend([self._pop()])
    dispatch[pickle.APPENDS[0]] = lambda self: self._extend(self.pop_mark())
    dispatch[pickle.ADDITEMS[0]] = lambda self: self._extend(self.pop_mark())
    dispatch[pickle.DICT[0]] = _dictionary
    dispatch[pickle.FROZENSET[0]] = _frozen
    dispatch[pickle.BYTEARRAY8[0]] = _bytes_to_change


def _weight(argument: object) -> int:
    """Count what a function makes of an argument: a copy of each element of a list, or of a text."""
    if isinstance(argument, tuple):  # sizes of a tensor, mostly: a few whole numbers take less than a container
        elements = cast("tuple[object, ...]", argument)
        return len(elements) // 8 + sum(type(element) is not int for element in elements)
    if isinstance(argument, (list, dict, set, frozenset)):
        return len(cast("Sized", argument))
    return len(argument) // _TEXT_OF_ONE if isinstance(argument, (str, bytes)) else 0
