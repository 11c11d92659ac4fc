"""Models on the hub, through huggingface_hub: with its cache, token, endpoint, offline switch and bars."""

from __future__ import annotations

import errno
import glob
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from huggingface_hub import (
    constants,
    get_cached_repo_tree,
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from specdiag.errors import SourceError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One commit of a repository, as far as it was downloaded.

    Attributes:
        repo: `org/name`, or a legacy one-word id.
        commit: the full hash.
        folder: where its files lie in the hub's cache.
        names: every file of the commit, downloaded or not; offline without a listing, those in the cache.
    """

    repo: str
    commit: str
    folder: Path
    names: tuple[str, ...]


def resolve(repo: str, revision: str | None) -> Snapshot:
    """The commit behind a revision and its list of files. Only config.json is downloaded.

    Args:
        repo: `org/name`, or a legacy one-word id.
        revision: branch, tag or commit; None for the default branch.

    Raises:
        SourceError: the hub has no such model or revision, does not give it, or cannot be reached.
    """
    folder = _download(repo, revision, ["config.json"])
    try:
        names = tuple(entry.path for entry in get_cached_repo_tree(repo, revision=folder.name))
    except CachedRepoTreeNotFoundError:  # cached by an older huggingface_hub, and offline now
        names = tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Snapshot(repo, folder.name, folder, names)


def download(snapshot: Snapshot, files: Iterable[str]) -> None:
    """Bring files of a snapshot into the hub's cache, below `snapshot.folder`.

    Raises:
        SourceError: the hub does not give them, the connection broke, or the disk is full.
    """
    wanted = [name for name in files if not (snapshot.folder / name).exists()]
    if wanted:
        _download(snapshot.repo, snapshot.commit, wanted)


def _download(repo: str, revision: str | None, files: Iterable[str]) -> Path:
    with in_one_sentence(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[glob.escape(name) for name in files]))


@contextmanager
def in_one_sentence(repo: str, revision: str | None) -> Generator[None]:
    """Turn what huggingface_hub raises into a SourceError that says what it means for the repository."""
    try:
        yield
    except HFValidationError as error:
        raise SourceError(f"'{repo}' is neither a path that exists nor a hub model (org/name)") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo}"
        raise SourceError(
            f"{repo} is gated: accept the licence at {page} and set HF_TOKEN, or 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"there is neither a path '{repo}' nor a public model of that name on {constants.ENDPOINT}: "
            "check the spelling; for a private model set HF_TOKEN, or 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{repo} has no revision '{revision}': see {constants.ENDPOINT}/{repo}/tree/main") from error
    except LocalEntryNotFoundError as error:
        raise SourceError(_not_cached(repo, revision, error)) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{repo} lists a file that the hub does not have: try again, or another revision") from error
    except HfHubHTTPError as error:
        raise SourceError(answered(repo, error)) from error
    except transport_errors() as error:
        raise SourceError(f"the download of {repo} was interrupted ({type(error).__name__}): run it again") from error
    except OSError as error:
        raise SourceError(_local(repo, error)) from error


def transport_errors() -> tuple[type[Exception], ...]:
    """Errors of the HTTP library, whichever it is: huggingface_hub has changed it twice."""
    bases = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    return tuple(base for base in bases if not issubclass(base, OSError))


def _not_cached(repo: str, revision: str | None, error: LocalEntryNotFoundError) -> str:
    what = f"{repo}@{revision}" if revision else repo
    if constants.HF_HUB_OFFLINE:
        return f"{what} is not complete in the hub's cache and HF_HUB_OFFLINE is set: unset it to download"
    if isinstance(error.__cause__, HfHubHTTPError):
        return answered(repo, error.__cause__)
    return (
        f"there is no path '{what}', and {constants.ENDPOINT} cannot be reached to look for a model of that name, "
        "which is not in the hub's cache: check the spelling and the connection"
    )


def answered(repo: str, error: HfHubHTTPError) -> str:
    """What a refusal of the hub means, in a sentence."""
    status = error.response.status_code
    advice = {
        401: "check HF_TOKEN, or 'hf auth login'",
        403: "check what HF_TOKEN allows",
        429: "wait a minute",
    }
    return f"{constants.ENDPOINT} answered {status} for {repo}: {advice.get(status, 'try again later')}"


def _local(repo: str, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of the hub's cache {constants.HF_HUB_CACHE} is full: free some, or set HF_HOME"
    if error.strerror:
        return f"the hub's cache {constants.HF_HUB_CACHE} cannot be written: {error.strerror}"
    return f"the download of {repo} came out incomplete: run again"
