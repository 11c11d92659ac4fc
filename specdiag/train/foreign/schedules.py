"""Translates lr schedules of torch and of other programs to those of transformers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import get_scheduler

from specdiag.files import Table
from specdiag.train.foreign.opening import SavedDict


@dataclass(frozen=True)
class Schedule:
    """A schedule as arguments of a Trainer.

    Attributes:
        values: `lr_scheduler_type`, `lr_scheduler_kwargs` and `warmup_steps`.
        steps_total: steps that the schedule spans; None if it has no end.
    """

    values: Table
    steps_total: int | None = None


def rate(peak: float, schedule: Table, step: int, steps_total: int) -> float:
    """Return the lr at a step under a schedule of transformers.

    Args:
        peak: lr before the schedule's factor.
        schedule: arguments of a Trainer, with `lr_scheduler_type`.
        step: optimizer steps done.
        steps_total: steps that the schedule spans.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the stable steps of cosine_then_flat do not add up to the total, on purpose
        scheduler: Any = get_scheduler(
            schedule["lr_scheduler_type"],
            optimizer,
            num_warmup_steps=int(schedule.get("warmup_steps", 0)),
            num_training_steps=steps_total,
            scheduler_specific_kwargs=schedule.get("lr_scheduler_kwargs"),
        )
    return peak * scheduler.lr_lambdas[0](step)


def cosine(min_lr: float, warmup: int) -> Table:
    """Return the arguments of half a cosine from the peak lr down to `min_lr`, after a linear warm-up.

    Args:
        min_lr: smallest lr.
        warmup: steps of the warm-up.
    """
    if min_lr == 0:
        return {"lr_scheduler_type": "cosine", "warmup_steps": warmup}
    return {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": min_lr},
        "warmup_steps": warmup,
    }


def cosine_then_flat(min_ratio: float, warmup: int, decay_steps: int) -> Table:
    """Return the arguments of half a cosine that need not end with the run. After it, the lr stays at the smallest.

    The warm-up starts from the smallest lr.

    Args:
        min_ratio: smallest lr as a fraction of the peak.
        warmup: steps of the warm-up.
        decay_steps: steps of the cosine.
    """
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": decay_steps, "num_stable_steps": 0, "min_lr_ratio": min_ratio},
        "warmup_steps": warmup,
    }


def of_torch(state: SavedDict, step: int) -> Schedule | None:
    """Read a scheduler's state_dict. Its keys identify its class.

    Known are CosineAnnealingLR, and a SequentialLR of LinearLR and CosineAnnealingLR.

    Args:
        state: the state_dict.
        step: optimizer steps done.

    Returns:
        None for other schedulers, and for one that was not stepped once per optimizer step.
    """
    if state.get("last_epoch") != step:
        return None
    if "T_max" in state:
        return Schedule(cosine(float(state["eta_min"]), 0), int(state["T_max"]))
    parts, milestones = state.get("_schedulers"), state.get("_milestones")
    if not isinstance(parts, list) or not isinstance(milestones, list) or (len(parts), len(milestones)) != (2, 1):
        return None
    first, second = cast("list[SavedDict]", parts)
    warmup = int(cast("list[Any]", milestones)[0])
    if first.get("total_iters") != warmup or first.get("end_factor") != 1.0 or "T_max" not in second:
        return None
    return Schedule(cosine(float(second["eta_min"]), warmup), warmup + int(second["T_max"]))
