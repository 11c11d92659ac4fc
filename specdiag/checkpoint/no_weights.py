"""Sentences on folders without a file that can be read: each names what there is, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from specdiag.checkpoint.formats import ARRAYS, FOREIGN_SUFFIXES
from specdiag.checkpoint.layouts.find import layout_folders
from specdiag.checkpoint.weight_names import weight_files
from specdiag.errors import SourceError
from specdiag.text.names import listed

_LISTED = 8
_UNSUPPORTED = "not supported yet: analyse the original in safetensors"


def refuse_foreign(names: Iterable[str], where: str) -> None:
    """Refuse by its name what would be refused by its content, before it is downloaded.

    Args:
        names: the files that were chosen.
        where: the repository or directory, for messages.

    Raises:
        SourceError: a file is of a format that is not supported.
    """
    foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
    if foreign:
        raise SourceError(f"{where} stores {listed(foreign, _LISTED)} in a format {_UNSUPPORTED}")


def describe_nothing(names: Sequence[str], inside: Sequence[str], where: str, works: Callable[[str], bool]) -> str:
    """Say that a folder holds no file that can be read, and name what there is.

    Args:
        names: every file of the repository or directory.
        inside: those of the folder itself.
        where: the folder, for messages.
        works: tells whether a folder below can be read as it is.
    """
    weights = weight_files(inside)
    if weights:
        return f"{where} holds weights only as {listed(weights, _LISTED)}, {_UNSUPPORTED}"
    folders = sorted({name.rpartition("/")[0] for name in weight_files(names)} - {""})
    if folders:
        example = next((f for f in [*layout_folders(names), *folders] if f in layout_folders(names) or works(f)), None)
        hint = "name a file in one with file=" if example is None else f"read one, such as with file={example}"
        return f"{where} holds weights only in its folders {listed(folders, _LISTED)}: {hint}"
    contents = f"only {listed(inside, _LISTED)}" if inside else "for it has no files that can be read"
    arrays = [name for name in inside if name.endswith(ARRAYS)]
    hint = f"; where an archive of arrays holds them, name it, as with file={arrays[0]}" if arrays else ""
    return f"{where} holds no weights, {contents}{hint}"
