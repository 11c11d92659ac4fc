"""Datasets on the hub, by `datasets`: `org/name[@revision][:config[/split]]`, read as a stream from one commit.

The commit of a revision is asked for once. A run keeps the name with the commit, and reads the same data whatever is
pushed later. `datasets` retries a connection that broke.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from specdiag.errors import MissingExtraError, SourceError

_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[^\s:@]+))?(:(?P<config>[^\s:/@]*)(/(?P<split>[\w.-]+))?)?"
)
_FILE_LIKE = re.compile(r"[./~\\].*|.*[/\\]|.*\.(txt|md|py|jsonl?|csv|tsv|parquet|bin)", re.DOTALL)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_COLUMN = "text"
TRAIN = "train"


@dataclass(frozen=True)
class HubData:
    """A part of a dataset.

    Attributes:
        repo: `org/name`.
        revision: branch, tag or commit; None for the default branch.
        config: configuration (subset); None for the only one, or the dataset's default.
        split: split; None for `train`.
    """

    repo: str
    revision: str | None = None
    config: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{self._part}"

    @property
    def name(self) -> str:
        """Name without the revision."""
        return f"{self.repo}{self._part}"

    @property
    def pinned(self) -> bool:
        """True if the revision is a commit."""
        return _COMMIT.fullmatch(self.revision or "") is not None

    @property
    def _part(self) -> str:
        split = f"/{self.split}" if self.split else ""
        return f":{self.config or ''}{split}" if self.config or split else ""


def locate(path: str | Path) -> Path | HubData:
    """Return a path if it exists, else the dataset on the hub that it names.

    Raises:
        SourceError: it is neither.
    """
    local = Path(path).expanduser()
    if local.exists():
        return local
    text = str(path)
    match = _ID.fullmatch(text)
    if match is None or _FILE_LIKE.fullmatch(text):
        raise SourceError(f"there is no {text}; a dataset on the hub is named org/name, org/name:config or its /split")
    return HubData(match["repo"], match["revision"], match["config"] or None, match["split"])


def pin(paths: Sequence[str | Path]) -> list[str]:
    """Make names of data that a run can keep: absolute paths, and datasets with their current commits.

    Raises:
        SourceError: one is neither a path nor a dataset that the hub gives.
    """
    located = [locate(path) for path in paths]
    return [str(resolve(source) if isinstance(source, HubData) else source.resolve()) for source in located]


def resolve(data: HubData) -> HubData:
    """Return the dataset with the commit of its revision. This asks the hub, unless the revision is a commit.

    Raises:
        SourceError: the hub has no such dataset or revision, gives no commit, or cannot be reached.
    """
    if data.pinned:
        return data
    from huggingface_hub import HfApi

    with translate_hub_errors(data):
        commit = HfApi().dataset_info(data.repo, revision=data.revision).sha
    if commit is None:
        raise SourceError(f"the hub does not say at which commit {data} is: name one as org/name@COMMIT")
    return dataclasses.replace(data, revision=commit)


def documents(data: HubData) -> Iterator[str]:
    """Yield the texts of a dataset in stored order; no more is downloaded than is asked for.

    Raises:
        SourceError: there is no such configuration, split or text, or the hub does not give it.
    """
    datasets = import_datasets()
    with translate_hub_errors(data, f"name a part as {data.repo}:CONFIG/SPLIT"):
        builder = datasets.load_dataset_builder(data.repo, data.config, revision=data.revision)
        if hasattr(builder.config, "sample_by"):  # text files: lines would come without their ends
            builder.config.sample_by = "document"
        rows = builder.as_streaming_dataset(split=data.split or TRAIN)
    with translate_hub_errors(data):
        for row in rows:
            yield text_of(row, data.name)


def text_of(row: Mapping[str, object], label: str) -> str:
    """Return the column `text` of a row, or the only column with text.

    Args:
        row: values by column.
        label: source of the row, for the message.

    Raises:
        SourceError: there are several columns with text, or none.
    """
    strings = [name for name, value in row.items() if isinstance(value, str)]
    name = _COLUMN if _COLUMN in strings else strings[0] if len(strings) == 1 else None
    if name is None:
        raise SourceError(f"{label} has no column '{_COLUMN}' with text, but {', '.join(row)}: rename the one you mean")
    return str(row[name])


def import_datasets() -> ModuleType:
    """Import `datasets`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("reading data for training needs datasets: pip install datasets") from error
    return datasets


@contextmanager
def translate_hub_errors(data: HubData, advice: str = "its files are not what they seem") -> Generator[None]:
    """Translate errors of the hub and its libraries into a SourceError with advice.

    Args:
        data: dataset that is read.
        advice: advice for errors that come neither from the hub nor from the connection.

    Raises:
        SourceError: the block raised an error of reading.
    """
    import_datasets()
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    from specdiag.checkpoint.hub import transport_errors

    try:
        yield
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError, *transport_errors()) as error:
        raise SourceError(_sentence(data, error, advice)) from error


def _sentence(data: HubData, error: BaseException, advice: str) -> str:
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    from specdiag.checkpoint.hub import explain_refusal, transport_errors

    page = f"{constants.ENDPOINT}/datasets/{data.repo}"
    chain = list(_chain(error))

    def first_of(*kinds: type[BaseException]) -> BaseException | None:
        return next((e for e in chain if isinstance(e, kinds)), None)

    if first_of(OfflineModeIsEnabled):
        return f"{data.name} is on the hub and HF_HUB_OFFLINE is set: unset it, or give data on this machine"
    missing = first_of(DatasetNotFoundError)
    if first_of(GatedRepoError) or (missing is not None and "gated" in str(missing)):  # without a cause
        return f"{data.repo} is gated: accept the licence at {page} and set HF_TOKEN, or 'hf auth login'"
    if first_of(RepositoryNotFoundError):
        return (
            f"there is neither a path '{data}' nor a public dataset {data.repo} on {constants.ENDPOINT}: check the "
            "spelling; for a private one set HF_TOKEN, or 'hf auth login'"
        )
    if first_of(RevisionNotFoundError):
        return f"{data.repo} has no revision '{data.revision}': see {page}/tree/main"
    if first_of(DataFilesNotFoundError):
        return f"{data.repo} holds no files that datasets can read (parquet, json, csv, text): see {page}/tree/main"
    response_error = first_of(HfHubHTTPError)
    if isinstance(response_error, HfHubHTTPError) and getattr(response_error, "response", None) is not None:
        return explain_refusal(data.repo, response_error)
    if first_of(*transport_errors(), ConnectionError, TimeoutError):
        reason = type(chain[-1]).__name__
        return f"{constants.ENDPOINT} cannot be reached for {data.name}, or broke off ({reason}): check the connection"
    reason = " ".join(" ".join(str(error).splitlines()[:2]).split())
    return f"{data.name} cannot be read ({reason}): {advice}, see {page}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
