"""Checks of files and tensors that no index lists. A listed file that is missing fails while the checkpoint is read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import Source
from specdiag.report import SpectralReport

_SHARD = re.compile(r"(?P<stem>.*[-_])\d+-of-(?P<total>\d+)(?P<suffix>\.\w+)")
_UNLISTED = re.compile(r"(?P<index>\S+) does not list (?P<names>.*), which its shards hold\.", re.DOTALL)


def extra(subject: Subject) -> Iterator[Observation]:
    """Find shards beside those that were read, and tensors in them that the index does not list.

    Args:
        subject: the subject of the audit.
    """
    source = subject.report.source
    if _one_of(source) is not None:
        return
    kinds = {match.group("stem", "suffix") for name in source.files if (match := _SHARD.fullmatch(name))}
    for name in source.ignored:
        match = _SHARD.fullmatch(name)
        if match is not None and match.group("stem", "suffix") in kinds:
            yield Observation("extra_shard", name, "not read")
    for note in subject.report.provenance.notes:
        if unlisted := _UNLISTED.fullmatch(note):
            yield Observation("unlisted", unlisted["names"], f"not in {unlisted['index']}")


def partial(report: SpectralReport) -> str | None:
    """Explain why a missing matrix proves nothing: the report covers only a part of the checkpoint.

    Args:
        report: of the checkpoint.

    Returns:
        The reason; None where the report covers everything.
    """
    settings, source = report.settings, report.source
    if settings.include or settings.exclude or settings.roles or settings.experts is not None:
        return "only a selection of the matrices was asked for"
    total = _one_of(source)
    if total is not None:
        return f"{source.files[0]} is one shard of {total}"
    return None if report.complete else "the report is incomplete"


def _one_of(source: Source) -> int | None:
    """Count the shards of the checkpoint, where only one of them was read."""
    match = _SHARD.fullmatch(source.files[0]) if len(source.files) == 1 else None
    return int(match["total"]) if match is not None and int(match["total"]) > 1 else None
