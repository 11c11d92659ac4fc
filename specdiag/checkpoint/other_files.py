"""The files of weights of a repository beside those that hold its model: twins, variants, modules, stray shards."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specdiag.checkpoint.file_selection import is_adapter_file
from specdiag.checkpoint.folder import Folder, open_folder
from specdiag.checkpoint.formats import FOREIGN_SUFFIXES, GGUF, SAFETENSORS
from specdiag.checkpoint.inventory import Sorting, sort_tensors
from specdiag.checkpoint.long_names import leave_out_long
from specdiag.checkpoint.opening import Opening
from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.shard_sets import missing_shards, set_of
from specdiag.checkpoint.source import Location
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.checkpoint.weight_names import SHARD, base_name, weight_files
from specdiag.checkpoint.wrappers import unwrap
from specdiag.errors import SpecdiagError
from specdiag.files import Table
from specdiag.records import Source

Kind = Literal["twin", "variant", "other"]

DEEPEST = 3
"""Levels of folders below a local directory that are looked into."""
_MOST_FILES = 20_000
_STEP = re.compile(r"(checkpoint|ckpt|step|global_?step|epoch|iter)[-_]?\d+.*", re.IGNORECASE)
"""Names of folders that hold other checkpoints of a run."""
_PRECISION = re.compile(r"(fp|bf|f|float|bfloat)(8|16|32|64)|half", re.IGNORECASE)
"""Variants that hold the same values at another precision; others, such as `non_ema`, hold other values."""
_WHOLE = re.compile(r"(pytorch_model|diffusion_pytorch_model|adapter_model)\b.*\.bin")
"""Names under which loaders expect a file of torch."""
_SAME = {"pytorch_model": "model"}
"""Names that libraries give to one model in two formats."""


@dataclass(frozen=True, slots=True)
class OtherFiles:
    """A file of weights, or a set of shards, that the model was not read from.

    Attributes:
        names: relative to the repository.
        kind: `twin` for the model in another format, `variant` for it at another precision, `other` for any other.
        unread: the reason why they are not looked into; None where they are.
        expected: whether a loader takes files of these names, so that they have to be readable.
    """

    names: tuple[str, ...]
    kind: Kind = "other"
    unread: str | None = None
    expected: bool = False

    @property
    def name(self) -> str:
        """The first of the files."""
        return self.names[0]


def find_other_files(source: Source, opening: Opening) -> tuple[Folder | None, list[OtherFiles]]:
    """List the weight files of a repository beside those that a checkpoint was read from.

    Args:
        source: of the checkpoint.
        opening: what it was opened with; where a file or a part was picked, nothing else is looked into.

    Returns:
        The repository, None where the source is a single file or in memory; and its other files.

    Raises:
        SourceError: the repository cannot be listed.
    """
    if source.kind not in ("dir", "hub"):
        return None, []
    is_local = source.kind == "dir"
    place = Location(
        path=Path(source.location) if is_local else None,
        repo=None if is_local else source.location,
        revision=source.commit or source.revision,
    )
    folder = open_folder(place, stream=opening.stream)
    names, left = names_below(Path(source.location)) if is_local else (folder.names, {})
    picked = None if opening.file is None else f"file={opening.file} was picked"
    sets: dict[tuple[str, ...], list[str]] = {}
    visible = [name for name in (*names, *folder.names) if not f"/{name}".count("/.")]
    for name in weight_files(sorted({*visible} - {*source.files})):
        sets.setdefault(_step_folder(name) or set_of(name), []).append(name)
    found = [_described(tuple(files), source, picked, is_local=is_local) for files in sets.values()]
    return folder, [*found, *(OtherFiles((name,), unread=reason) for name, reason in left.items())]


def open_files(folder: Folder, names: Sequence[str], config: Table) -> Checkpoint:
    """List the tensors of files that may hold a model, or a part of one.

    Args:
        folder: the repository.
        names: of the files, relative to it.
        config: config.json of the model.

    Returns:
        Their tensors, sorted.

    Raises:
        UsageError: they cannot be streamed.
        SourceError: they cannot be read, or hold no weights.
    """
    folder.files.fetch(names)
    listings = [folder.files.list(name, folder.label(name)) for name in names]
    where = folder.label(names[0])
    stored = leave_out_long([tensor for listing in listings for tensor in listing.tensors])
    tensors, _ = unwrap(stored, where)
    tensors, _ = dequantise(tensors, config)
    return sort_tensors(tensors, folder.source, config, Sorting(None, None, 0), ())


def _described(files: tuple[str, ...], source: Source, picked: str | None, *, is_local: bool) -> OtherFiles:
    name = files[0]
    if _step_folder(name) is not None:
        return OtherFiles(files, unread="another checkpoint of the run: audit it by itself")
    if picked is not None or source.part is not None:
        return OtherFiles(files, unread=picked or f"part={source.part} was picked")
    if name.endswith(FOREIGN_SUFFIXES):
        return OtherFiles(files, unread="in a format that is not read")
    if name.endswith(GGUF.suffixes) and not is_local:
        return OtherFiles(files, unread="a GGUF file on the hub is a model of its own: audit it with file=")
    expected = name.endswith((*SAFETENSORS.suffixes, *GGUF.suffixes)) or bool(_WHOLE.fullmatch(base_name(name)))
    suffix = name[name.rindex(".") :]
    is_stray = bool(missing_shards(files)) and any(other.endswith(suffix) for other in source.files)
    return OtherFiles(files, "other" if is_stray else _kind(name, source.files), expected=expected)


def _kind(name: str, model: Sequence[str]) -> Kind:
    """Tell by its name whether a file holds the model in another format or at another precision."""
    stem, variant = _stem(name)
    for other in model:
        if name.rpartition("/")[0] == other.rpartition("/")[0] and _stem(other)[0] == stem:
            ours = _stem(other)[1]
            if variant == ours:
                return "twin"
            if all(v is None or _PRECISION.fullmatch(v) for v in (variant, ours)):
                return "variant"
    return "other"


def _stem(name: str) -> tuple[str, str | None]:
    """Give a file's name without format and shard: that of the model, and the variant."""
    base = base_name(name)
    shard = SHARD.fullmatch(base)
    plain = shard["stem"].rstrip("-_") if shard is not None else base.rpartition(".")[0]
    stem, _, variant = plain.partition(".")
    return _SAME.get(stem, stem), variant or None


