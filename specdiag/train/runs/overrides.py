"""Combines settings of a checkpoint with a request, which may not contradict them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.decay.recommend import recommend
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.train.callbacks.registry import check_rule_options
from specdiag.train.data.tokenizers import copy_tokenizer, save_tokenizer, tokenizer_files
from specdiag.train.recipe import Recipe
from specdiag.train.runs.config import PLAN
from specdiag.train.runs.request import Request
from specdiag.train.runs.trainer_arguments import TrainerArguments
from specdiag.train.sampling import check_task
from specdiag.train.tasks.task import kind_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from specdiag.checkpoint.tensors import Checkpoint

CHANGEABLE_ON_RESUME = (
    "save_steps", "logging_steps", "save_total_limit", "report_to", "gradient_checkpointing", "dataloader_num_workers",
)  # fmt: skip
"""Settings that may change on resuming, because the weights do not depend on them."""


def override_arguments(
    settings: TrainerArguments, requested: Mapping[str, object], request: Request, *, complete: bool
) -> None:
    """Add requested arguments to those of the checkpoint.

    Args:
        settings: arguments of the checkpoint, which are changed in place.
        requested: requested arguments by the Trainer's names.
        request: the request, whose `allow_data_shift` and `fresh_optimizer` permit more.
        complete: True if an argument that is missing in the checkpoint had the Trainer's default.

    Raises:
        UsageError: an argument contradicts the checkpoint, and the request does not permit that.
    """
    for name, value in requested.items():
        current = settings.values.get(name)
        if current == value:
            continue
        known = (complete or name in settings.values) and not request.fresh_optimizer
        if known and name == "per_device_train_batch_size" and not request.allow_data_shift:
            raise UsageError(
                f"the run has batches of {current}, not {value}, and would go on with other data than it left off at: "
                "allow_data_shift=True takes that"
            )
        if known and name not in (*CHANGEABLE_ON_RESUME, "per_device_train_batch_size"):
            raise UsageError(
                f"the run goes on with {name.replace('_', ' ')} {current} "
                f"({settings.origin.get(name, 'default')}), not {value}: leave out {name}=, or start "
                "from its weights with fresh_optimizer=True"
            )
        settings.values[name], settings.origin[name] = value, "given"


def apply_request(recipe: Recipe, request: Request) -> Recipe:
    """Return a recipe with the task, block size, token limit, columns and evaluations of a request.

    Args:
        recipe: recipe to copy.
        request: options of the run; what it leaves out stays.

    Raises:
        UsageError: there is no such task, or its models do not continue texts although the request asks for that.
    """
    task = request.task or recipe.task
    kind_of(task)
    if request.continues_text:
        check_task(task)
    return msgspec.structs.replace(
        recipe,
        task=task,
        block_size=request.block_size or recipe.block_size,
        max_tokens=request.max_tokens or recipe.max_tokens,
        columns=tuple(request.columns) or recipe.columns,
        eval_every=recipe.eval_every if request.eval_every is None else request.eval_every,
    )


def companion_files(
    run: Path, folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase | None, requested: str | None = None
) -> Sequence[Path]:
    """Copy or save the files of the tokenizer into a run, and list them.

    Args:
        run: folder of the run.
        folders: folders in which the tokenizer's files are looked for; they are copied unchanged.
        tokenizer: tokenizer to save if no files are found; None for none.
        requested: tokenizer that the request named, which is saved anew; None for none.
    """
    if requested is not None:
        return save_tokenizer(tokenizer, run)
    files = tokenizer_files(*folders)
    if files:
        return copy_tokenizer(files, run)
    return [] if tokenizer is None else save_tokenizer(tokenizer, run)


def requested_total(request: Request, planned: int | None) -> int | None:
    """Return the number of steps of the whole run; None if it is unknown.

    Args:
        request: options of the run, with `steps_total` or `extend`.
        planned: steps that the run was planned for; None if unknown.

    Raises:
        UsageError: both `steps_total` and `extend` are given.
    """
    if request.steps_total is not None and request.extend is not None:
        raise UsageError("steps_total= and extend= both set the end of the run: leave one out")
    return request.steps_total or (None if planned is None else planned + (request.extend or 0))


def choose_decay(
    checkpoint: Path,
    weights: nn.Module | Checkpoint | Path,
    request: Request,
    settings: TrainerArguments,
    steps_left: int,
    notes: list[str],
) -> tuple[str, Table, DecayPlan | None]:
    """Choose the decay: the requested rule, else a plan next to the checkpoint, else a new plan.

    Args:
        checkpoint: folder of the weights, where a plan may be.
        weights: source of a new plan: a checkpoint with the model's names, or the model.
        request: options of the run.
        settings: arguments with the base decay and the learning rate of a new plan.
        steps_left: steps left in the run, for a new plan.
        notes: list to which a sentence about the choice is added.

    Returns:
        The rule, its options, and the plan if the rule is one.

    Raises:
        UsageError: the rule is unknown, or has no such option.
        SourceError: a plan is missing or damaged.
    """
    options: Table = dict(request.alphadecay or {})
    decay = request.decay
    if decay is not None and not decay.startswith("plan:"):
        check_rule_options(decay, options)
        return decay, options, None
    plan_file = None if decay is None else Path(decay.removeprefix("plan:"))
    if decay is None and not options:
        plan_file = next((p for p in (checkpoint / PLAN, checkpoint.parent / PLAN) if p.is_file()), None)
    if plan_file is not None:
        if options:
            raise UsageError(f"{next(iter(options))}= does not change the saved plan {plan_file}: leave it out")
        notes.append(f"The decays are those of {plan_file}.")
        return "plan", {}, load_plan(plan_file)
    live_options = [name for name in options if name not in ("s1", "s2", "basis")]
    if live_options:
        raise UsageError(f"{live_options[0]}= belongs to decay=alphadecay or decay=alphalr: a plan is made once")
    notes.append(f"No plan lies beside {checkpoint.name}: it is recommended now.")
    plan = recommend(
        weights,
        weight_decay=settings.values["weight_decay"],
        base_origin=settings.origin["weight_decay"],
        lr=settings.values["learning_rate"],
        steps_left=steps_left,
        **options,
    )
    return "plan", {}, plan
