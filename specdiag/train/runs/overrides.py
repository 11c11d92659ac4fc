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
"""Settings that may change on resuming: the weights do not depend on them."""


def override_arguments(
    settings: TrainerArguments, requested: Mapping[str, object], request: Request, *, complete: bool
) -> None:
    """Add requested arguments to those of the checkpoint. Contradictions are refused, unless the optimizer is new.

    Args:
        settings: are added to.
        requested: by the Trainer's names.
        request: allow_data_shift and fresh_optimizer lift refusals.
        complete: True if arguments that the checkpoint lacks had the Trainer's defaults.
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
    """Apply the data and task of a request to a recipe.

    Raises:
        UsageError: there is no such task, or it cannot do what is asked for.
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
    )


def companion_files(
    run: Path, folders: Sequence[Path], tokenizer: PreTrainedTokenizerBase | None, named: str | None = None
) -> Sequence[Path]:
    """The tokenizer's files as they lie beside the weights, kept with the run; one inside of them is saved.

    Args:
        run: its folder.
        folders: of the weights.
        tokenizer: None for bytes, and where there are no tokens.
        named: the source that the request named; None if none.
    """
    if named is not None:
        return save_tokenizer(tokenizer, run)
    found = tokenizer_files(*folders)
    if found:
        return copy_tokenizer(found, run)
    return [] if tokenizer is None else save_tokenizer(tokenizer, run)


def requested_total(request: Request, planned: int | None) -> int | None:
    """Steps of the whole run; None where nobody says.

    Raises:
        UsageError: it is said twice.
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
    """Rule, its options, and the plan where the rule is one: what was asked for, what lies there, or one made now.

    Args:
        checkpoint: folder of the weights, where a plan may lie.
        weights: what a plan is recommended from: a checkpoint whose names are the model's, or the model.
        request: what was asked for.
        settings: base decay and learning rate, for a plan that is made now.
        steps_left: of the run, for the same.
        notes: gets what was chosen.

    Raises:
        UsageError: an unknown rule, or options that do not belong to it.
        SourceError: a plan is missing or damaged.
    """
    options: Table = dict(request.alphadecay or {})
    choice = request.decay
    if choice is not None and not choice.startswith("plan:"):
        check_rule_options(choice, options)
        return choice, options, None
    found = None if choice is None else Path(choice.removeprefix("plan:"))
    if choice is None and not options:
        found = next((p for p in (checkpoint / PLAN, checkpoint.parent / PLAN) if p.is_file()), None)
    if found is not None:
        if options:
            raise UsageError(f"{next(iter(options))}= does not change the saved plan {found}: leave it out")
        notes.append(f"The decays are those of {found}.")
        return "plan", {}, load_plan(found)
    live = [name for name in options if name not in ("s1", "s2", "basis")]
    if live:
        raise UsageError(f"{live[0]}= belongs to decay=alphadecay: a plan is made once")
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
