"""Sets of shards by their names, which count themselves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from specdiag.checkpoint.distributed.folders import slices_set
from specdiag.checkpoint.weight_names import SHARD, TUNED


def set_of(name: str) -> tuple[str, ...]:
    """Name the set of shards that a file belongs to; a file that is no shard is a set of its own.

    Args:
        name: of the file.
    """
    shard = SHARD.fullmatch(name)
    if shard is not None:
        return shard.group("stem", "total", "suffix")
    tuned = TUNED.fullmatch(name)
    return (name,) if tuned is None else tuned.group("before", "epoch")


def missing_shards(files: Sequence[str]) -> tuple[str, ...]:
    """Name shards that the names of others count, the first nine.

    Args:
        files: of one set.
    """
    shard = SHARD.fullmatch(files[0]) or TUNED.fullmatch(files[0])
    if shard is None or slices_set(files[0]) is not None:  # of slices, a process may have none for a file
        return ()
    begin, end = shard.span("number")
    present = {int(name[begin:end]) for name in files}
    first = 0 if 0 in present else 1
    total = int(shard["total"]) if "total" in shard.re.groupindex else max(present)
    numbers = (number for number in range(first, first + total) if number not in present)
    return tuple(f"{files[0][:begin]}{number:0{end - begin}d}{files[0][end:]}" for number in islice(numbers, 9))


def all_of_its_set(name: str) -> str:
    """Write a shard's name as a glob of all shards of its set; any other name as it is.

    Args:
        name: of the file.
    """
    shard = SHARD.fullmatch(name) or TUNED.fullmatch(name)
    begin, end = (0, 0) if shard is None else shard.span("number")
    return f"{name[:begin]}*{name[end:]}"
