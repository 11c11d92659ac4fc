"""The lr of a step under the schedule of a run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from specdiag.errors import UsageError
from specdiag.files import Table

_TOLERANCE = 1e-6


def rate_of(settings: Table, step: int, total: int) -> float:
    """Return the lr of the step after `step`.

    Args:
        settings: arguments of the Trainer.
        step: optimizer steps done.
        total: steps that the schedule spans.
    """
    peak = float(settings["learning_rate"])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    arguments = TrainingArguments(warmup_steps=settings.get("warmup_steps", 0), use_cpu=True, report_to="none")
    schedule = get_scheduler(
        settings["lr_scheduler_type"],
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=settings.get("lr_scheduler_kwargs"),
    )
    rates: Any = getattr(schedule, "lr_lambdas", None)
    return peak * rates[0](step) if rates else peak


def stretched(settings: Table, step: int, before: int, total: int) -> list[str]:
    """Say that a schedule spans another number of steps than before; nothing where it does not.

    Args:
        settings: arguments of the Trainer.
        step: optimizer steps done.
        before: steps that it spanned.
        total: steps that it spans now.
    """
    if total == before:
        return []
    return [
        f"The {settings['lr_scheduler_type']} schedule spans {total} steps instead of {before}: step {step + 1} has "
        f"the lr that was saved, step {step + 2} has {rate_of(settings, step + 1, total):.3g}."
    ]


def check_rate(settings: Table, step: int, total: int, saved: float) -> None:
    """Check that a schedule gives the lr that was saved with an optimizer.

    Args:
        settings: arguments of the Trainer.
        step: optimizer steps done.
        total: steps that the schedule spanned when it was saved.
        saved: lr of the next step.

    Raises:
        UsageError: it gives another.
    """
    ours = rate_of(settings, step, total)
    if abs(ours - saved) > _TOLERANCE * max(abs(ours), abs(saved)):
        raise UsageError(
            f"the optimizer was saved with lr {saved:.6g} for step {step + 1} of {total}, and lr_scheduler_type="
            f"{settings['lr_scheduler_type']} with warmup_steps={settings.get('warmup_steps', 0)} gives {ours:.6g}: "
            "give both as the run's script did"
        )
