"""Reads checkpoints of torch.distributed.checkpoint: plain ones, accelerate's, and those of a Trainer under FSDP."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from specdiag.checkpoint.distributed.checkpoint import list_distributed
from specdiag.checkpoint.distributed.folders import is_accelerate_folder
from specdiag.checkpoint.distributed.optimizer import ListedOptimizer, list_optimizer
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import METADATA
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.wrappers import duplicate
from specdiag.errors import SourceError, UsageError
from specdiag.train.checkpoints.inspect import STATE, checkpoints_of, chunks_in, has_weights
from specdiag.train.checkpoints.unread_optimizer import optimizer_file
from specdiag.train.foreign.building import Loaded, build, dtype_of, load
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.layouts import assign
from specdiag.train.foreign.load import SavedOptimizer, saved_optimizer
from specdiag.train.foreign.moments import decay_differences, moments_of
from specdiag.train.foreign.reported_settings import ReportedSettings
from specdiag.train.foreign.trainer_folder import Progress, read_progress
from specdiag.train.runs.trainer_arguments import TrainerArguments

FUSED = "adamw_torch_fused"
"""A Trainer's own AdamW, whose last bits are others than those of `adamw_torch`."""
KIND = "distributed checkpoint"
_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def metadata_of(source: Path) -> Path | None:
    """Find the `.metadata` of the weights of a distributed checkpoint; None for anything else.

    Args:
        source: `.metadata` itself, its folder, a checkpoint of accelerate or a Trainer that keeps its weights so, or a
            run with such checkpoints, of which the newest that was saved to the end is taken.
    """
    if source.name == METADATA or (source / METADATA).is_file():
        path = source if source.name == METADATA else source / METADATA
        return path if path.is_file() else None
    for folder in (source, *checkpoints_of(source)) if source.is_dir() else ():
        if has_weights(folder):
            return None
        chunks = chunks_in(folder)
        if chunks is not None and (folder == source or (folder / STATE).is_file()):
            return folder / chunks / METADATA
    return None


def home_of(path: Path) -> Path:
    """Return the folder of a checkpoint, which keeps what belongs to it beside its chunks.

    Args:
        path: `.metadata` of its weights.
    """
    folder = path.parent.resolve()
    return folder.parent if is_accelerate_folder(folder.as_posix()) else folder


def read_distributed_weights(path: Path, config: str | Path | None) -> Foreign:
    """Read the model of a distributed checkpoint.

    Args:
        path: its `.metadata`.
        config: folder, config.json or hub id of the model; None for the config.json of the checkpoint or its run.

    Raises:
        UsageError: the model must be named.
        SourceError: the checkpoint is damaged, or is of another model.
    """
    loaded, notes = _model(path, config)
    return Foreign(
        kind=KIND, model=loaded.model, moments={}, optimizer="adamw", step=0, settings=TrainerArguments({}, {}),
        notes=notes,
    )  # fmt: skip


def read_distributed(path: Path, config: str | Path | None, source: Path) -> Foreign:
    """Read model and optimizer of a distributed checkpoint, and what a Trainer keeps beside them.

    Args:
        path: `.metadata` of its weights.
        config: as for `read_distributed_weights`.
        source: what it was found in.

    Raises:
        UsageError: the model must be named, or the optimizer cannot be continued.
        SourceError: the checkpoint is damaged, or its parts do not fit together.
    """
    home = home_of(path)
    saved = _optimizer(path, home)
    loaded, notes = _model(path, config)
    assigned, _, note = assign(saved, loaded.model, [{"": loaded.order}])
    step = saved.step
    reported = ReportedSettings()
    reported.optimizer(saved, saved.label)
    if saved.common("fused"):
        reported.add(saved.label, optim=FUSED)
    progress = Progress()
    if (home / STATE).is_file():
        progress = read_progress(home, reported, step)
    return Foreign(
        kind=KIND, model=loaded.model, moments=moments_of(saved, assigned), optimizer=saved.kind or "adamw", step=step,
        settings=reported.settings, steps_total=progress.steps_total, random_states=progress.random_states,
        lr=None if progress.steps_total is None else float(str(saved.common("lr"))),
        notes=[
            *_passed_over(source, home), note, *(n for n in notes if "of an optimizer's state in" not in n),
            *decay_differences(saved, assigned, loaded.model), *progress.notes,
        ],
    )  # fmt: skip


def _passed_over(source: Path, home: Path) -> list[str]:
    others = [] if source.resolve() == home else [path for path in checkpoints_of(source) if path.name != home.name]
    return [
        f"{path.name} was not saved to the end and is passed over: {home.name} is taken."
        for path in others
        if _step_of(path) > _step_of(home)
    ]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.partition("-")[2])


def _model(path: Path, config: str | Path | None) -> tuple[Loaded, list[str]]:
    home = home_of(path)
    listing = list_distributed(path, str(path))
    weights = {tensor.name: _values(tensor) for tensor in listing.tensors}
    beside = next((folder for folder in (home, home.parent) if (folder / "config.json").is_file()), None)
    loaded = load(build(config, beside, dtype_of(weights), f"'{path.parent}'"), weights, path.parent.name)
    return loaded, [*listing.notes, *loaded.notes]


def _optimizer(path: Path, home: Path) -> SavedOptimizer:
    """Find the optimizer among the chunks of the weights, or in accelerate's folder beside them."""
    beside = sorted(home.glob(f"optimizer_*/{METADATA}")) if home != path.parent.resolve() else []
    if len(beside) > 1:
        names = ", ".join(found.parent.name for found in beside)
        raise UsageError(f"'{home}' holds {len(beside)} optimizers ({names}), and a Trainer has one")
    for place in (path, *beside):
        listed = list_optimizer(place, str(place))
        if listed is not None:
            return _with_values(listed, f"'{place.parent}'")
    return saved_optimizer(None, f"'{path.parent}'", optimizer_file(home, own=True))


def _with_values(listed: ListedOptimizer, label: str) -> SavedOptimizer:
    """Read the values, and number the parameters in the order of the groups, as torch does."""
    groups: list[dict[str, object]] = []
    names: list[str] = []
    for listed_group in listed.groups:
        group = {key: _plain(value) for key, value in listed_group.items()}
        own = group.get("params")
        if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
            raise SourceError(f"{label} has parameter groups without names of parameters: it is damaged")
        group["params"], group["param_names"] = list(range(len(names), len(names) + len(own))), own
        names += own
        groups.append(group)
    lost = listed.state.keys() - set(names)
    if lost:
        raise SourceError(f"{label} has the state of {brief(min(lost))}, which is in none of its groups: it is damaged")
    twice = duplicate(names)
    if twice is not None:
        raise SourceError(f"{label} has {brief(twice)} twice in its groups: it is damaged")
    state = {
        number: {key: _values(value) if isinstance(value, StoredTensor) else value for key, value in own.items()}
        for number, name in enumerate(names)
        if (own := listed.state.get(name))
    }
    return saved_optimizer({"param_groups": groups, "state": state}, label)


def _plain(value: object) -> object:
    if not isinstance(value, StoredTensor):
        return value
    if math.prod(value.shape) != 1:
        raise SourceError(
            f"{value.file} has a tensor of shape {value.shape} for an option of its groups: it is damaged"
        )
    return _values(value).item()


def _values(tensor: StoredTensor) -> torch.Tensor:
    if tensor.dtype not in _TYPES:
        raise SourceError(f"{tensor.file} stores '{tensor.name}' as {tensor.dtype}, from which no run starts")
    values = torch.from_numpy(tensor.read(None))
    return values.view(torch.bfloat16) if tensor.dtype == "BF16" else values
