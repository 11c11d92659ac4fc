"""Loads training data from files and the hub: text, jsonl and parquet by `datasets`, or files of tokens."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.files import Table
from specdiag.train.data.blocks import Tokens, check_vocabulary, open_tokens, split
from specdiag.train.data.fingerprint import Fingerprint, data_fingerprint
from specdiag.train.data.hub import HubData, documents, import_datasets, locate, resolve, text_of

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback

_READERS = {
    ".txt": "text", ".md": "text", ".py": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet",
    ".bin": "tokens",
}  # fmt: skip
CACHE = "tokens-"
"""Prefix of the names of cached tokens."""
_SUM = ".sha256"
_log = logging.getLogger(__name__)
BYTES = "bytes"
"""Value of `tokens` in a fingerprint if bytes are tokens."""
_BYTES = 256
_AT_ONCE = 64
"""Number of documents given to a tokenizer at once."""


Example = dict[str, object]
Batch = dict[str, torch.Tensor]


class Examples(Protocol):
    """A dataset with a length, indexed by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Data:
    """Training and held-out data of a run.

    Attributes:
        train: examples in stored order; the Trainer shuffles them by its seed.
        held_out: examples that are never trained on.
        fingerprint: identity of the data, compared when the run continues.
        n_tokens: tokens in all blocks; 0 if examples are no blocks of tokens.
        collate: makes a batch of examples; None for the Trainer's own collator.
        metrics: computes metrics from all held-out predictions; None if the loss is the only measure.
        labels: names of the classes in the order of their numbers; None if there are none.
        callbacks: callbacks that the data needs in the Trainer.
    """

    train: Examples
    held_out: Examples
    fingerprint: Fingerprint
    n_tokens: int = 0
    collate: Callable[[list[Example]], Batch] | None = None
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    labels: tuple[str, ...] | None = None
    callbacks: tuple[TrainerCallback, ...] = ()


def data_files(paths: Sequence[str | Path], types: Collection[str] = tuple(_READERS)) -> list[Path | HubData]:
    """List the files of given paths, and datasets of the hub.

    Args:
        paths: files, folders, and datasets of the hub. A folder stands for all files of known types below it.
        types: suffixes that are accepted.

    Raises:
        UsageError: there are no paths, or a type is unknown, or tokens are mixed with text.
        SourceError: a path does not exist, or a folder has no data.
    """
    if not paths:
        raise UsageError(
            f"the run keeps no data of its own: name it with data=PATH ({', '.join(types)}) or org/name, a dataset "
            "on the hub"
        )
    sources: list[Path | HubData] = []
    for source in map(locate, paths):
        if isinstance(source, HubData) or not source.is_dir():
            sources.append(source)
            continue
        files = sorted(p for p in source.rglob("*") if p.suffix in types and p.is_file())
        if not files:
            raise SourceError(f"{source} holds no {', '.join(types)} files")
        sources += files
    unknown = [source for source in sources if isinstance(source, Path) and source.suffix not in types]
    if unknown:
        raise UsageError(f"{unknown[0]} is none of {', '.join(types)}: convert it, or rename it if it is plain text")
    if len(sources) > 1 and any(map(_is_tokens, sources)):
        raise UsageError("tokens come as one .bin file and not together with text")
    return sources


