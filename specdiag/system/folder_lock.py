"""Locks of folders for one writer at a time. The lock file names its process, and is taken over from a dead one.

The file appears together with its content by a hard link, which is atomic on network file systems too. A process is
known by its id and the time of its start, so that a later process with the same id is not mistaken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Generator
from pathlib import Path

import msgspec

from specdiag.errors import UsageError
from specdiag.files import json_decoder, read_whole
from specdiag.records import Record

LOCK = ".specdiag.lock"
_LIMIT = 1 << 16
_ATTEMPTS = 100


class Owner(Record, frozen=True, kw_only=True):
    """Content of the lock file: a process, on one machine, since its last start."""

    host: str
    machine: str
    """Its machine-id; empty where there is none."""
    boot: str
    """Identifies the machine's last start; empty where the system does not name it."""
    pid_space: int
    """Identifies the namespace of the process id, such as a container; 0 where the system does not name it."""
    pid: int
    folder: str
    inode: int
    """Path and inode of the folder. In a copied folder both differ from the lock's, which is then ignored."""
    started: str
    """Time of the process's start, as the system counts it; empty where that is not known."""


_decode = json_decoder(Owner)
_n_holders: dict[Path, int] = {}
"""Locks of this process, and how many times each is held."""
os.register_at_fork(after_in_child=_n_holders.clear)


class FolderLockedError(UsageError):
    """Another process writes to the folder, or may."""


class FolderLock:
    """A folder that this process may write. It may take the same one several times.

    The lock is given back by `release`, or when the object is gone, or when the process ends.
    """

    def __init__(self, folder: Path, kind: str = "run") -> None:
        """Take the lock.

        Args:
            folder: an existing folder.
            kind: the kind of folder, for messages.

        Raises:
            UsageError: another process writes there, or its lock cannot be judged from here.
        """
        self.note: str | None = None
        """A sentence about the dead process that the lock was taken over from."""
        path = folder.resolve() / LOCK
        if not _n_holders.get(path):
            self.note = _take(path, kind)
        _n_holders[path] = _n_holders.get(path, 0) + 1
        self._finalizer = weakref.finalize(self, _give_back, path, os.getpid())

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        self._finalizer()


def refuse_locked(folder: Path, kind: str = "run") -> None:
    """Check that no other process writes to a folder, without taking its lock.

    Args:
        folder: a folder.
        kind: the kind of folder, for messages.

    Raises:
        UsageError: another process writes there, or its lock cannot be judged from here.
    """
    path = folder.resolve() / LOCK
    if path.exists() and not _n_holders.get(path):
        _judged(path, kind)


@contextlib.contextmanager
def exclusive_access(folder: Path) -> Generator[None]:
    """Keep other processes out of a folder for the moment in which a file in it is changed.

    Only processes that call this function too are kept out, and none where the file system has no such locks.

    Args:
        folder: an existing folder.

    Yields:
        Nothing; the file is changed inside.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _take(path: Path, kind: str) -> str | None:
    content = msgspec.json.encode(_owner(path.parent))
    for _ in range(_ATTEMPTS):
        if _created(path, content):
            return None
        with _opened(path) as handle:
            if handle is None:
                continue
            owner = _judged(path, kind)
            _replace(path, content)
            return f"{path.name} of process {owner.pid} holds no more (it is dead, or the folder a copy): taken over."
    raise UsageError(f"{path} changes again and again: several processes want to write there; let one of them")


def _created(path: Path, content: bytes) -> bool:
    """Create the lock file; False where there is one already."""
    with _written(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            return _created_alone(path, content)  # a file system without hard links
        return True


def _created_alone(path: Path, content: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Generator[str]:
    """Write a temporary file, which is deleted afterwards."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, 0o644)
            file.write(content)
        yield temporary
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(path: Path) -> Generator[int | None]:
    """Open the lock file, locked against others that judge it; None where it was removed or replaced meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; {_dead(path)}") from error
    try:
        with contextlib.suppress(OSError):  # a file system without such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle if _is(path, handle) else None
    finally:
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _judged(path: Path, kind: str) -> Owner:
    """Read the owner of a lock that is no longer valid.

    Raises:
        FolderLockedError: the owner lives, or may live.
        UsageError: the file is no lock.
    """
    try:
        owner = _decode(read_whole(path, _LIMIT))
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path} does not say which process writes to this {kind}; {_dead(path)}") from error
    here = _owner(path.parent)
    if owner.folder != here.folder and owner.inode != here.inode:
        return owner
    who = f"process {owner.pid} on {owner.host:.80} writes to this {kind} ({path})"
    if (owner.host, owner.machine) != (here.host, here.machine):
        raise FolderLockedError(f"{who}: wait for its end; {_dead(path)}")
    if owner.boot != here.boot:
        return owner  # the machine was started anew
    if owner.pid_space != here.pid_space:
        raise FolderLockedError(f"{who}, in another container: wait for its end; {_dead(path)}")
    if _lives(owner):
        raise FolderLockedError(f"{who}: wait for its end, or stop it")
    return owner


def _dead(path: Path) -> str:
    return f"if that process is dead, delete {path}"


def _replace(path: Path, content: bytes) -> None:
    with _written(path, content) as temporary:
        os.replace(temporary, path)  # noqa: PTH105 - a name, not a Path


def _give_back(path: Path, pid: int) -> None:
    if pid != os.getpid():  # in a fork of the owner
        return
    _n_holders[path] -= 1
    if _n_holders[path]:
        return
    del _n_holders[path]
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if _decode(read_whole(path, _LIMIT)) == _owner(path.parent):
            path.unlink()


def _owner(folder: Path) -> Owner:
    pid = os.getpid()
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return Owner(
        host=socket.gethostname(),
        machine=_line(Path("/etc/machine-id")),
        boot=_line(Path("/proc/sys/kernel/random/boot_id")),
        pid_space=space,
        pid=pid,
        folder=str(folder),
        inode=folder.stat().st_ino,
        started=_started(pid) or "",
    )


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _lives(owner: Owner) -> bool:
    if owner.pid <= 0:
        return False
    try:
        os.kill(owner.pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    started = _started(owner.pid)
    return started is None or not owner.started or started == owner.started


def _started(pid: int) -> str | None:
    """Read when a process started; empty for one that ended and is still listed; None where that is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, LookupError):
        return _started_by_ps(pid)


def _started_by_ps(pid: int) -> str | None:
    """Read when a process started, to the second, where there is no /proc."""
    try:
        result = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode(errors="replace").strip() or None
