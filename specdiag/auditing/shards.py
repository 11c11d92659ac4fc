"""Files and tensors that are there although nobody lists them. What is listed and missing ends the reading itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from specdiag.auditing.thresholds import Observation
from specdiag.records import Source

_SHARD = re.compile(r"(?P<stem>.*[-_])\d+-of-(?P<total>\d+)(?P<suffix>\.\w+)")
_UNLISTED = re.compile(r"(?P<index>\S+) does not list (?P<names>.*), which its shards hold\.", re.DOTALL)


def extra(source: Source, notes: Sequence[str]) -> Iterator[Observation]:
    """Shards beside those that were read, and tensors in them that the index does not list."""
    kinds = {match.group("stem", "suffix") for name in source.files if (match := _SHARD.fullmatch(name))}
    for name in source.ignored:
        match = _SHARD.fullmatch(name)
        if match is not None and match.group("stem", "suffix") in kinds:
            yield Observation("extra_shard", name, "not read")
    for note in notes:
        if unlisted := _UNLISTED.fullmatch(note):
            yield Observation("unlisted", unlisted["names"], f"not in {unlisted['index']}")


def one_of(source: Source) -> int | None:
    """Into how many shards the checkpoint is cut, where only one of them was read."""
    match = _SHARD.fullmatch(source.files[0]) if len(source.files) == 1 else None
    return int(match["total"]) if match is not None and int(match["total"]) > 1 else None
