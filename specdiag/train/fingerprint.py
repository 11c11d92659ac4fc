"""Which data a run reads: compared when it goes on, so that it goes on with the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from specdiag.records import Record
from specdiag.train.manifest import mark


class DataFile(Record, frozen=True, kw_only=True):
    """One file by its name, its size and its ends; it may move to another folder."""

    name: str
    size: int
    ends: str


class Fingerprint(Record, frozen=True, kw_only=True):
    """All that decides which tokens come in which block."""

    files: tuple[DataFile, ...]
    tokens: str
    """`bytes`, `uint16`, `uint32`, or a digest of the tokenizer."""
    block_size: int
    seed: int

    def differences(self, other: Fingerprint) -> list[str]:
        """What another one has otherwise, in words; empty if nothing."""
        said: list[str] = []
        ours, theirs = ({f.name: f for f in side.files} for side in (self, other))
        said += [f"{name} is gone" for name in ours if name not in theirs]
        said += [f"{name} is new" for name in theirs if name not in ours]
        said += [f"{name} has other content" for name in ours if name in theirs and ours[name] != theirs[name]]
        if not said and self.files != other.files:
            said.append("the files come in another order")
        for field in ("tokens", "block_size", "seed"):
            before, now = getattr(self, field), getattr(other, field)
            if before != now:
                said.append(f"{field.replace('_', ' ')} {before} became {now}")
        return said

    @property
    def digest(self) -> str:
        """Names the tokens of these files in these units, whatever the blocks."""
        return hashlib.sha256(repr((self.files, self.tokens)).encode()).hexdigest()[:16]


def fingerprint(files: Sequence[Path], tokens: str, block_size: int, seed: int) -> Fingerprint:
    """The fingerprint of data files, from their sizes and first and last MiB.

    Raises:
        OSError: a file cannot be read.
    """
    marks = [(path.name, mark(path)) for path in files]
    return Fingerprint(
        files=tuple(DataFile(name=name, size=m.size, ends=m.ends) for name, m in marks),
        tokens=tokens,
        block_size=block_size,
        seed=seed,
    )