def _step_folder(name: str) -> tuple[str] | None:
    """Name the folder of another checkpoint of the run that a file lies in."""
    folders = name.split("/")[:-1]
    for depth, folder in enumerate(folders):
        if _STEP.fullmatch(folder):
            return ("/".join(folders[: depth + 1]) + "/",)
    return None


def names_below(root: Path) -> tuple[list[str], dict[str, str]]:
    """List the files of a directory, and why other folders are not listed. Hidden ones and links are not followed.

    Args:
        root: the directory.

    Returns:
        Names relative to it; and folders whose files are not among them, with the reason.
    """
    names: list[str] = []
    left: dict[str, str] = {}

    def leave(error: OSError) -> None:
        left[Path(error.filename).relative_to(root).as_posix()] = f"it cannot be listed: {error.strerror}"

    for path, folders, files in os.walk(root, onerror=leave):
        here = Path(path).relative_to(root)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if len(here.parts) >= DEEPEST:
            left |= {(here / name).as_posix(): "folders this deep are not looked into" for name in folders}
            folders.clear()
        names += [(here / name).as_posix() for name in files]
        if len(names) > _MOST_FILES:
            return names, left | {here.as_posix(): f"from here on, for there are more than {_MOST_FILES} files"}
    return names, left


def is_pointer(error: SpecdiagError) -> bool:
    """Tell whether a file could not be read because only its pointer of Git LFS is there.

    Args:
        error: of reading it.
    """
    return "a Git LFS pointer" in str(error)


def holds_adapter(files: OtherFiles) -> bool:
    """Tell whether files are an adapter's by their names: B = 0 is no fault of a fresh one.

    Args:
        files: of the repository.
    """
    return is_adapter_file(files.name)