def load_data(
    paths: Sequence[str | Path],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    vocabulary: int,
    block_size: int,
    seed: int,
    cache: Path,
    max_tokens: int | None = None,
) -> Data:
    """Pack text into blocks of tokens.

    Args:
        paths: files, folders, and datasets on the hub as `org/name[@revision][:config[/split]]`. An existing path is
            preferred to a dataset of the same name.
        tokenizer: tokenizer of the checkpoint; None for bytes.
        vocabulary: size of the model's vocabulary.
        block_size: tokens of a block.
        seed: seed of the run, for the fingerprint.
        cache: folder that keeps the tokens for the next start.
        max_tokens: largest number of tokens to take, in stored order; None for all.

    Raises:
        UsageError: a file cannot be read as data, or a dataset on the hub is given without `max_tokens`.
        SourceError: the data is damaged, too small, or of another vocabulary, or the hub does not give it.
        ComputationError: the tokens cannot be written.
    """
    sources = data_files(paths)
    label = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    hub = next((source for source in sources if isinstance(source, HubData)), None)
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens={max_tokens} leaves nothing to train on")
    if hub is not None and max_tokens is None:
        raise UsageError(
            f"there is no path {hub} here, and as a dataset of the hub it may be larger than this disk: say how much "
            "with max_tokens=N"
        )
    if tokenizer is None and vocabulary < _BYTES and not _is_tokens(sources[0]):
        raise UsageError(f"there is no tokenizer, and a vocabulary of {vocabulary} has no room for the 256 bytes")
    sources = [resolve(source) if isinstance(source, HubData) else source for source in sources]
    if isinstance(sources[0], Path) and _is_tokens(sources[0]):
        units = dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
        fingerprint = data_fingerprint(sources, units, block_size, seed, max_tokens=max_tokens)
        tokens = open_tokens(sources[0], dtype)[:max_tokens]
    else:
        units = BYTES if tokenizer is None else tokenizer_digest(tokenizer)
        fingerprint = data_fingerprint(sources, units, block_size, seed, max_tokens=max_tokens)
        dtype = "uint8" if tokenizer is None else "uint32"
        path = cache / f"{CACHE}{fingerprint.digest}.cache"
        tokens = _cached(path, dtype, _documents(sources), tokenizer, max_tokens)
    check_vocabulary(tokens, vocabulary, label)
    train, held_out = split(tokens, block_size, label)
    return Data(train, held_out, fingerprint, (len(train) + len(held_out)) * block_size)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest of a tokenizer's class and vocabulary, of 16 characters."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr((type(tokenizer).__name__, vocabulary)).encode()).hexdigest()[:16]


def read_rows(path: Path, kind: str, **options: object) -> Iterator[Table]:
    """Read the rows of one file by a reader of `datasets`.

    Args:
        path: the file.
        kind: name of the reader: `text`, `json`, `csv` or `parquet`.
        **options: options of the reader.

    Yields:
        Rows, as values by column.

    Raises:
        SourceError: the file is damaged.
    """
    datasets = import_datasets()
    try:
        yield from datasets.load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"{path} cannot be read as {kind} ({reason})") from error


def _is_tokens(source: Path | HubData) -> bool:
    return isinstance(source, Path) and _READERS.get(source.suffix) == "tokens"


def _documents(sources: Sequence[Path | HubData]) -> Iterator[str]:
    for source in sources:
        if isinstance(source, HubData):
            yield from documents(source)
            continue
        kind = _READERS[source.suffix]
        options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
        for row in read_rows(source, kind, **options):
            yield text_of(row, str(source))


def _cached(
    path: Path, dtype: str, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase | None, max_tokens: int | None
) -> Tokens:
    """Open the tokens of documents from the cache. If they are not there, they are written there atomically first.

    A cache in the folder above is used too, because runs of a sweep share it.
    """
    shared = path.parent.parent / path.name
    if _is_whole(shared):
        return open_tokens(shared, dtype)
    if not _is_whole(path):
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # another process may write the same
        remaining = max_tokens
        try:
            with unfinished.open("wb") as file:
                for tokens in _tokens(documents, tokenizer):
                    chunk = np.asarray(tokens, dtype=dtype)[:remaining]
                    file.write(chunk.tobytes())
                    remaining = None if remaining is None else remaining - len(chunk)
                    if remaining == 0:
                        break
            digest = _digest(unfinished)
            unfinished.replace(path)
            path.with_suffix(_SUM).write_text(digest)
        except OSError as error:
            raise ComputationError(f"writing {path} failed: {error.strerror}; free space") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return open_tokens(path, dtype)


def _is_whole(path: Path) -> bool:
    """Return True if the cached tokens exist and are undamaged. Damaged ones are logged."""
    if not path.exists():
        return False
    try:
        intact = path.with_suffix(_SUM).read_text() == _digest(path)
    except (OSError, UnicodeDecodeError):
        intact = False
    if not intact:
        _log.warning("%s is not what was written there: the tokens are made anew", path)
    return intact


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokens(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Sequence[int] | NDArray[np.uint8]]:
    """Yield the tokens of each document, followed by the tokenizer's end token if it has one."""
    if tokenizer is None:
        yield from (np.frombuffer(document.encode(), np.uint8) for document in documents)
        return
    end = [] if tokenizer.eos_token_id is None else [cast("int", tokenizer.eos_token_id)]
    following = iter(documents)
    while batch := list(itertools.islice(following, _AT_ONCE)):  # fast tokenizers take them in parallel
        encoded = cast("list[list[int]]", tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"])
        yield from (tokens + end for tokens in encoded)
