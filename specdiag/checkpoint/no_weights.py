"""Sentences on folders without a file that can be read: each names what there is, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from specdiag.checkpoint import conversions
from specdiag.checkpoint.formats import ARRAYS, FOREIGN_SUFFIXES
from specdiag.checkpoint.layouts.find import layout_folders
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.weight_names import base_name, weight_files
from specdiag.errors import SourceError
from specdiag.text.names import listed
from specdiag.text.numeric_order import in_numeric_order

_LISTED = 8
_NUMBER = re.compile(r"[0-9]+")
_CONVERT: dict[tuple[str, ...], str] = {
    (".h5",): conversions.HDF5,
    (".keras",): conversions.KERAS,
    (".msgpack",): conversions.FLAX,
    (".onnx",): "it renames and transposes the weights: analyse the model that it was exported from",
    (".nemo",): conversions.NEMO,
    (".tflite",): "analyse the model that it was converted from",
}
"""How to go on from files that are not read, by the ends of their names."""
_GIVE = ": give the folder or the file of the weights"
_OTHERWISE = "analyse the original in safetensors"
_FOLDERS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"manifest\.ocdbt|_CHECKPOINT_METADATA|\.zarray"), "an Orbax checkpoint", conversions.ORBAX),
    (re.compile(r"saved_model\.pb"), "a TensorFlow SavedModel", conversions.SAVED_MODEL),
    (re.compile(r".*\.data-\d{5}-of-\d{5}"), "a TensorFlow checkpoint", conversions.TENSORFLOW),
)
"""Folders of other programs by the names of their files."""


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
        raise SourceError(
            f"{where} stores {listed(foreign, _LISTED)} in a format that is not supported: {_way_on(foreign)}"
        )


def describe_nothing(names: Sequence[str], inside: Sequence[str], where: str, works: Callable[[str], bool]) -> str:
    """Say that a folder holds no file that can be read, and name what there is.

    Args:
        names: every file of the repository or directory.
        inside: those of the folder itself.
        where: the folder, for messages.
        works: tells whether a folder below can be read as it is.
    """
    if (program := _program(inside)) is not None:
        return f"{where} is {program}"
    weights = weight_files(inside)
    if weights:
        return f"{where} holds weights only as {listed(weights, _LISTED)}, not supported: {_way_on(weights)}"
    folders = in_numeric_order(sorted({name.rpartition("/")[0] for name in weight_files(names)} - {""}), str)
    if folders:
        joined = layout_folders(names)
        tried = _newest_first(list(dict.fromkeys([*in_numeric_order(joined, str), *folders])))
        example = next((folder for folder in tried if folder in joined or works(folder)), None)
        hint = "name a file in one with file=" if example is None else f"read one, such as with file={example}"
        return f"{where} holds weights only in its folders {listed(folders, _LISTED)}: {hint}"
    if (run := _run_of_a_program(names, where)) is not None:
        return run
    contents = f"only {listed(inside, _LISTED)}" if inside else "for it has no files that can be read"
    arrays = [name for name in inside if name.endswith(ARRAYS)]
    hint = f"; where an archive of arrays holds them, name it, as with file={arrays[0]}" if arrays else ""
    return f"{where} holds no weights, {contents}{hint or _GIVE}"


def _newest_first(folders: Sequence[str]) -> list[str]:
    """Put the steps of a run, whose names differ in a number alone, the last one first."""
    alike = Counter(_NUMBER.sub("#", folder) for folder in folders)
    steps = [folder for folder in folders if alike[_NUMBER.sub("#", folder)] > 1]
    return [*reversed(steps), *(folder for folder in folders if folder not in steps)]


def _program(inside: Iterable[str]) -> str | None:
    """Tell by the names of its files what other program wrote a folder, and what to do with it."""
    fitting = (
        f"{noun}, not supported: {way}"
        for pattern, noun, way in _FOLDERS
        if any(pattern.fullmatch(base_name(name)) for name in inside)
    )
    return next(fitting, None)


def _run_of_a_program(names: Iterable[str], where: str) -> str | None:
    """Describe a folder with checkpoints of another program in its own folders, by the last of them."""
    below: dict[str, list[str]] = {}
    for name in names:
        below.setdefault(name.rpartition("/")[0], []).append(name)
    found = {folder: program for folder, files in below.items() if (program := _program(files)) is not None}
    if not found:
        return None
    last = in_numeric_order(found, str)[-1]
    return f"{where} holds no weights of its own, and its folder {brief(last)} is {found[last]}"


def _way_on(names: Sequence[str]) -> str:
    return next((way for suffixes, way in _CONVERT.items() if names[0].endswith(suffixes)), _OTHERWISE)
