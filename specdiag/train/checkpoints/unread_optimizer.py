"""Optimizers in forms from which no run goes on here, found by names that programs give to files and keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from specdiag.checkpoint.formats import TORCH_SUFFIXES
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import METADATA
from specdiag.checkpoint.training_state import OPTIMIZER as STATE_OF_OPTIMIZER
from specdiag.checkpoint.training_state import training_state
from specdiag.errors import SourceError, UsageError
from specdiag.files import TEXT_LIMIT, read_start
from specdiag.train.checkpoints.inspect import OPTIMIZER

_FILES = re.compile(r"optim[^/]*\.(pt|pth|bin|ckpt|safetensors)|optimizer_\d+|.*_optim_states\.pt|recipe_state\.pt")
"""Files, and accelerate's folders of chunks."""
_PARTITIONS = "global_step*/*_optim_states.pt"
"""DeepSpeed's partitions, in a folder of their own."""
_KEYS = re.compile(r"(.*[_.])?(optim\w*|opt)", re.IGNORECASE)


def optimizer_file(folder: Path, *, own: bool = False) -> str | None:
    """Find what keeps the state of an optimizer in a folder.

    Args:
        folder: of a checkpoint.
        own: True to name a Trainer's optimizer.pt too, where it is not read either.

    Returns:
        The name of a file or folder in it; None where nothing is called so.
    """
    partition = next(iter(sorted(folder.glob(_PARTITIONS))), None)
    if partition is not None:
        return partition.parent.name
    names = sorted(path.name for path in folder.iterdir() if _FILES.fullmatch(path.name))
    return next((name for name in names if own or name != OPTIMIZER), None)


def optimizer_key(content: Mapping[str, object]) -> str | None:
    """Find the key under which a file keeps the state of an optimizer, told by its content, else by its name.

    Args:
        content: of the file.

    Returns:
        The key; None where there is none, or nothing lies under it.
    """
    by_content = (key for key, value in content.items() if _is_optimizer(value))
    by_name = (
        key for key, value in content.items() if _KEYS.fullmatch(key) and isinstance(value, (dict, list)) and value
    )
    return next(by_content, None) or next(by_name, None)


def find_unread(run: Path) -> str | None:
    """Find what keeps the state of an optimizer whose settings are not read.

    Args:
        run: a checkpoint, a folder or one file of torch.save.

    Returns:
        Where it is, for messages; None where nothing is known of one.
    """
    if b"optim" in read_start(run / METADATA, TEXT_LIMIT):
        return f"{METADATA}, as torch.distributed.checkpoint saves it"
    place = optimizer_file(run, own=True) if run.is_dir() else None
    if place is not None:
        return place
    from specdiag.checkpoint.torch_archive import open_torch

    for path in sorted(run.iterdir()) if run.is_dir() else [run]:
        if path.suffix not in TORCH_SUFFIXES or not path.is_file():
            continue
        try:
            content = open_torch(path, str(path)).content
        except SourceError:
            continue
        entries = _named(content)
        for prefix, inner in (("", entries), *((f"{key}.", _named(value)) for key, value in entries.items())):
            if (key := optimizer_key(inner)) is not None:
                return f"'{brief(prefix + key)}' of {path.name}"
    return None


def _named(value: object) -> dict[str, object]:
    entries = cast("Mapping[object, object]", value).items() if isinstance(value, Mapping) else ()
    return {key: inner for key, inner in entries if isinstance(key, str)}


def refuse_unread(label: str, place: str) -> None:
    """Say that there is an optimizer, in a form that is not read.

    Args:
        label: the checkpoint, for messages.
        place: where it keeps the optimizer.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"{label} keeps its optimizer in {place}, a form from which no run goes on here: go on in its own script, or "
        "start a run from these weights with fresh_optimizer=True, lr=, weight_decay= and steps_total="
    )


def _is_optimizer(value: object) -> bool:
    entries = cast("list[object]", value) if isinstance(value, list) and value else [value]
    return all(training_state(entry) == STATE_OF_OPTIMIZER for entry in entries)
