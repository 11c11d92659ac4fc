"""Training data from files: text, jsonl and parquet through `datasets`, or tokens as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from specdiag.errors import ComputationError, MissingExtraError, SourceError, UsageError
from specdiag.train.blocks import check_vocabulary, open_tokens, split
from specdiag.train.fingerprint import Fingerprint, fingerprint

if TYPE_CHECKING:
    from transformers import EvalPrediction

_READERS = {
    ".txt": "text", ".md": "text", ".py": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet",
    ".bin": "tokens",
}  # fmt: skip
CACHE = "tokens-"
"""Beginning of the names of cached tokens."""
_COLUMN = "text"
BYTES = "bytes"
"""As the units of a fingerprint."""
_BYTES = 256


class Examples(Protocol):
    """A dataset of map style."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Data:
    """What a run trains and is judged on.

    Attributes:
        train: examples in stored order; the Trainer shuffles them by its seed.
        held_out: examples that are never trained on.
        fingerprint: for comparison when the run goes on.
        n_tokens: of all blocks; 0 where examples are no blocks of tokens.
        collate: makes a batch of examples; None for the Trainer's own way.
        metrics: figures of merit from all held-out predictions; None where the loss is all.
        labels: names of the classes, in the order of their numbers; None where there are none.
    """

    train: Examples
    held_out: Examples
    fingerprint: Fingerprint
    n_tokens: int = 0
    collate: Callable[[list[Any]], dict[str, Any]] | None = None
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    labels: tuple[str, ...] | None = None


def data_files(paths: Sequence[Path]) -> list[Path]:
    """The files that were named; of a folder, all below it whose type is known, by name.

    Raises:
        UsageError: nothing was named, or a type is unknown or mixed with tokens.
        SourceError: a path does not exist, or a folder holds no data.
    """
    if not paths:
        raise UsageError("the run keeps no data of its own: name it with --data PATH (text, jsonl, parquet, .bin)")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in _READERS and p.is_file())
            if not found:
                raise SourceError(f"{path} holds no {', '.join(_READERS)} files")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise SourceError(f"there is no {path}")
    unknown = [path for path in files if path.suffix not in _READERS]
    if unknown:
        raise UsageError(f"{unknown[0]} is none of {', '.join(_READERS)}: convert it, or rename it if it is plain text")
    if len({_READERS[path.suffix] == "tokens" for path in files}) > 1 or (
        len(files) > 1 and _READERS[files[0].suffix] == "tokens"
    ):
        raise UsageError("tokens come as one .bin file and not together with text")
    return files


def load_data(
    paths: Sequence[Path], *, tokenizer: Any, vocabulary: int, block_size: int, seed: int, cache: Path
) -> Data:
    """Pack files into blocks of tokens.

    Args:
        paths: files and folders.
        tokenizer: of the checkpoint; None for bytes.
        vocabulary: of the model.
        block_size: tokens of a block.
        seed: of the run, for the fingerprint.
        cache: a folder that keeps the tokens for the next start.

    Raises:
        UsageError: the files are none that can be read.
        SourceError: they are damaged, too few, or of another vocabulary.
    """
    files = data_files(paths)
    label = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if _READERS[files[0].suffix] == "tokens":
        units = dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
        found = fingerprint(files, units, block_size, seed)
        tokens = open_tokens(files[0], dtype)
    else:
        if tokenizer is None and vocabulary < _BYTES:
            raise UsageError(f"there is no tokenizer, and a vocabulary of {vocabulary} has no room for the 256 bytes")
        units = BYTES if tokenizer is None else _digest(tokenizer)
        found = fingerprint(files, units, block_size, seed)
        dtype = "uint8" if tokenizer is None else "uint32"
        tokens = _cached(cache / f"{CACHE}{found.digest}.cache", dtype, _documents(files), tokenizer)
    check_vocabulary(tokens, vocabulary, label)
    train, held_out = split(tokens, block_size, label)
    return Data(train, held_out, found, (len(train) + len(held_out)) * block_size)


def _documents(files: Sequence[Path]) -> Iterator[str]:
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError("reading text for training needs datasets: pip install datasets") from error
    for path in files:
        kind = _READERS[path.suffix]
        options: dict[str, Any] = {"sample_by": "document"} if kind == "text" else {}
        try:
            rows: Any = load_dataset(kind, data_files=[str(path)], split="train", streaming=True, **options)
            for row in rows:
                yield _text(row, path)
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            reason = str(error).partition("\n")[0]
            raise SourceError(f"{path} cannot be read as {kind} ({reason})") from error


def _text(row: dict[str, Any], path: Path) -> str:
    strings = [name for name, value in row.items() if isinstance(value, str)]
    name = _COLUMN if _COLUMN in strings else strings[0] if len(strings) == 1 else None
    if name is None:
        raise SourceError(f"{path} has no column '{_COLUMN}' with text, but {', '.join(row)}: rename the one you mean")
    return row[name]


def _cached(path: Path, dtype: str, documents: Iterator[str], tokenizer: Any) -> NDArray[Any]:
    """Tokens of all documents, from the cache where they are, else written there whole or not at all."""
    if not path.exists():
        unfinished = path.with_suffix(".part")
        try:
            with unfinished.open("wb") as file:
                for document in documents:
                    file.write(np.asarray(_tokens(document, tokenizer), dtype=dtype).tobytes())
            unfinished.replace(path)
        except OSError as error:
            raise ComputationError(f"writing {path} failed: {error.strerror}; free space") from error
        finally:
            unfinished.unlink(missing_ok=True)
    return open_tokens(path, dtype)


def _tokens(document: str, tokenizer: Any) -> Sequence[int] | NDArray[np.uint8]:
    """Tokens of one document; where the tokenizer has a token for the end, it follows."""
    if tokenizer is None:
        return np.frombuffer(document.encode(), np.uint8)
    found: list[int] = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return found if tokenizer.eos_token_id is None else [*found, tokenizer.eos_token_id]


def _digest(tokenizer: Any) -> str:
    vocabulary = sorted(cast("dict[str, int]", tokenizer.get_vocab()).items())
    return hashlib.sha256(repr((type(tokenizer).__name__, vocabulary)).encode()).hexdigest()[:16]
