"""Checks of index and shards against each other. A listed file that is missing fails while the checkpoint is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from specdiag.auditing.records import SELECTION
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.report import SpectralReport
from specdiag.text.counts import counted

_SHARD = re.compile(r"(?P<stem>.*[-_])\d+-of-(?P<total>\d+)(?P<suffix>\.\w+)")
_NOTES = tuple(
    (check, re.compile(rf"(?P<index>\S+) {pattern}\.", re.DOTALL), value)
    for check, pattern, value in (
        ("index_part", r"lists \d+ shards? of a larger set: not (?P<names>.*)", "not in {}"),
        ("ghost", r"lists (?P<names>.*), which its shards lack", "listed in {}, not there"),
        ("unlisted", r"does not list (?P<names>.*), which its shards hold", "not in {}"),
        ("unlisted", r"lists (?P<names>.*) under a shard that does not hold it", "under another shard in {}"),
    )
)
"""Remarks that reading a checkpoint leaves, and what each observes."""
_SIZE = re.compile(r"(?P<index>\S+) (?P<what>states \S+ bytes, and its shards hold \d+)\.", re.DOTALL)
_PART = re.compile(r"Read \d+ shards? of a larger set, without .*", re.DOTALL)


def extra(subject: Subject) -> Iterator[Observation]:
    """Find shards beside those that were read, and where index and shards do not list the same.

    Args:
        subject: the subject of the audit.
    """
    report = subject.report
    unlisted: set[str] = set()
    for note in report.provenance.notes:
        for check, pattern, value in _NOTES:
            if match := pattern.fullmatch(note):
                yield Observation(check, match["names"], value.format(match["index"]))
                unlisted |= set(match["names"].split(", ")) if check == "index_part" else set()
        if match := _SIZE.fullmatch(note):
            yield Observation("index_size", match["index"], match["what"])
    if _one_of(report) is not None:
        return
    kinds = {match.group("stem", "suffix") for name in report.source.files if (match := _SHARD.fullmatch(name))}
    for name in report.source.ignored:
        match = _SHARD.fullmatch(name)
        if match is not None and match.group("stem", "suffix") in kinds and name not in unlisted:
            yield Observation("extra_shard", name, "no part of the model that was read")


def types(subject: Subject) -> Iterator[Observation]:
    """Find shards of another type than the others: each of one type alone, and a role in several types.

    Args:
        subject: the subject of the audit.
    """
    kinds: dict[str, set[str]] = {}
    roles: dict[tuple[str | None, str], set[str]] = {}
    for record in subject.report:
        file = subject.files.get(record.name)
        if record.layer is not None and file is not None and _SHARD.fullmatch(file) and not record.dequantized:
            kinds.setdefault(file, set()).add(record.storage_dtype)
            roles.setdefault((record.part, record.role), set()).add(record.storage_dtype)
    if any(len(found) > 1 for found in kinds.values()) or all(len(found) < 2 for found in roles.values()):
        return
    counts = Counter(dtype for (dtype,) in kinds.values())
    usual = counts.most_common(1)[0][0]
    for file, (dtype,) in kinds.items():
        if dtype != usual:
            yield Observation("shard_types", file, f"{dtype}, where {counted(counts[usual], 'shard')} hold {usual}")


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, with the reason.

    Args:
        subject: the subject of the audit.
    """
    if subject.is_checkpoint:
        return {}
    return {"shard_types": "a report does not say which shard holds a matrix: audit the checkpoint"}


def partial(report: SpectralReport) -> str | None:
    """Explain why a missing matrix proves nothing: the report covers only a part of the checkpoint.

    Args:
        report: of the checkpoint.

    Returns:
        The reason; None where the report covers everything.
    """
    settings, source = report.settings, report.source
    if settings.include or settings.exclude or settings.roles or settings.experts is not None:
        return SELECTION
    total = _one_of(report)
    if total is not None:
        return f"{source.files[0]} is one shard of {total}"
    if any(_PART.fullmatch(note) for note in report.provenance.notes):
        return "only some shards of the checkpoint were read"
    return None if report.complete else "the report is incomplete"


def _one_of(report: SpectralReport) -> int | None:
    """Count the shards of the checkpoint, where one of them was picked, and not an index that lists no other."""
    files = report.source.files
    match = _SHARD.fullmatch(files[0]) if len(files) == 1 else None
    if match is None or any(_NOTES[0][1].fullmatch(note) for note in report.provenance.notes):
        return None
    return int(match["total"]) if int(match["total"]) > 1 else None
