"""Cuts tokens into blocks of one length, and holds some of them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from specdiag.errors import SourceError

HELD_OUT_SHARE = 64
"""Number of blocks per held-out block. At least one block is held out."""
HELD_OUT_MOST = 512
"""Largest number of held-out blocks."""

Tokens = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
"""Tokens of a file in stored order, of shape [n]."""


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of a memory-mapped token file. Tokens after the last whole block are left out.

    Every block predicts `size - 1` tokens, so that a mean over blocks is a mean over tokens.
    """

    def __init__(self, tokens: Tokens, size: int, indices: NDArray[np.int64]) -> None:
        self.tokens, self.size, self.indices = tokens, size, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return a block as input and label."""
        start = int(self.indices[index]) * self.size
        block = torch.from_numpy(self.tokens[start : start + self.size].astype(np.int64))
        return {"input_ids": block, "labels": block}


def split(tokens: Tokens, size: int, label: str) -> tuple[Blocks, Blocks]:
    """Split tokens into training and held-out blocks. Which are held out depends only on the number of blocks.

    Args:
        tokens: tokens of shape [n].
        size: tokens of a block.
        label: source of the tokens, for the message.

    Returns:
        Training blocks, and held-out blocks.

    Raises:
        SourceError: there are fewer than two blocks.
    """
    n = len(tokens) // size
    if n < 2:
        raise SourceError(f"{label} holds {len(tokens)} tokens, fewer than two blocks of {size}: give more data")
    held_out = held_out_of(n)
    return Blocks(tokens, size, np.flatnonzero(~held_out)), Blocks(tokens, size, np.flatnonzero(held_out))


def all_blocks(tokens: Tokens, size: int, label: str) -> Blocks:
    """Cut tokens into blocks, and train on all.

    Args:
        tokens: tokens of shape [n].
        size: tokens of a block.
        label: source of the tokens, for the message.

    Raises:
        SourceError: there is no whole block.
    """
    return Blocks(tokens, size, np.arange(_count(tokens, size, label)))


def spread_blocks(tokens: Tokens, size: int, label: str, most: int = HELD_OUT_MOST) -> Blocks:
    """Cut tokens of held-out data into blocks. Of more than `most`, some are chosen by a hash of their number.

    Args:
        tokens: tokens of shape [n].
        size: tokens of a block.
        label: source of the tokens, for the message.
        most: largest number of blocks.

    Raises:
        SourceError: there is no whole block.
    """
    chosen = np.argsort(_hashes(_count(tokens, size, label)), kind="stable")[:most]
    return Blocks(tokens, size, np.sort(chosen))


def _count(tokens: Tokens, size: int, label: str) -> int:
    n = len(tokens) // size
    if n < 1:
        raise SourceError(f"{label} holds {len(tokens)} tokens, fewer than a block of {size}: give more data")
    return n


def held_out_of(n: int, most: int = HELD_OUT_MOST) -> NDArray[np.bool_]:
    """Choose held-out examples by a hash of their number: one in 64, and at least one.

    Args:
        n: number of examples.
        most: largest number of held-out examples.

    Returns:
        True for held-out examples, of shape [n].
    """
    held_out = np.zeros(n, bool)
    held_out[np.argsort(_hashes(n), kind="stable")[: max(1, min(n // HELD_OUT_SHARE, most))]] = True
    return held_out


def open_tokens(path: Path, dtype: str) -> Tokens:
    """Open a token file as a memory map.

    Args:
        path: file of plain integers.
        dtype: numpy's name of their type, such as `uint16`.

    Raises:
        SourceError: the file is empty, its size does not fit the type, or it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size == 0 or size % np.dtype(dtype).itemsize:
            raise SourceError(f"{path} has {size} bytes, which are no {dtype} tokens")
        return np.memmap(path, dtype=dtype, mode="r")
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error


def check_vocabulary(tokens: Tokens, size: int, label: str) -> None:
    """Check that all tokens are in the model's vocabulary.

    Args:
        tokens: tokens of shape [n].
        size: size of the vocabulary.
        label: source of the tokens, for the message.

    Raises:
        SourceError: a token is `size` or larger.
    """
    step = 1 << 24
    largest = max(int(tokens[i : i + step].max()) for i in range(0, len(tokens), step))
    if largest >= size:
        raise SourceError(
            f"{label} has token {largest} and the model a vocabulary of {size}: it was made for another tokenizer"
        )


def _hashes(n: int) -> NDArray[np.uint64]:
    """SplitMix64 of 0 .. n - 1."""
    with np.errstate(over="ignore"):
        z = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
