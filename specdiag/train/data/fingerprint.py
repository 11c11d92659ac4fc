"""Which data a run reads: compared when it goes on, so that it goes on with the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from specdiag.records import Record
from specdiag.train.checkpoints.manifest import mark
from specdiag.train.data.hub import HubData


class DataFile(Record, frozen=True, kw_only=True, omit_defaults=True):
    """File by its name, size and ends, in any folder; or a dataset of the hub."""

    name: str
    """Name of the file; `org/name:config/split` of a dataset."""
    size: int = 0
    ends: str = ""
    commit: str = ""
    """Commit of a dataset, which has neither size nor ends here."""


class Fingerprint(Record, frozen=True, kw_only=True, omit_defaults=True):
    """All that decides which tokens come in which block, or which examples there are."""

    files: tuple[DataFile, ...]
    tokens: str
    """`bytes`, `uint16`, `uint32`, or a digest of the tokenizer."""
    block_size: int
    """Tokens of a block; for examples, of the longest."""
    seed: int
    max_tokens: int = 0
    """Tokens after so many were left out; 0 for no such bound."""
    task: str = ""
    """Other than predicting the next token."""
    columns: tuple[str, ...] = ()
    """Columns of examples: texts, then the label."""

    def differences(self, other: Fingerprint) -> list[str]:
        """Describe each difference to another fingerprint; empty if there is none."""
        changes: list[str] = []
        ours, theirs = ({f.name: f for f in side.files} for side in (self, other))
        changes += [f"{name} is gone" for name in ours if name not in theirs]
        changes += [f"{name} is new" for name in theirs if name not in ours]
        changes += [_change(f, theirs[name]) for name, f in ours.items() if name in theirs and f != theirs[name]]
        if not changes and self.files != other.files:
            changes.append("the files come in another order")
        for field in ("task", "columns", "tokens", "max_tokens", "block_size", "seed"):
            before, now = (_in_words(getattr(side, field)) for side in (self, other))
            if before != now:
                changes.append(f"{field.replace('_', ' ')} {before} became {now}")
        return changes

    @property
    def digest(self) -> str:
        """Names the tokens of these files in these units, whatever the blocks."""
        return hashlib.sha256(repr((self.files, self.tokens, self.max_tokens)).encode()).hexdigest()[:16]


def data_fingerprint(
    sources: Sequence[Path | HubData],
    tokens: str,
    block_size: int,
    seed: int,
    *,
    max_tokens: int | None = None,
    task: str = "",
    columns: Sequence[str] = (),
) -> Fingerprint:
    """The fingerprint of data: files by their sizes and first and last MiB, datasets of the hub by their commits.

    Raises:
        OSError: a file cannot be read.
    """
    return Fingerprint(
        files=tuple(_data_file(source) for source in sources),
        tokens=tokens,
        block_size=block_size,
        seed=seed,
        max_tokens=max_tokens or 0,
        task=task,
        columns=tuple(columns),
    )


def _data_file(source: Path | HubData) -> DataFile:
    if isinstance(source, HubData):
        return DataFile(name=source.name, commit=source.revision or "")
    marked = mark(source)
    return DataFile(name=source.name, size=marked.size, ends=marked.ends)


def _change(before: DataFile, now: DataFile) -> str:
    if before.commit and now.commit:
        return f"{now.name} is at commit {now.commit[:8]} and was at {before.commit[:8]}"
    return f"{now.name} has other content"


def _in_words(value: object) -> object:
    if isinstance(value, tuple):
        return ", ".join(cast("tuple[str, ...]", value)) or "none"
    return "none" if value == "" else value
