"""Files that hold one process's slices of a model: alone they are no matrices of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from specdiag.checkpoint.training_state import OPTIMIZER
from specdiag.checkpoint.weight_names import MOMENT
from specdiag.errors import SourceError
from specdiag.text.names import listed

METADATA = ".metadata"
"""The file that a distributed checkpoint is saved with last, and that says where everything lies."""
PART = ".distcp"
"""End of the names of the files of chunks beside it."""
WHOLE = f"give the whole folder, with its {METADATA}"
_DISTRIBUTED_FILE = re.compile(r"__\d+_\d+(\.\w+)?")
_ZERO = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt")
_FOLDER = "give its folder, in which all parts are read together"
_SLICES = tuple(
    re.compile(pattern)
    for pattern in (
        r"consolidated\.(?P<rank>\d+)\.(pth|pt|bin)",
        r"mp_rank_(?P<rank>\d+)(?P<more>_\w+)?\.(pt|pth)",
        r"mp_rank_(?P<rank>\d+)(_\d+)*/[^/]+\.(pt|pth)",
        r"layer_\d+-model_(?P<rank>\d+)-model_states\.pt",
        r".*tp_rank_(?P<rank>\d+).*\.(pt|pth|ckpt|bin)",
    )
)
_UNREAD = _SLICES[-1]
"""Slices whose folder is not read as one model either."""
_FSDP = re.compile(
    r"(model|optim|extra_state)_world_size_(?!1_)\d+_rank_\d+\.pt|pytorch_model_fsdp(_\d+)?_rank\d+\.bin"
)
"""Files of verl and of accelerate, one for each process."""
_JOINED = re.compile(r"model_world_size_\d+_rank_\d+\.pt|pytorch_model_fsdp_rank\d+\.bin")
"""Those of them whose folder is read."""
_MERGE = (
    "its slices are not joined here: merge them with the program that wrote them (verl: python -m verl.model_merger), "
    "or save the whole state dict (accelerate: FULL_STATE_DICT)"
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
    if MOMENT.fullmatch(path):
        raise SourceError(
            f"'{label}' is {OPTIMIZER} of one parameter in a universal checkpoint of DeepSpeed: give the folder of its "
            "folder zero"
        )
    zero = _ZERO.fullmatch(base)
    if zero is not None:
        content = "an optimizer's state" if zero[2] == "optim" else "a model"
        raise SourceError(f"'{label}' is a part of {content} that DeepSpeed ZeRO divided among processes: {_FOLDER}")
    if _FSDP.fullmatch(base):
        hint = f": {_FOLDER}" if _JOINED.fullmatch(base) else f", and {_MERGE}"
        raise SourceError(f"'{label}' is one process's part of a model that FSDP divided{hint}")
    _refuse_slice(path, label, exists)


def refuse_parts(names: Iterable[str], where: str) -> None:
    """Refuse files of which each is one process's part, in a folder that holds no other weights.

    Args:
        names: all files of weights in the folder.
        where: the folder, for messages.

    Raises:
        SourceError: all are such parts.
    """
    bases = [name.rpartition("/")[2] for name in names]
    if bases and all(map(_FSDP.fullmatch, bases)):
        raise SourceError(
            f"{where} holds {listed(bases)}, each a process's part of a model that FSDP divided, and {_MERGE}"
        )


def refuse_counted_part(content: Mapping[object, object], label: str) -> None:
    """Refuse a file whose content says that it is one of several parts, as DeepSpeed's does.

    Args:
        content: of the file.
        label: its name in messages.

    Raises:
        SourceError: it is one.
    """
    world = content.get("mp_world_size", 1)
    if type(world) is int and world > 1 and "module" in content:
        raise SourceError(
            f"'{label}' is one of {world} parts of a model cut for tensor parallelism: its slices are no matrices; "
            "convert the checkpoint with DeepSpeed's ds_to_universal.py"
        )


def refuse_lone_part(shapes: Mapping[str, Sequence[int]], label: str) -> None:
    """Refuse a part of Meta's whose neighbours are not there: its attention writes less than the model's width.

    Args:
        shapes: of all tensors of the file, by name.
        label: its name in messages.

    Raises:
        SourceError: it is one.
    """
    norm, output = shapes.get("norm.weight", ()), shapes.get("layers.0.attention.wo.weight", ())
    is_meta = re.fullmatch(r"(.*/)?consolidated\.\d+\.\w+", label) and len(norm) == 1 and len(output) == 2
    if is_meta and norm[0] == output[0] > output[1]:
        raise SourceError(
            f"'{label}' is one of several parts: its attention.wo has {output[1]} columns, and the model's width is "
            f"{norm[0]}; fetch the other parts, and give their folder"
        )


def _refuse_slice(path: str, label: str, exists: Callable[[str], bool]) -> None:
    for start in _starts(path):
        for pattern in _SLICES:
            match = pattern.fullmatch(path, start)
            if match is not None:
                n_parts = _n_parts(path, match, exists)
                if n_parts > 1:
                    hint = _FOLDER if pattern is not _UNREAD else "merge them with the program that wrote them"
                    raise SourceError(
                        f"'{label}' is part {int(match['rank']) + 1} of {n_parts} of a model cut for tensor "
                        f"parallelism, and its slices are no matrices: {hint}"
                    )


def _starts(path: str) -> tuple[int, int]:
    """Find where the file's name begins, and where that of its folder does."""
    base = path.rfind("/") + 1
    return base, path.rfind("/", 0, max(base - 1, 0)) + 1


def _n_parts(path: str, match: re.Match[str], exists: Callable[[str], bool]) -> int:
    """Count the parts: as many as there are files."""
    begin, end = match.span("rank")
    rank = int(match["rank"])
    total = min(rank, _MOST) + 1
    while total < _MOST and exists(f"{path[:begin]}{total:0{end - begin}d}{path[end:]}"):
        total += 1
    return total
