"""Files that are read whole and decoded, such as JSON and TOML, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import tempfile
import threading
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from specdiag.errors import ComputationError, UsageError

T = TypeVar("T")
A = TypeVar("A")

Table = dict[str, Any]
"""An object of decoded JSON, or a table of decoded TOML."""
TEXT_LIMIT = 64 << 20
"""Bytes of the largest file that is read whole. A report of 100,000 matrices has about 60 MB."""
_DESCRIPTORS = {"/dev/stdin": "0", "/dev/stdout": "1", "/dev/stderr": "2"}
_FOLDERS = (Path("/dev/fd"), Path("/proc/self/fd"))
_MOST_DOTS = 200
_BUILDING = threading.Lock()


def read_whole(path: str | os.PathLike[str], limit: int = TEXT_LIMIT) -> bytes:
    """Read all bytes of a regular file.

    A pipe would block, a device would never end, and a sparse file would fill the memory: all three are refused before
    a byte is read.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        OSError: it cannot be read; `strerror` says why in words that fit behind "cannot be read:".

    Example:
        >>> read_whole("/dev/null")
        Traceback (most recent call last):
        OSError: [Errno 22] it is not a regular file: '/dev/null'
    """
    with open_regular(path) as file:
        held = os.fstat(file.fileno())
        if held.st_size > limit:
            size = f"it has {held.st_size / 2**20:.0f} MiB, and at most {limit / 2**20:.0f} MiB are read"
            raise OSError(errno.EFBIG, size, os.fspath(path))
        return file.read(limit)


def is_regular(path: Path) -> bool:
    """Tell whether opening `path` reaches bytes that end: a file, or a link to one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_start(path: str | os.PathLike[str], count: int) -> bytes:
    """Read the first bytes of a regular file; none where there is no such file, or it is a pipe or a device.

    Args:
        path: the file.
        count: how many bytes at most.
    """
    try:
        with open_regular(path) as file:
            return file.read(count)
    except OSError:
        return b""


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file without waiting for the writer of a pipe.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be opened, or is something else, such as a pipe or a folder.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL or half of a surrogate pair
        raise OSError(errno.EINVAL, "no file can have this name", os.fspath(path)) from error
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def create_unique(folder: Path, prefix: str = "tmp", suffix: str = "", mode: int = 0o666) -> tuple[int, Path]:
    """Create a file with a name of its own.

    Unlike a file of `tempfile` it has the mode that any new file has: `mode` without what the user's umask takes away.

    Args:
        folder: where it is created.
        prefix: the beginning of its name.
        suffix: the end of its name.
        mode: permission bits, before the umask.

    Returns:
        Its descriptor, open for writing, and its path.

    Raises:
        OSError: the folder cannot be written.
    """
    while True:
        path = folder / f"{prefix}{secrets.token_hex(4)}{suffix}"
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), path


def check_writable(path: Path) -> None:
    """Raise UsageError now if `path` could not be written later."""
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"cannot write {path}: the folder {folder} does not exist")
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder; name a file")
    if is_stream(path):
        if not os.access(path, os.W_OK):
            raise UsageError(f"cannot write {path}: {os.strerror(errno.EACCES)}")
        return
    try:
        tempfile.TemporaryFile(dir=path.resolve().parent).close()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write through a temporary file in the same folder, synced and renamed: a reader sees the old or the new.

    A link stays one: the file that it leads to is replaced. A pipe, a device or a descriptor is written into.

    Raises:
        UsageError: if the folder cannot be written.
        ComputationError: if the disk is full; nothing is left behind.
    """
    if is_stream(path):
        _write_into(path, data)
        return
    path = path.resolve()
    try:
        handle, temporary = create_unique(path.parent, f".{path.name}.")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ComputationError(f"writing {path} failed: {error.strerror}; free space or name another folder") from error


def is_stream(path: Path) -> bool:
    """Tell whether a path must not be replaced: a pipe, a device or an open descriptor, such as /dev/stdout."""
    folder = path.parent.resolve()
    in_use = folder == Path("/dev") or folder.match("/proc/*/fd") or folder.match("/proc/*/task/*/fd")
    return in_use or (path.exists() and not path.is_file())


def _write_into(path: Path, data: bytes) -> None:
    held = _DESCRIPTORS.get(str(path), path.name if path.parent in _FOLDERS else "")
    target = int(held) if held.isdecimal() else path
    try:
        # An open descriptor itself: to open its file anew would begin at its start, and cut it.
        with open(target, "wb", buffering=0, closefd=target is path) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) or 0 :]
    except OSError as error:
        raise ComputationError(f"writing {path} failed: {error.strerror}") from error


def json_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Make a function that decodes JSON to `kind`. Call it when a module is imported.

    msgspec 0.22 analyses a type at its first use and crashes where two threads do that at once. So every decoder is
    made before there are threads, and one at a time, for two modules may share a type. The functions made here raise
    nothing but `msgspec.DecodeError`.

    Args:
        kind: what the text holds.

    Example:
        >>> json_decoder(list[int])(b"[1, 2]")
        [1, 2]
    """
    with _BUILDING:
        decode = msgspec.json.Decoder(kind).decode
    return lambda data: _guarded(decode, data)


def msgpack_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Make a decoder as `json_decoder` does, for MessagePack."""
    with _BUILDING:
        decode = msgspec.msgpack.Decoder(kind).decode
    return lambda data: _guarded(decode, data)


def converter(kind: type[T]) -> Callable[[object], T]:
    """Make a decoder as `json_decoder` does, for dictionaries, lists and plain values that are decoded already."""
    with _BUILDING:
        msgspec.json.Decoder(kind)
    return lambda content: _guarded(partial(msgspec.convert, type=kind), content)


def toml_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Make a decoder as `json_decoder` does, for TOML."""
    convert = converter(kind)
    return lambda data: convert(decode_toml(data))


def decode_toml(data: bytes) -> Table:
    """Decode a TOML file.

    Raises:
        msgspec.DecodeError: it is no TOML, or a line of it has more than `_MOST_DOTS` dots: the time that a key takes
            goes with the square of its parts.
    """
    if max(map(_dots, data.split(b"\n"))) > _MOST_DOTS:
        raise msgspec.DecodeError(f"a line has more than {_MOST_DOTS} dots")
    return _guarded(lambda text: tomllib.loads(text.decode()), data)


def _dots(line: bytes) -> int:
    return line.count(b".")


def _guarded(decode: Callable[[A], T], data: A) -> T:
    """Decode, with one type of error for all that can be wrong with the data."""
    try:
        return decode(data)
    except msgspec.DecodeError as error:  # may name a key of the file, of any length
        raise msgspec.DecodeError(shortened(str(error))) from error
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # no UTF-8, no TOML, a number of 5,000 digits
        raise msgspec.DecodeError(shortened(str(error))) from error


def shortened(text: str, most: int = 300) -> str:
    """Shorten a long text for a message to its beginning and its end.

    Example:
        >>> shortened("abcdefghijkl", 9)
        'abcd…jkl'
    """
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 3 :]}"
