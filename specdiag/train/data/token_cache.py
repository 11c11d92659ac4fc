"""Keeps the tokens of texts in a file, so that the next start need not make them again."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from specdiag.errors import ComputationError
from specdiag.train.data.blocks import Tokens, open_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CACHE = "tokens-"
"""Prefix of the names of cached tokens."""
_SUM = ".sha256"
_log = logging.getLogger(__name__)
_AT_ONCE = 64
"""Number of documents given to a tokenizer at once."""


def cached_tokens(
    path: Path, dtype: str, documents: Iterable[str], tokenizer: PreTrainedTokenizerBase | None, max_tokens: int | None
) -> Tokens:
    """Open the tokens of documents from the cache. If they are not there, they are written there atomically first.

    A cache in the folder above is used too, because runs of a sweep share it.

    Args:
        path: file of the cache.
        dtype: numpy's name of the type of the tokens.
        documents: texts in stored order.
        tokenizer: tokenizer; None for bytes.
        max_tokens: largest number of tokens to take; None for all.

    Raises:
        ComputationError: the tokens cannot be written.
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
