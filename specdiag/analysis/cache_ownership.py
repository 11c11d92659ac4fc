"""Who may write to a folder of kept results: what anybody can write there would become a number of a report."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from specdiag.errors import UsageError

_OTHERS = stat.S_IWOTH
_GROUP = stat.S_IWGRP


class ForeignFolderError(Exception):
    """A folder that only somebody else may write to. The message says whose it is."""


def check_folder(folder: Path) -> bool:
    """Tell whether a folder is shared with a group of the user.

    Trusted is a folder that belongs to the user or to root, and one that the user's group may write to.

    Args:
        folder: need not exist.

    Raises:
        UsageError: everybody may write to it, or it is no folder.
        ForeignFolderError: it is another user's, and not shared with this one.
    """
    try:
        held = folder.stat()
    except OSError:
        return False
    if not stat.S_ISDIR(held.st_mode):
        raise UsageError(f"results cannot be kept in {folder}, which is no folder: name one with SPECDIAG_CACHE")
    if held.st_mode & _OTHERS:
        raise UsageError(
            f"everybody may write to {folder} (mode {stat.S_IMODE(held.st_mode):04o}), so results kept there cannot be "
            f"trusted: 'chmod o-w {folder}' and delete what is in it, or name another folder with SPECDIAG_CACHE"
        )
    shared = bool(held.st_mode & _GROUP) and held.st_gid in _groups()
    if held.st_uid not in _trusted() and not shared:
        raise ForeignFolderError(f"it belongs to user {held.st_uid}, who does not share it with this one")
    return shared


def is_trusted(held: os.stat_result, *, shared: bool) -> bool:
    """Tell whether an entry comes from the user, from root, or from the group that shares its folder."""
    return held.st_uid in _trusted() or shared


def make_folder(folder: Path, *, shared: bool) -> None:
    """Make a folder within another that `check_folder` has seen, writable by the same people.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(mode=0o755)
    except FileExistsError:
        return
    if shared:
        os.chown(folder, -1, folder.parent.stat().st_gid)
        folder.chmod(0o775 | stat.S_ISGID)


def _trusted() -> set[int]:
    return {os.getuid(), 0}


def _groups() -> set[int]:
    return {os.getegid(), *os.getgroups()}
