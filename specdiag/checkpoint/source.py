"""The source that was asked for: a path on this machine, or a model on the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from specdiag.checkpoint.files import broken_link
from specdiag.checkpoint.formats import ARRAYS, FOREIGN_SUFFIXES, WEIGHT_SUFFIXES
from specdiag.errors import SourceError, UsageError
from specdiag.files import read_whole

_FILES = "|".join(map(re.escape, (*WEIGHT_SUFFIXES, *FOREIGN_SUFFIXES, ARRAYS, ".json", ".tar", ".th")))
_PATH_LIKE = re.compile(rf"[./~\\].*|.*[/\\]|.*({_FILES})", re.DOTALL)
_URL = re.compile(r"(https?|hf)://.*|(www\.)?(huggingface\.co|hf\.co)/.*", re.DOTALL)
_HOST = re.compile(r"^(hf://|(https?://)?(www\.)?(huggingface\.co|hf\.co)/)")
_CREDENTIALS = re.compile(r"^(https?://)[^/]*@")
_ONE_WORD = re.compile(
    r"(?P<repo>[\w.-]+)(@(?P<at>[^\s/]+)|/(tree|blob|raw|resolve)/(?P<revision>[^/?#]+)(/(?P<file>[^?#]+))?)?/?(\?.*)?"
)
_LONGEST_REF = 200
_CACHED = "models--"
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>\S+))?")


@dataclass(frozen=True, slots=True)
class Location:
    """A source before anything was read.

    Attributes:
        path: a file or directory that exists, or None.
        repo: `org/name` or a one-word id on the hub, or None.
        revision: branch, tag or commit that was asked for.
        file: file or folder inside to read, or None for the best.
        url: whether it was given as a URL, which cannot be a path.
    """

    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    url: bool = False


def locate(location: str | os.PathLike[str], revision: str | None = None, file: str | None = None) -> Location:
    """Tell a path from a hub id. A path that exists wins.

    Args:
        location: a path, `org/name`, `name`, `org/name@revision`, `hf://org/name@revision/path`, or a URL.
        revision: branch, tag or commit on the hub.
        file: a file or folder inside the directory or repository.

    Returns:
        The location; nothing was read, and the hub was not asked.

    Raises:
        UsageError: the options contradict the location.
        SourceError: it is neither a path that exists nor what the hub would call a model.
    """
    text = os.fspath(location)
    path = expanded(text)
    if text and os.path.lexists(path):
        return _local(path, revision, file)
    text = _CREDENTIALS.sub(r"\1", text)
    if _URL.fullmatch(text):
        place = replace(_from_uri(text), url=True)
    elif not _PATH_LIKE.fullmatch(text) and (match := _HUB_ID.fullmatch(text)):
        place = Location(repo=match["repo"], revision=match["revision"])
    else:
        raise SourceError(f"no such file or directory: '{text}'; give a path, or a hub model as org/name")
    if revision and place.revision:
        raise UsageError(f"'{text}' already names revision '{place.revision}': leave out revision={revision}")
    if file and place.file:
        raise UsageError(f"'{text}' already names '{place.file}': leave out file={file}")
    _require_inside(file or place.file, text)
    return Location(repo=place.repo, revision=revision or place.revision, file=file or place.file, url=place.url)


def expanded(text: str) -> Path:
    """Resolve `~` in a path.

    Args:
        text: the path as the user wrote it.

    Raises:
        SourceError: it names the home of a user who does not exist.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise SourceError(f"no such file or directory: '{text}', for there is no such user here") from error


def _local(path: Path, revision: str | None, file: str | None) -> Location:
    if revision:
        raise UsageError(f"revision={revision} is for models on the hub, and '{path}' is a local path")
    if (link := broken_link(path)) is not None:
        raise SourceError(f"'{path}' is {link}")
    if file and not path.is_dir():
        raise UsageError(f"file={file} picks within a directory or repository, and '{path}' is a file")
    _require_inside(file, str(path))
    return Location(path=_snapshot(path) if path.is_dir() else path, file=file)


def cached_repository(path: Path) -> str | None:
    """Name the repository in whose snapshot in the hub's cache a path lies; None for any other path.

    Args:
        path: absolute, of a file or folder.
    """
    caches = (parent.parent.name for parent in path.parents if parent.name == "snapshots")
    name = next((cache for cache in caches if cache.startswith(_CACHED)), None)
    return None if name is None else name.removeprefix(_CACHED).replace("--", "/", 1)


def _snapshot(folder: Path) -> Path:
    """Find the snapshot of a folder of the hub's cache, models--org--name; any other folder is itself."""
    snapshots = folder / "snapshots"
    if not folder.name.startswith(_CACHED) or not snapshots.is_dir():
        return folder
    try:
        there = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
        main = folder / "refs" / "main"
        commit = read_whole(main, _LONGEST_REF).decode("ascii", "replace").strip() if main.is_file() else ""
    except OSError as error:
        raise SourceError(f"'{folder}' of the hub's cache cannot be read: {error.strerror}") from error
    if commit in there or len(there) == 1:
        return snapshots / (commit if commit in there else there[0])
    raise SourceError(
        f"'{folder}' is a folder of the hub's cache with {len(there)} snapshots: "
        + (f"give one, such as {snapshots / there[0]}" if there else "download the model again")
    )


def _require_inside(file: str | None, where: str) -> None:
    if file and (".." in file.split("/") or Path(file).is_absolute()):
        raise UsageError(f"file={file} does not lie inside '{where}': name a file below it, or give another source")


def _from_uri(text: str) -> Location:
    legacy = _ONE_WORD.fullmatch(_HOST.sub("", text))
    if legacy:  # the hub's own parser rejects ids of one word
        return Location(repo=legacy["repo"], revision=legacy["at"] or legacy["revision"], file=legacy["file"])

    from huggingface_hub import constants
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    try:
        uri = parse_hf_uri(text.strip(), endpoint=constants.ENDPOINT)
    except HfUriError as error:
        raise SourceError(f"'{text}' does not name a model on the hub: {error.msg.rstrip('.')}") from error
    if uri.type != "model":
        raise SourceError(f"'{text}' is a {uri.type}, not a model; give a model as org/name")
    return Location(repo=uri.id, revision=uri.revision, file=uri.path_in_repo or None)
