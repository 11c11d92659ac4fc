"""Turns a checkpoint of another program, with its moments, into the first checkpoint of a run."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from specdiag.errors import UsageError
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.foreign.distributed import FUSED
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.moments import load_moments
from specdiag.train.recipe import Recipe
from specdiag.train.runs.trainer_arguments import DEFAULT_ARGUMENTS, TrainerArguments

COUPLED = "adam_torch"
"""Value of the setting `optim` for coupled decay: transformers has no such optimizer, so torch's Adam is used."""
_NEEDED = ("learning_rate", "weight_decay")


def complete_arguments(foreign: Foreign, settings: TrainerArguments) -> TrainerArguments:
    """Add defaults for arguments that are unknown, except those that the weights depend on strongly.

    Args:
        foreign: the checkpoint.
        settings: arguments from the checkpoint and the request.

    Returns:
        Complete arguments.

    Raises:
        UsageError: learning rate, decay or schedule are neither in the file nor in the request.
    """
    values, origin = dict(settings.values), dict(settings.origin)
    for name in _NEEDED:
        if name not in values:
            raise UsageError(f"the {foreign.kind} does not tell its {name.replace('_', ' ')}: give {name}=")
    if "lr_scheduler_type" not in values:
        raise UsageError(
            f"the {foreign.kind} does not tell its schedule: give lr_scheduler_type=constant, cosine, linear or "
            "another of transformers"
        )
    for name, value in DEFAULT_ARGUMENTS.items():
        if name not in values:
            values[name], origin[name] = value, "default"
    if foreign.optimizer != "adamw":
        values["optim"], origin["optim"] = COUPLED, foreign.kind
    elif values.get("optim") != FUSED:
        values["optim"], origin["optim"] = "adamw_torch", foreign.kind
    return TrainerArguments(values, origin, list(settings.notes))


def save_imported_state(trainer: CrashSafeTrainer, foreign: Foreign, recipe: Recipe, *, saves: bool = True) -> str:
    """Save the other program's moments, step and schedule position as a checkpoint of this run.

    Args:
        trainer: Trainer with the checkpoint's model and a new optimizer.
        foreign: the checkpoint.
        recipe: recipe of the run.
        saves: False to only load and check them.

    Returns:
        Sentence about the check of the moments.

    Raises:
        UsageError: the schedule has no position.
        SourceError: the moments do not fit.
        ComputationError: the checkpoint cannot be saved.
    """
    optimizer: Any = trainer.optimizer
    note = load_moments(foreign, optimizer, trainer.model)  # pyright: ignore[reportArgumentType]
    schedule = trainer.create_scheduler(recipe.steps_total, optimizer)
    if not isinstance(schedule, LambdaLR):
        raise UsageError(
            f"a {recipe.settings['lr_scheduler_type']} schedule has no position to go on from: name another"
        )
    rates = [base * factor(foreign.step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule_state = schedule.state_dict()
    schedule.load_state_dict(
        {**schedule_state, "last_epoch": foreign.step, "_step_count": foreign.step + 1, "_last_lr": rates}
    )
    trainer.state.global_step, trainer.state.max_steps = foreign.step, recipe.steps_total
    trainer.state.train_batch_size = trainer.args.train_batch_size
    trainer.state.compute_steps(trainer.args, recipe.steps_total)
    if saves:
        same_ranks = len(foreign.random_states) == int(trainer.args.world_size)
        trainer.random_states = foreign.random_states if same_ranks else ()
        trainer.save_now()
        trainer.random_states = ()
    trainer.lr_scheduler = None  # created again and loaded when training begins
    return note
