"""Models on the hub, through huggingface_hub: with its cache, token, endpoint, offline switch and bars."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

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
from huggingface_hub.utils import get_session

from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.shards import stays_inside
from specdiag.errors import SourceError, SpecdiagError

BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which the same request may succeed a moment later."""
LONGEST_WAIT = 300
"""Longest wait, in seconds, that is accepted from the hub: the window of its rate limits."""
_LIMITED = re.compile(r"r=0\s*;\s*t=([0-9]+)")
_HOPELESS = ("TooManyRedirects", "UnsupportedProtocol", "LocalProtocolError", "DecodingError")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a repository, as far as it was downloaded.

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


def resolve(repo: str, revision: str | None, *, maybe_path: bool = False) -> Snapshot:
    """Find the commit behind a revision and its list of files. Only config.json is downloaded.

    Args:
        repo: `org/name`, or a legacy one-word id.
        revision: branch, tag or commit; None for the default branch.
        maybe_path: whether `repo` may have been meant as a path, for messages.

    Returns:
        The commit, with nothing but its config.json downloaded.

    Raises:
        SourceError: the hub has no such model or revision, does not give it, or cannot be reached.
    """
    folder = _download(repo, revision, ["config.json"], maybe_path=maybe_path)
    try:
        names = tuple(entry.path for entry in get_cached_repo_tree(repo, revision=folder.name))
    except CachedRepoTreeNotFoundError:  # cached by an older huggingface_hub, and offline now
        names = tuple(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Snapshot(repo, folder.name, folder, checked_names(names, repo))


def checked_names(names: Iterable[object], repo: str) -> tuple[str, ...]:
    """Check that every name of a listing is that of a file inside the repository.

    Args:
        names: as the hub lists them.
        repo: the repository, for messages.

    Returns:
        The names.

    Raises:
        SourceError: a name is no text, leads outside of the repository, or cannot be that of a file.
    """
    listed = tuple(names)
    valid = tuple(name for name in listed if isinstance(name, str) and stays_inside(name))
    if len(valid) != len(listed):
        bad = next(name for name in listed if name not in valid)
        raise SourceError(
            f"{constants.ENDPOINT} lists a file of {repo} outside of it, or under no possible name: {brief(repr(bad))}"
        )
    return valid


def download(snapshot: Snapshot, files: Iterable[str]) -> None:
    """Bring files of a snapshot into the hub's cache, below `snapshot.folder`.

    Args:
        snapshot: the commit.
        files: their names, relative to the repository. Those that are there already are left alone.

    Raises:
        SourceError: the hub does not give them, the connection broke, or the disk is full.
    """
    missing = [name for name in files if not (snapshot.folder / name).exists()]
    if missing:
        _download(snapshot.repo, snapshot.commit, missing)


def _download(repo: str, revision: str | None, files: Iterable[str], *, maybe_path: bool = False) -> Path:
    with translate_hub_errors(repo, revision, maybe_path=maybe_path):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[glob.escape(name) for name in files]))


