"""A single thread for each BLAS of the process: the same bits on every machine, and workers share the processors.

OpenBLAS has one number of threads for the process. Two analyses may run at once, and one that was interrupted may still
be solving a matrix. So the first that needs one thread sets it, and the last restores the caller's number.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from types import TracebackType
from typing import Protocol, TypeVar

from threadpoolctl import ThreadpoolController

_T = TypeVar("_T")


class _Library(Protocol):
    filepath: str
    num_threads: int

    def set_num_threads(self, num_threads: int, /) -> object: ...


_lock = Lock()
_users: dict[str, int] = {}
"""Number of contexts that need one thread of a library, by its file."""
_callers: dict[str, int] = {}
"""Number of threads of a library before the first of them, where it was more than one."""


class OneBlasThread:
    """A context in which BLAS has one thread; it may be entered several times, and from several threads."""

    def __init__(self, *, without_torch: bool = False) -> None:
        """List the libraries that are loaded by now.

        Args:
            without_torch: leave torch's BLAS alone where SciPy and NumPy have one of their own, as in their wheels.
        """
        controller = ThreadpoolController()
        of_wheels = controller.select(prefix="libscipy_openblas")
        chosen = of_wheels if without_torch and len(of_wheels) else controller.select(user_api="blas")
        self._libraries: list[_Library] = list(chosen.lib_controllers)

    def __enter__(self) -> OneBlasThread:
        with _lock:
            for library in self._libraries:
                _users[library.filepath] = _users.get(library.filepath, 0) + 1
                if library.num_threads > 1:  # the caller may have set it again since the first of us did
                    _callers.setdefault(library.filepath, library.num_threads)
                    _set(library, 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            for library in self._libraries:
                _users[library.filepath] -= 1
                if _users[library.filepath] == 0:
                    before = _callers.pop(library.filepath, 1)
                    if library.num_threads == 1:  # else the caller has set another number meanwhile, which stays
                        _set(library, before)

    def within(self, function: Callable[[], _T]) -> _T:
        """Call a function in this context, also where other threads have left it.

        Args:
            function: takes no arguments.

        Returns:
            The result of the function.
        """
        with self:
            return function()


def _set(library: _Library, count: int) -> None:
    # Since 3.8, threadpoolctl ignores every thread but the first that set OpenBLAS's number: here the last one sets it.
    getattr(library, "_real_set_num_threads", library.set_num_threads)(count)
