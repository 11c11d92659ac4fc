"""Files that hold one process's slices of a model: alone they are no matrices of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from specdiag.errors import SourceError

METADATA = ".metadata"
"""The file that a distributed checkpoint is saved with last, and that says where everything lies."""
PART = ".distcp"
"""End of the names of the files of chunks beside it."""
WHOLE = f"give the whole folder, with its {METADATA}"
_DISTRIBUTED_FILE = re.compile(r"__\d+_\d+(\.\w+)?")
_ZERO = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
_ZERO_3 = "run its zero_to_fp32.py, or give mp_rank_00_model_states.pt where there is one"
_SLICES = tuple(
    re.compile(pattern)
    for pattern in (
        r"consolidated\.(?P<rank>\d+)\.(pth|pt|bin)",
        r"mp_rank_(?P<rank>\d+)(?P<more>_\w+)?\.(pt|pth)",
        r"mp_rank_(?P<rank>\d+)(_\d+)*/[^/]+\.(pt|pth)",
        r"(model|optim)_world_size_(?P<total>\d+)_rank_(?P<rank>\d+)\.pt",
        r"layer_\d+-model_(?P<rank>\d+)-model_states\.pt",
        r".*tp_rank_(?P<rank>\d+).*\.(pt|pth|ckpt|bin)",
    )
)
_MOST = 4096


def refuse_part(path: str, label: str, exists: Callable[[str], bool]) -> None:
    """Refuse a file whose name, or whose neighbours, say that it is a process's part of a model.

    Args:
        path: the file, with `/` between folders, as `exists` takes it.
        label: its name in messages.
        exists: whether there is a file of that name.

    Raises:
        SourceError: it is one.
    """
    folder, _, base = path.rpartition("/")
    prefix = f"{folder}/" if folder else ""
    if base.endswith(PART) or (_DISTRIBUTED_FILE.fullmatch(base) and exists(prefix + METADATA)):
        raise SourceError(f"'{label}' is a part of a distributed checkpoint, not a whole file: {WHOLE}")
    zero = _ZERO.fullmatch(base)
    if zero is not None:
        content = "an optimizer's state" if zero[2] == "optim" else "a model"
        raise SourceError(f"'{label}' is a part of {content} that DeepSpeed ZeRO divided among processes: {_ZERO_3}")
    _refuse_slice(path, label, exists)


def _refuse_slice(path: str, label: str, exists: Callable[[str], bool]) -> None:
    for start in _starts(path):
        for pattern in _SLICES:
            match = pattern.fullmatch(path, start)
            if match is not None:
                n_parts = _n_parts(path, match, exists)
                if n_parts > 1:
                    raise SourceError(
                        f"'{label}' is part {int(match['rank']) + 1} of {n_parts} of a model cut for tensor "
                        "parallelism, and its slices are no matrices: merge the parts first"
                    )


def _starts(path: str) -> tuple[int, int]:
    """Find where the file's name begins, and where that of its folder does."""
    base = path.rfind("/") + 1
    return base, path.rfind("/", 0, max(base - 1, 0)) + 1


def _n_parts(path: str, match: re.Match[str], exists: Callable[[str], bool]) -> int:
    """Count the parts: as many as the name says, or as many as there are files."""
    if "total" in match.re.groupindex:
        return min(int(match["total"]), _MOST)
    begin, end = match.span("rank")
    rank = int(match["rank"])
    total = min(rank, _MOST) + 1
    while total < _MOST and exists(f"{path[:begin]}{total:0{end - begin}d}{path[end:]}"):
        total += 1
    return total