@contextmanager
def translate_hub_errors(repo: str, revision: str | None, *, maybe_path: bool = False) -> Generator[None]:
    """Turn what huggingface_hub raises into a SourceError that says what it means for the repository.

    Args:
        repo: `org/name`, or a legacy one-word id.
        revision: branch, tag or commit that was asked for.
        maybe_path: whether `repo` may have been meant as a path; the message on a missing repository then names both.

    Yields:
        Nothing; the code that talks to the hub runs inside.

    Raises:
        SourceError: the hub does not give what was asked for.
    """
    try:
        with refuse_odd_answers(repo):
            yield
    except SpecdiagError:
        raise
    except HFValidationError as error:
        other = "is neither a path that exists nor a hub model" if maybe_path else "is no name of a model on the hub"
        raise SourceError(f"'{repo}' {other} (org/name)") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{repo}"
        raise SourceError(
            f"{repo} is gated: accept the licence at {page} and set HF_TOKEN, or 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"there is {_what(repo, maybe_path=maybe_path)} on {constants.ENDPOINT}: "
            "check the spelling; for a private model set HF_TOKEN, or 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"{repo} has no revision '{revision}': see {constants.ENDPOINT}/{repo}/tree/main") from error
    except LocalEntryNotFoundError as error:
        raise SourceError(_not_cached(repo, revision, error, maybe_path=maybe_path)) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{repo} lists a file that the hub does not have: try again, or another revision") from error
    except HfHubHTTPError as error:
        raise SourceError(explain_refusal(repo, error)) from error
    except transport_errors() as error:
        raise SourceError(f"the download of {repo} was interrupted ({type(error).__name__}): run it again") from error
    except OSError as error:
        raise SourceError(_local(repo, error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{constants.ENDPOINT} answered for {repo} what no hub answers ({type(error).__name__}): check HF_ENDPOINT"
        ) from error


@contextmanager
def refuse_odd_answers(repo: str) -> Generator[None]:
    """Refuse answers that make huggingface_hub wait for very long, and redirects that lead nowhere.

    Args:
        repo: the repository, for messages.

    Yields:
        Nothing; every answer of the hub is checked as long as the block runs.

    Raises:
        SourceError: the hub asks to wait for more than `LONGEST_WAIT`, or sends on to an address that cannot be
            followed.
    """
    hooks = get_session().event_hooks["response"]
    check = partial(_check_answer, repo)
    hooks.append(check)
    try:
        yield
    finally:
        hooks.remove(check)


def _check_answer(repo: str, response: Any) -> None:
    if response.status_code in BUSY:
        waits = _asked_waits(response.headers)
        if any(len(wait) > 9 or int(wait) > LONGEST_WAIT for wait in waits):
            raise SourceError(
                f"{constants.ENDPOINT} answered {response.status_code} for {repo} and asks to wait "
                f"{brief(max(waits, key=len), 20)} s, and at most {LONGEST_WAIT} s are waited: run again later"
            )
    location = response.headers.get("location")
    if location is not None and 300 <= response.status_code < 400 and not _leads_on(str(response.url), location):
        raise SourceError(f"{constants.ENDPOINT} sends {repo} on to '{brief(location)}', where no file can be fetched")


def _asked_waits(headers: Mapping[str, str]) -> list[str]:
    """Read the seconds to wait from the headers that huggingface_hub obeys."""
    matches = (
        re.fullmatch(r"\s*([0-9]+)\s*", headers.get("retry-after", "")),
        _LIMITED.search(headers.get("ratelimit", "")),
    )
    return [match[1] for match in matches if match is not None]


def _leads_on(url: str, location: str) -> bool:
    """Tell whether a redirect can be followed: to a host, and not from https to http."""
    try:
        target = urlsplit(urljoin(url, location))
        _ = target.port
    except ValueError:
        return False
    safe = target.scheme == "https" or (target.scheme == "http" and not url.startswith("https:"))
    return safe and bool(target.hostname)


def transport_errors() -> tuple[type[Exception], ...]:
    """List the error classes of the HTTP library, whichever it is: huggingface_hub has changed it twice."""
    bases = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    return tuple(base for base in bases if not issubclass(base, OSError))


def is_hopeless(error: Exception) -> bool:
    """Tell whether an error of the HTTP library would come again if the request were repeated."""
    return type(error).__name__ in _HOPELESS


def _what(repo: str, *, maybe_path: bool) -> str:
    return f"neither a path '{repo}' nor a public model of that name" if maybe_path else f"no public model '{repo}'"


def _not_cached(repo: str, revision: str | None, error: LocalEntryNotFoundError, *, maybe_path: bool) -> str:
    name = f"{repo}@{revision}" if revision else repo
    if constants.HF_HUB_OFFLINE:
        return f"{name} is not complete in the hub's cache and HF_HUB_OFFLINE is set: unset it to download"
    if isinstance(error.__cause__, HfHubHTTPError):
        return explain_refusal(repo, error.__cause__)
    if not maybe_path:
        return (
            f"{constants.ENDPOINT} cannot be reached for {name}, which is not complete in the hub's cache: "
            "check the connection"
        )
    return (
        f"there is no path '{name}', and {constants.ENDPOINT} cannot be reached to look for a model of that name, "
        "which is not in the hub's cache: check the spelling and the connection"
    )


def explain_refusal(repo: str, error: HfHubHTTPError) -> str:
    """Explain a refusal of the hub in a sentence.

    Args:
        repo: the repository that was asked for.
        error: the refusal, with its HTTP status.

    Returns:
        The sentence, with what to do.
    """
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
