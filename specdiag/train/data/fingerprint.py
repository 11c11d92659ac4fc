"""Fingerprints of data, by which a run that continues checks that its data is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from specdiag.records import Record
from specdiag.train.checkpoints.manifest import mark
from specdiag.train.data.hub import HubData


class DataFile(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Identity of a file, by name, size and ends but not by folder; or of a dataset of the hub."""

    name: str
    """Name of the file; `org/name:config/split` for a dataset."""
    size: int = 0
    """Bytes; 0 for a dataset of texts."""
    ends: str = ""
    """Digest of the first and last MiB; for images, of their names and sizes or classes."""
    commit: str = ""
    """Commit of a dataset; empty for a file."""


class Fingerprint(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides which tokens are in which block, or which examples there are."""

    files: tuple[DataFile, ...]
    tokens: str
    """Units: `bytes`, `uint16`, `uint32`, a digest of the tokenizer, or `images` with their augmentation."""
    block_size: int
    """Tokens of a block or of the longest example; pixels of a side for images."""
    seed: int
    """Seed of the run."""
    max_tokens: int = 0
    """Largest number of tokens to take; 0 for all."""
    task: str = ""
    """Task; empty for predicting the next token."""
    columns: tuple[str, ...] = ()
    """Columns of labelled texts: texts, then the label."""
    held_out: tuple[DataFile, ...] = ()
    """Files of held-out data; empty if it is a part of `files`."""

    def differences(self, other: Fingerprint) -> list[str]:
        """Describe each difference between this fingerprint and a later one.

        Args:
            other: the later fingerprint.

        Returns:
            One phrase for each difference; empty if there is none.
        """
        changes = _file_changes(self.files, other.files, "")
        changes += _file_changes(self.held_out, other.held_out, "held-out ")
        for field in ("task", "columns", "tokens", "max_tokens", "block_size", "seed"):
            before, now = (_in_words(getattr(side, field)) for side in (self, other))
            if before != now:
                changes.append(f"{field.replace('_', ' ')} {before} became {now}")
        return changes

    @property
    def digest(self) -> str:
        """Digest of files, units and `max_tokens`, which names their tokens independently of the blocks."""
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
    """Make the fingerprint of data, by sizes and ends of files and by commits of datasets.

    Args:
        sources: files, and datasets of the hub with their commits.
        tokens: units, as in `Fingerprint`.
        block_size: tokens of a block, or of the longest example.
        seed: seed of the run.
        max_tokens: largest number of tokens to take; None for all.
        task: task; empty for predicting the next token.
        columns: columns of labelled texts.

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
    file_mark = mark(source)
    return DataFile(name=source.name, size=file_mark.size, ends=file_mark.ends)


def _file_changes(before: Sequence[DataFile], now: Sequence[DataFile], kind: str) -> list[str]:
    ours, theirs = ({f.name: f for f in side} for side in (before, now))
    changes = [f"{kind}{name} is gone" for name in ours if name not in theirs]
    changes += [f"{kind}{name} is new" for name in theirs if name not in ours]
    changes += [kind + _change(f, theirs[name]) for name, f in ours.items() if name in theirs and f != theirs[name]]
    if not changes and tuple(before) != tuple(now):
        changes.append(f"the {kind}files come in another order")
    return changes


def _change(before: DataFile, now: DataFile) -> str:
    if before.commit and now.commit:
        return f"{now.name} is at commit {now.commit[:8]} and was at {before.commit[:8]}"
    return f"{now.name} has other content"


def _in_words(value: object) -> object:
    if isinstance(value, tuple):
        return ", ".join(cast("tuple[str, ...]", value)) or "none"
    return "none" if value == "" else value
