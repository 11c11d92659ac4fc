"""The step that a file of torch.save says it was written at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from specdiag.checkpoint.file_map import FileMap
from specdiag.checkpoint.formats import TORCH, recognise
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import PART
from specdiag.checkpoint.shards import parse_json
from specdiag.checkpoint.torch_archive import open_torch
from specdiag.checkpoint.weight_names import weight_files
from specdiag.errors import SourceError
from specdiag.files import read_whole
from specdiag.trajectories.rolling import STEP_FILES, NoStepError

STEP_KEYS = (
    *("iter_num", "global_step", "step", "iteration", "iter", "num_updates", "update_step", "global_steps"),
    *("step_count", "current_step", "steps", "epoch"),
)
"""Names under which training scripts keep their step, the first that a file has counts. An epoch is the last choice."""
_HOLDERS = ("meta", "extra_state", "trainer_state", "train_state", "training_state", "state")
"""Dictionaries in which programs keep the step, where it does not lie beside them."""
_HISTORY = "optimizer_history"
"""List of fairseq, whose last entry has the number of updates."""
_LARGEST = 10**18


def saved_step(path: Path) -> int:
    """Read the step from a file of torch.save. Nothing of it is run, and no memory is mapped to read values.

    Args:
        path: the file; or a folder with one that tells its step, `trainer_state.json` or `meta.pt`.

    Returns:
        The step.

    Raises:
        NoStepError: it holds none, or one that is no whole number from 0 on.
        SourceError: it is damaged, no file of torch.save, or the folder is being written.
    """
    if path.is_dir():
        return _step_of_folder(path)
    label = str(path)
    format = recognise(path, label)
    if format is not TORCH:
        raise NoStepError(f"'{label}' is a file of {format.name}, which holds no step: {_WAY_ON}")
    opened = open_torch(path, label)
    for place in _places(opened.content):
        for key in STEP_KEYS:
            if place.get(key) is not None:
                return _whole(place[key], key, label, opened.mapped)
    raise NoStepError(f"'{label}' holds no step (none of {', '.join(STEP_KEYS)}): {_WAY_ON}")


def _step_of_folder(folder: Path) -> int:
    """Read the step of a folder from the file that is written after its weights."""
    file = next((folder / name for name in STEP_FILES if (folder / name).is_file()), None)
    if file is None:
        raise SourceError(
            f"'{folder}' holds no {' and no '.join(STEP_FILES)}, which tell its step: it is being written"
        )
    written = file.stat().st_mtime_ns
    newer = next(
        (path for path in sorted(folder.rglob("*")) if _is_weights(path) and path.stat().st_mtime_ns > written), None
    )
    if newer is not None:
        raise SourceError(
            f"'{folder}' holds {newer.name}, which is newer than {file.name}: it is being written, or the step in "
            f"{file.name} is that of an earlier save"
        )
    if file.name != STEP_FILES[0]:
        return saved_step(file)
    content = parse_json(read_whole(file), str(file))
    if content.get("global_step") is None:
        raise NoStepError(f"'{file}' holds no global_step: {_WAY_ON}")
    return _whole(content["global_step"], "global_step", str(file), None)


def _is_weights(path: Path) -> bool:
    return path.name not in STEP_FILES and (path.name.endswith(PART) or bool(weight_files([path.name])))


_WAY_ON = "give a glob of the run's checkpoints, whose names hold their steps"


def _places(content: object) -> list[Mapping[object, object]]:
    """List the dictionaries to look into, the file's own first."""
    if not isinstance(content, Mapping):
        return []
    top = cast("Mapping[object, object]", content)
    history = top.get(_HISTORY)
    last = cast("list[object]", history)[-1:] if isinstance(history, list) else []
    inner = [*(top.get(name) for name in _HOLDERS), *last]
    return [top, *(cast("Mapping[object, object]", value) for value in inner if isinstance(value, Mapping))]


def _whole(value: object, key: str, label: str, mapped: FileMap | None) -> int:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = (value if mapped is None else mapped.fetch(value, key, label)).item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise NoStepError(f"'{label}' holds {_shown(value)} as its {key}, which is no step: {_WAY_ON}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, (int, float, str)):
        return f"{value!r:.40}"
    return f"an object of {brief(value.kind)}" if isinstance(value, Inert) else f"a {type(value).__name__}"
