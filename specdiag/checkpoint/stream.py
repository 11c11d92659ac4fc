"""Hub repositories that are read by ranges: nothing is downloaded, nothing is written."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi, RepoFile, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

from specdiag.checkpoint.formats import FORMATS, N_PROBE, format_of
from specdiag.checkpoint.hub import checked_names, translate_hub_errors, transport_errors
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.no_weights import refuse_foreign
from specdiag.checkpoint.plain_values import read_bytes
from specdiag.checkpoint.ranges import HubFile, Patience
from specdiag.checkpoint.safetensors_header import FIRST_READ
from specdiag.errors import SourceError, UsageError
from specdiag.files import TEXT_LIMIT

FULL_COMMIT = re.compile("[0-9a-f]{40}")
"""A revision that is a commit, and always the same one."""
_LIMITED = 429
_BY_RANGES = tuple(format for format in FORMATS if format.list_by_ranges is not None)
_SUFFIXES = tuple(suffix for format in _BY_RANGES for suffix in format.suffixes)


@dataclass(frozen=True, slots=True)
class StreamedFiles:
    """The files of one commit.

    Attributes:
        repo: `org/name`, or a legacy one-word id.
        commit: the full hash.
        sizes: of every file, bytes.
    """

    repo: str
    commit: str
    sizes: Mapping[str, int]
    _small: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _patience: Patience = field(default_factory=Patience)

    def has(self, name: str) -> bool:
        """Tell whether the commit has such a file."""
        return name in self.sizes

    def broken(self, name: str) -> str | None:
        """Answer None: a commit has no links to follow."""
        return None

    def is_torch(self, name: str) -> bool:
        """Answer False: torch's files are not streamed, so that none is looked into."""
        return False

    def fetch(self, names: Sequence[str]) -> None:
        """Read JSON files into memory, and refuse weights in a format that cannot be read by ranges.

        Args:
            names: the files.

        Raises:
            NotStreamedError: a file has to be downloaded, for its format is not read by ranges.
            SourceError: a file is of no supported format, or the hub does not give it.
        """
        refuse_foreign(names, self.repo)
        for name in names:
            if name.endswith(".json") and name not in self._small:
                self._small[name] = self._whole(name)
            elif not name.endswith((".json", *_SUFFIXES)):
                raise _not_streamed(f"{self.repo}/{name}")

    def path(self, name: str) -> Path:
        """Refuse to find a file on this machine: none is here.

        Raises:
            UsageError: always.
        """
        raise _not_streamed(f"{self.repo}/{name}")

    def read(self, name: str, label: str) -> bytes:
        """Give all of a JSON file that was fetched."""
        return self._small[name]

    def list(self, name: str, label: str, part: str | None = None) -> Listing:
        """List the tensors of a file of weights from its header.

        Args:
            name: the file.
            label: its name in messages.
            part: of no use here: formats that are streamed hold one list of tensors.

        Raises:
            UsageError: it holds weights in a format that is not read by ranges.
            SourceError: the hub does not give it, or it is damaged.
        """
        file = self._file(name)
        head = read_bytes(file.fill, 0, min(file.size, FIRST_READ))
        list_by_ranges = format_of(head[:N_PROBE], label).list_by_ranges
        if list_by_ranges is None:
            raise _not_streamed(label)
        return list_by_ranges(label, file.size, head, file.fill)

    def _whole(self, name: str) -> bytes:
        size = self.sizes[name]
        if size > TEXT_LIMIT:
            raise SourceError(
                f"'{self.repo}/{name}' is listed with {size} bytes, and at most {TEXT_LIMIT} are read of such a file"
            )
        return read_bytes(self._file(name).fill, 0, size)

    def _file(self, name: str) -> HubFile:
        return HubFile(self.repo, self.commit, name, self.sizes[name], self._patience)


def list_repository(repo: str, revision: str | None, *, maybe_path: bool = False) -> StreamedFiles:
    """List the files of the commit behind a revision; the hub's cache is neither read nor written.

    Args:
        repo: `org/name`, or a legacy one-word id.
        revision: branch, tag or commit; None for the default branch.
        maybe_path: whether `repo` may have been meant as a path, for messages.

    Returns:
        The files, none of them read.

    Raises:
        SourceError: the hub has no such model or revision, does not give it, or cannot be reached.
    """
    if constants.HF_HUB_OFFLINE:
        raise SourceError(
            f"stream=True reads {repo} from the hub and HF_HUB_OFFLINE is set: unset it, or leave out stream=True"
        )
    commit = commit_of(repo, revision, maybe_path=maybe_path)
    with _asking(repo, revision, maybe_path=maybe_path):
        entries = list(HfApi().list_repo_tree(repo, recursive=True, revision=commit))
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    checked_names([file.path for file in files], repo)
    return StreamedFiles(repo, commit, {file.path: _size(file.size, repo, file.path) for file in files})


def commit_of(repo: str, revision: str | None, *, maybe_path: bool = False) -> str:
    """Ask the hub for the commit behind a revision. Where it limits its answers, they are waited for.

    Args:
        repo: `org/name`, or a legacy one-word id.
        revision: branch, tag or commit; None for the default branch.
        maybe_path: whether `repo` may have been meant as a path, for messages.

    Raises:
        SourceError: the hub has no such model or revision, does not give it, or cannot be reached.
    """
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    with _asking(repo, revision, maybe_path=maybe_path):
        answer = http_backoff(
            "GET",
            f"{constants.ENDPOINT}/api/models/{repo}{at}",
            headers=build_hf_headers(),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),
            retry_on_status_codes=_LIMITED,
        )
        hf_raise_for_status(answer)
        commit = answer.json().get("sha")
    if not isinstance(commit, str) or not commit:
        raise SourceError(f"{constants.ENDPOINT} names no commit of {repo}: leave out stream=True to download")
    return commit


@contextmanager
def _asking(repo: str, revision: str | None, *, maybe_path: bool) -> Generator[None]:
    with translate_hub_errors(repo, revision, maybe_path=maybe_path):
        try:
            yield
        except HfHubHTTPError:
            raise
        except transport_errors() as error:
            absent = f"there is no path '{repo}', and " if maybe_path else ""
            raise SourceError(
                f"{absent}{constants.ENDPOINT} cannot be reached to list {repo} ({type(error).__name__}): "
                f"check the {'spelling and the ' if maybe_path else ''}connection"
            ) from error


def _size(listed: object, repo: str, name: str) -> int:
    """Check the size of a file, for which a listing may hold anything."""
    if type(listed) is int and 0 <= listed < 1 << 63:
        return listed
    raise SourceError(
        f"{constants.ENDPOINT} lists '{repo}/{brief(name)}' with a size of {brief(repr(listed))}, which no file has: "
        "leave out stream=True to download"
    )


class NotStreamedError(UsageError):
    """A file has to be downloaded, for its format is not read by ranges."""


def _not_streamed(label: str) -> NotStreamedError:
    streamed = " and ".join(format.name for format in _BY_RANGES)
    return NotStreamedError(
        f"stream=True reads {streamed}, and '{label}' is none: leave out stream=True to download it"
    )
