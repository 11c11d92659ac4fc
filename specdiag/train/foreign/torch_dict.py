"""Reads files of torch.save with model and optimizer: Lightning's .ckpt, and dictionaries of training scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from specdiag.checkpoint.state_dict import find_weights
from specdiag.errors import UsageError
from specdiag.train.checkpoints.unread_optimizer import optimizer_file, optimizer_key
from specdiag.train.foreign.building import build, dtype_of, load
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.layouts import assign
from specdiag.train.foreign.load import SavedOptimizer, saved_optimizer
from specdiag.train.foreign.moments import decay_differences, moments_of
from specdiag.train.foreign.opening import SavedDict
from specdiag.train.foreign.reported_settings import ReportedSettings, first_of, plain
from specdiag.train.foreign.schedules import of_torch

LIGHTNING = "Lightning checkpoint"
KIND = "torch dict"
_VERSION = "pytorch-lightning_version"
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
_SCHEDULERS = ("scheduler", "lr_scheduler", "scheduler_state_dict", "lr_scheduler_state_dict", "lr_schedulers")
_STEPS = ("global_step", "step", "iter_num", "iter", "iteration", "update_step")


def is_lightning(content: SavedDict) -> bool:
    """True if Lightning wrote the content of a file."""
    return _VERSION in content


def read_torch_dict(path: Path, content: SavedDict, config: str | Path | None, layout: str | None) -> Foreign:
    """Read a file of torch.save with model and optimizer.

    Args:
        path: the file.
        content: its content.
        config: folder, config.json or hub id of the model; None for the config.json next to the file.
        layout: required layout of the optimizer; None to find it.

    Raises:
        UsageError: the model must be named, or the optimizer cannot be continued.
        SourceError: its parts do not fit together.
    """
    label = path.name
    optimizer = _only(first_of(content, _OPTIMIZERS), "optimizers", label)
    saved = saved_optimizer(optimizer, label, optimizer_key(content) or optimizer_file(path.parent, own=True))
    weights = cast("Mapping[str, torch.Tensor]", find_weights(content, label)[0])
    loaded = load(build(config, path.parent, dtype_of(weights), f"'{path}'"), weights, label)
    order = [name for name, _ in loaded.model.named_parameters()]
    orders = [{"": loaded.order}] + ([{"": order}] if order != loaded.order else [])
    assigned, _, note = assign(saved, loaded.model, orders, layout)
    step = saved.step
    reported = ReportedSettings()
    reported.optimizer(saved, label)
    reported.hyperparameters(content, label)
    if is_lightning(content):
        reported.add(f"loops in {label}", gradient_accumulation_steps=_accumulation(content, step))
    _schedule(reported, content, saved, step, label)
    sentences = [
        note,
        *loaded.notes,
        *decay_differences(saved, assigned, loaded.model),
        *_counted(content, step, label),
        f"{label} does not say where the run stood in its data.",
    ]
    return Foreign(
        kind=LIGHTNING if is_lightning(content) else KIND,
        model=loaded.model,
        moments=moments_of(saved, assigned),
        optimizer=saved.kind or "adamw",
        step=step,
        settings=reported.settings,
        block_size=reported.block_size,
        steps_total=reported.steps_total,
        notes=sentences,
    )


def _only(value: Any, kind: str, label: str) -> Any:
    if isinstance(value, (list, tuple)):
        values = cast("list[Any]", value)
        if len(values) > 1:
            raise UsageError(f"{label} holds {len(values)} {kind}, and a Trainer has one: go on in its own script")
        return values[0]
    return value


def _accumulation(content: SavedDict, step: int) -> int | None:
    """Return the batches per optimizer step by Lightning's loops; None if that is no whole number."""
    fit = plain(plain(content.get("loops")).get("fit_loop"))
    batches = plain(plain(fit.get("epoch_loop.batch_progress")).get("total")).get("completed")
    return batches // step if isinstance(batches, int) and batches and batches % step == 0 else None


def _schedule(reported: ReportedSettings, content: SavedDict, saved: SavedOptimizer, step: int, label: str) -> None:
    saved_schedule = first_of(content, _SCHEDULERS)
    if saved_schedule is None:
        if is_lightning(content):
            reported.add(label, lr_scheduler_type="constant", learning_rate=saved.common("lr"))
        else:
            reported.settings.notes.append(f"{label} has no schedule: its last lr was {saved.common('lr'):g}.")
        return
    schedule = of_torch(plain(_only(saved_schedule, "schedulers", label)), step)
    if schedule is None:
        reported.settings.notes.append(
            f"The schedule in {label} is not one that can be taken over: the last lr was {saved.common('lr'):g}."
        )
        return
    reported.add(label, **schedule.values)
    reported.steps_total = schedule.steps_total


def _counted(content: SavedDict, step: int, label: str) -> list[str]:
    counts = {name: content[name] for name in _STEPS if isinstance(content.get(name), int)}
    differing = {name: count for name, count in counts.items() if count != step}
    if not differing or step in counts.values():
        return []
    name, count = next(iter(differing.items()))
    return [f"{label} has {name} {count} and an optimizer that did {step} steps: {step} counts."]
