"""Folders of checkpoints: a directory, a single file, or a commit on the hub, seen alike."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdiag.checkpoint.distributed.folders import is_accelerate_folder
from specdiag.checkpoint.files import Files, LocalFiles, exists
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.no_weights import refuse_foreign
from specdiag.checkpoint.shards import RepeatedKey, encoding_notes, parse_config, parse_json
from specdiag.checkpoint.source import Location
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError
from specdiag.files import Table
from specdiag.records import Source

_CONFIG = "config.json"
_IN_PIECES = re.compile(r"zero|global_?step\d+\w*|iter_\d+|release|checkpoints")
"""Names of folders in whose own folders a model or its pieces may lie."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Files below one root, some of them perhaps still on the hub.

    Attributes:
        source: kind, location and revision; which of its files are read is not decided yet.
        names: all of them, relative, with `/` between folders.
        files: reads them.
        only: the file that was asked for where the source is one file.
    """

    source: Source
    names: tuple[str, ...]
    files: Files
    only: str | None = None

    def label(self, name: str) -> str:
        """Give a file's name for messages."""
        return self.source.location if name == self.only else f"{self.source.location}/{name}"

    def has(self, name: str) -> bool:
        """Tell whether there is a file of this name, also one too deep to be in `names`."""
        return name in self.names or self.files.has(name)

    def json(self, name: str, label: str | None = None) -> Table:
        """Read the JSON object of a file.

        Args:
            name: of the file.
            label: its name in messages, where that is not `name`.

        Returns:
            The object.

        Raises:
            SourceError: it cannot be read, or is something else.
        """
        self.files.fetch([name])
        return parse_json(self.files.read(name, label or name), label or name)

    def config(self, weights: str) -> tuple[Table, list[str]]:
        """Read the config.json beside a file of weights, or beside the folder in which accelerate keeps them.

        Args:
            weights: the file of weights, relative to the root.

        Returns:
            The configuration, empty where there is none or it is damaged; a note where it is damaged, gives a key
            twice, or is in an encoding that loaders do not read.

        Raises:
            SourceError: it cannot be read at all.
        """
        folder = weights.rpartition("/")[0]
        name = f"{folder}/{_CONFIG}".lstrip("/")
        if not self.has(name) and is_accelerate_folder(self.label(weights).rpartition("/")[0]):
            name = f"{folder.rpartition('/')[0] if folder else '..'}/{_CONFIG}".lstrip("/")
        if not self.has(name):
            return {}, []
        self.files.fetch([name])
        data = self.files.read(name, self.label(name))
        try:
            content, repeated = parse_config(data, name)
        except SourceError as error:
            return {}, [f"Went on without a configuration: {error}."]
        twice = [f"Took the last {brief(key)} of the two in {name}, as transformers does." for key, _, _ in repeated]
        return content, [*encoding_notes(data, name), *twice]

    def repeated_keys(self) -> tuple[RepeatedKey, ...]:
        """Find the keys that the config.json of the root gives twice; none without one, or where it is damaged."""
        if not self.has(_CONFIG):
            return ()
        self.files.fetch([_CONFIG])
        try:
            return parse_config(self.files.read(_CONFIG, self.label(_CONFIG)), _CONFIG)[1]
        except SourceError:
            return ()


def open_folder(location: Location, *, stream: bool = False) -> Folder:
    """List the files at a location.

    Args:
        location: a path or a repository of the hub.
        stream: read a hub repository by ranges instead of downloading files of it.

    Returns:
        The files, none of them chosen. Of a hub repository at most its config.json is downloaded.

    Raises:
        SourceError: it cannot be listed, or the hub does not give it.
    """
    if location.path is None:
        return _streamed(location) if stream else _hub(location)
    if location.path.is_dir():
        source = Source(kind="dir", location=str(location.path))
        return Folder(source, _names(location.path, location.file), LocalFiles(location.path))
    root, only = location.path.parent, location.path.name
    names = tuple(name for name in (only, _CONFIG) if (root / name).exists())
    return Folder(Source(kind="file", location=str(location.path)), names, LocalFiles(root), only)


def reopened(checkpoint: Checkpoint) -> Folder | None:
    """List again the files beside those of a checkpoint.

    Args:
        checkpoint: as it was opened.

    Returns:
        The files; None for a model in memory or a pipeline of several.

    Raises:
        SourceError: they cannot be listed any more.
    """
    source = checkpoint.source
    if source.kind not in ("dir", "file", "hub") or checkpoint.stored is None:
        return None
    is_local = source.kind != "hub"
    place = Location(
        path=Path(source.location) if is_local else None,
        repo=None if is_local else source.location,
        revision=source.commit or source.revision,
    )
    return open_folder(place, stream=checkpoint.opening.stream)


def _hub(location: Location) -> Folder:
    from specdiag.checkpoint import hub

    assert location.repo is not None
    snapshot = hub.resolve(location.repo, location.revision, maybe_path=not location.url)
    source = Source(kind="hub", location=location.repo, revision=location.revision, commit=snapshot.commit)

    def fetch(files: Sequence[str]) -> None:
        refuse_foreign(files, source.location)
        hub.download(snapshot, files)

    return Folder(source, snapshot.names, LocalFiles(snapshot.folder, fetch))


def _streamed(location: Location) -> Folder:
    from specdiag.checkpoint.stream import list_repository

    assert location.repo is not None
    files = list_repository(location.repo, location.revision, maybe_path=not location.url)
    source = Source(kind="hub", location=location.repo, revision=location.revision, commit=files.commit)
    return Folder(source, tuple(files.sizes), files)


def _names(root: Path, pick: str | None) -> tuple[str, ...]:
    """List files at the top, one level below, and where `pick` points. Not all levels: `root` may be a whole disk.

    Folders that hold one model in pieces are listed with the folders within them.
    """
    try:
        paths = [*_files(root, 1)]
        if pick and exists(root / pick):
            paths += _files(root / pick, 1) if (root / pick).is_dir() else [root / pick]
        return tuple(sorted({path.relative_to(root).as_posix() for path in paths}))
    except OSError as error:
        raise SourceError(f"'{error.filename or root}' cannot be listed: {error.strerror}") from error


def _files(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the files of a folder and of those so many levels below it, following links to folders at the top alone."""
    deeper = bool(_IN_PIECES.fullmatch(folder.name)) and not levels
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif not os.access(path, os.R_OK | os.X_OK) or (not levels and path.is_symlink()):
            continue
        elif levels or deeper or _IN_PIECES.fullmatch(path.name):
            yield from _files(path, max(levels - 1, 0))
