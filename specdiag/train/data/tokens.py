"""Training data from files and from the hub: text, jsonl and parquet through `datasets`, or tokens as they are."""

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
"""Beginning of the names of cached tokens."""
_SUM = ".sha256"
_log = logging.getLogger(__name__)
BYTES = "bytes"
"""As the units of a fingerprint."""
_BYTES = 256
_AT_ONCE = 64
"""Documents given to a tokenizer."""


Example = dict[str, object]
Batch = dict[str, torch.Tensor]


class Examples(Protocol):
    """A dataset of map style."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, object]: ...


@dataclass(frozen=True)
class Data:
    """Training and held-out data of a run.

    Attributes:
        train: examples in stored order; the Trainer shuffles them by its seed.
        held_out: examples that are never trained on.
        fingerprint: for comparison when the run goes on.
        n_tokens: of all blocks; 0 where examples are no blocks of tokens.
        collate: makes a batch of examples; None for the Trainer's own way.
        metrics: figures of merit from all held-out predictions; None where the loss is all.
        labels: names of the classes, in the order of their numbers; None where there are none.
        callbacks: of the Trainer, which the data needs.
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
    """The files that were named; of a folder, all below it whose type is known, by name. And datasets of the hub.

    Raises:
        UsageError: nothing was named, or a type is unknown or mixed with tokens.
        SourceError: a path does not exist, or a folder holds no data.
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
        found = sorted(p for p in source.rglob("*") if p.suffix in types and p.is_file())
        if not found:
            raise SourceError(f"{source} holds no {', '.join(types)} files")
        sources += found
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
        paths: files, folders, and datasets on the hub as `org/name[@revision][:config[/split]]`. A path that exists
            wins.
        tokenizer: of the checkpoint; None for bytes.
        vocabulary: of the model.
        block_size: tokens of a block.
        seed: of the run, for the fingerprint.
        cache: a folder that keeps the tokens for the next start.
        max_tokens: documents are read in stored order until so many are there; None for all.

    Raises:
        UsageError: the files are none that can be read, or a dataset on the hub would be read without end.
        SourceError: they are damaged, too few, or of another vocabulary; or the hub does not give them.
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
        found = data_fingerprint(sources, units, block_size, seed, max_tokens=max_tokens)
        tokens = open_tokens(sources[0], dtype)[:max_tokens]
    else:
        units = BYTES if tokenizer is None else tokenizer_digest(tokenizer)
        found = data_fingerprint(sources, units, block_size, seed, max_tokens=max_tokens)
        dtype = "uint8" if tokenizer is None else "uint32"
        path = cache / f"{CACHE}{found.digest}.cache"
        tokens = _cached(path, dtype, _documents(sources), tokenizer, max_tokens)
    check_vocabulary(tokens, vocabulary, label)
    train, held_out = split(tokens, block_size, label)
    return Data(train, held_out, found, (len(train) + len(held_out)) * block_size)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names a vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr((type(tokenizer).__name__, vocabulary)).encode()).hexdigest()[:16]


def read_rows(path: Path, kind: str, **options: object) -> Iterator[Table]:
    """Rows of one file, by a reader of `datasets`.

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
    """Tokens of documents, from the cache where they are, else written there whole or not at all.

    Runs of a sweep share what lies in the folder above theirs.
    """
    shared = path.parent.parent / path.name
    if _is_whole(shared):
        return open_tokens(shared, dtype)
    if not _is_whole(path):
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # another process may write the same
        left = max_tokens
        try:
            with unfinished.open("wb") as file:
                for tokens in _tokens(documents, tokenizer):
                    found = np.asarray(tokens, dtype=dtype)[:left]
                    file.write(found.tobytes())
                    left = None if left is None else left - len(found)
                    if left == 0:
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
    """Return True if the cached tokens exist and are undamaged; log damaged ones."""
    if not path.exists():
        return False
    try:
        whole = path.with_suffix(_SUM).read_text() == _digest(path)
    except (OSError, UnicodeDecodeError):
        whole = False
    if not whole:
        _log.warning("%s is not what was written there: the tokens are made anew", path)
    return whole


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokens(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[Sequence[int] | NDArray[np.uint8]]:
    """Tokens of each document; where the tokenizer has a token for the end, it follows."""
    if tokenizer is None:
        yield from (np.frombuffer(document.encode(), np.uint8) for document in documents)
        return
    end = [] if tokenizer.eos_token_id is None else [cast("int", tokenizer.eos_token_id)]
    following = iter(documents)
    while some := list(itertools.islice(following, _AT_ONCE)):  # fast tokenizers take them in parallel
        found = cast("list[list[int]]", tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"])
        yield from (tokens + end for tokens in found)
