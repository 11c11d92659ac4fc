"""Loads training data from files and the hub: text, jsonl and parquet by `datasets`, or files of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import torch

from specdiag.errors import SourceError, UsageError
from specdiag.files import Table
from specdiag.train.data.blocks import (
    HELD_OUT_MOST,
    Tokens,
    all_blocks,
    check_vocabulary,
    open_tokens,
    split,
    spread_blocks,
)
from specdiag.train.data.fingerprint import Fingerprint, data_fingerprint
from specdiag.train.data.hub import HubData, documents, import_datasets, locate, resolve, text_of
from specdiag.train.data.token_cache import CACHE, cached_tokens

if TYPE_CHECKING:
    from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback

_READERS = {
    ".txt": "text", ".md": "text", ".py": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet",
    ".bin": "tokens",
}  # fmt: skip
BYTES = "bytes"
"""Value of `tokens` in a fingerprint if bytes are tokens."""
_BYTES = 256

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
        split_off: True if the held-out examples are a part of the training data, kept apart by a rule of specdiag.
    """

    train: Examples
    held_out: Examples
    fingerprint: Fingerprint
    n_tokens: int = 0
    collate: Callable[[list[Example]], Batch] | None = None
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    labels: tuple[str, ...] | None = None
    callbacks: tuple[TrainerCallback, ...] = ()
    split_off: bool = False


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
    eval_paths: Sequence[str | Path] = (),
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
        eval_paths: held-out data, named as `paths`: at most 512 of its blocks are taken, spread over all of a file by a
            hash, or the first ones of a dataset on the hub. Empty to hold out blocks of `paths`.

    Raises:
        UsageError: a file cannot be read as data, a dataset on the hub is given without `max_tokens`, or tokens are
            mixed with text.
        SourceError: the data is damaged, too small, or of another vocabulary, held-out data is trained on, or the hub
            does not give it.
        ComputationError: the tokens cannot be written.
    """
    sources, eval_sources = data_files(paths), data_files(eval_paths) if eval_paths else []
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
    if eval_sources and _is_tokens(sources[0]) != _is_tokens(eval_sources[0]):
        kinds = ["tokens" if _is_tokens(each[0]) else "text" for each in (sources, eval_sources)]
        raise UsageError(
            f"{paths[0]} holds {kinds[0]} and {eval_paths[0]} {kinds[1]}: give data= and eval_data= of one kind"
        )
    reader = _Reader(tokenizer, vocabulary, block_size, seed, cache)
    tokens, fingerprint = reader.read(sources, _label(paths), max_tokens)
    if not eval_sources:
        train, held_out = split(tokens, block_size, _label(paths))
        return Data(train, held_out, fingerprint, (len(train) + len(held_out)) * block_size, split_off=True)
    on_hub = any(isinstance(source, HubData) for source in eval_sources)
    most = HELD_OUT_MOST * block_size if on_hub else None
    eval_tokens, eval_fingerprint = reader.read(eval_sources, _label(eval_paths), most)
    _refuse_shared(fingerprint, eval_fingerprint)
    return Data(
        train=all_blocks(tokens, block_size, _label(paths)),
        held_out=spread_blocks(eval_tokens, block_size, _label(eval_paths)),
        fingerprint=msgspec.structs.replace(fingerprint, held_out=eval_fingerprint.files),
        n_tokens=len(tokens) // block_size * block_size,
    )


@dataclass(frozen=True)
class _Reader:
    """Reads tokens for one model and run."""

    tokenizer: PreTrainedTokenizerBase | None
    vocabulary: int
    block_size: int
    seed: int
    cache: Path

    def read(self, sources: Sequence[Path | HubData], label: str, max_tokens: int | None) -> tuple[Tokens, Fingerprint]:
        """Return the tokens of files, or of datasets on the hub, and their fingerprint."""
        sources = [resolve(source) if isinstance(source, HubData) else source for source in sources]
        if isinstance(sources[0], Path) and _is_tokens(sources[0]):
            units = dtype = "uint16" if self.vocabulary <= 1 << 16 else "uint32"
            fingerprint = data_fingerprint(sources, units, self.block_size, self.seed, max_tokens=max_tokens)
            tokens = open_tokens(sources[0], dtype)[:max_tokens]
        else:
            units = BYTES if self.tokenizer is None else tokenizer_digest(self.tokenizer)
            fingerprint = data_fingerprint(sources, units, self.block_size, self.seed, max_tokens=max_tokens)
            dtype = "uint8" if self.tokenizer is None else "uint32"
            path = self.cache / f"{CACHE}{fingerprint.digest}.cache"
            tokens = cached_tokens(path, dtype, _documents(sources), self.tokenizer, max_tokens)
        check_vocabulary(tokens, self.vocabulary, label)
        return tokens, fingerprint


def _label(paths: Sequence[str | Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def _refuse_shared(trained: Fingerprint, held_out: Fingerprint) -> None:
    """Refuse a held-out file that is trained on, under whatever name."""
    contents = {msgspec.structs.replace(file, name="" if file.ends else file.name): file.name for file in trained.files}
    for file in held_out.files:
        same = contents.get(msgspec.structs.replace(file, name="" if file.ends else file.name))
        if same is not None:
            raise SourceError(f"{file.name} of eval_data= is {same} of data=, which is trained on: give other data")


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
