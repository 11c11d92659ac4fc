"""Prepares a run that continues a checkpoint of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from specdiag.errors import UsageError
from specdiag.train.data.hub import pin
from specdiag.train.data.tokenizers import resume_tokenizer
from specdiag.train.data.tokens import Data
from specdiag.train.foreign.distributed import home_of, metadata_of
from specdiag.train.foreign.reading import read_foreign, single_file
from specdiag.train.foreign.weights import read_weights
from specdiag.train.recipe import Recipe, check_settings
from specdiag.train.runs.assembly import RunSpec, assemble
from specdiag.train.runs.batches import check_ranks
from specdiag.train.runs.folders import new_folder, run_of
from specdiag.train.runs.import_state import complete_arguments
from specdiag.train.runs.overrides import (
    apply_request,
    choose_decay,
    companion_files,
    override_arguments,
    requested_total,
)
from specdiag.train.runs.rates import check_rate, stretched
from specdiag.train.runs.request import Request
from specdiag.train.runs.run import Run
from specdiag.train.runs.schedule import ScheduleSpan
from specdiag.train.runs.trainer_arguments import DEFAULT_ARGUMENTS, TrainerArguments
from specdiag.train.tasks.loading import load_task, reads_text, vocabulary_of, with_validation_file


def import_run(request: Request) -> Run:
    """Prepare a run that continues another program's checkpoint: its weights, moments, step and known settings.

    Args:
        request: source and options of the run.

    Returns:
        The run, ready to train.

    Raises:
        UsageError: an option is missing or contradicts the checkpoint.
        SourceError: the checkpoint or the data is missing, damaged or does not fit.
    """
    source = Path(request.source).resolve()
    if request.fresh_optimizer:
        foreign = read_weights(source, config=request.config)
    else:
        foreign = read_foreign(source, config=request.config, layout=request.layout)
    notes = list(foreign.notes)
    arguments = TrainerArguments(
        dict(foreign.settings.values), dict(foreign.settings.origin), list(foreign.settings.notes)
    )
    fresh = request.fresh_optimizer
    requested = dict(request.settings or {})
    check_settings(requested)
    override_arguments(arguments, requested, request, complete=False)
    settings = complete_arguments(
        foreign, TrainerArguments(DEFAULT_ARGUMENTS | arguments.values, arguments.origin) if fresh else arguments
    )
    notes += settings.notes
    total = requested_total(request, None if fresh else foreign.steps_total)
    if total is None:
        raise UsageError(f"the {foreign.kind} does not tell how long the run shall be: give steps_total=N")
    step = 0 if fresh else foreign.step
    if foreign.random_states:
        check_ranks(len(foreign.random_states), request, notes)
    if foreign.lr is not None and foreign.steps_total is not None:
        check_rate(settings.values, step, foreign.steps_total, foreign.lr)
        notes += stretched(settings.values, step, foreign.steps_total, total)
    if total <= step:
        raise UsageError(
            f"{source.name} is at step {step}, and nothing is left to do until {total}: give steps_total=N"
        )
    metadata = metadata_of(source)
    folder = home_of(metadata) if metadata is not None else source if source.is_dir() else source.parent
    run = new_folder(request.out or Path(f"{run_of(folder).name}-continued"), single_file(source) or folder)
    config: Any = foreign.model.config
    recipe = Recipe(
        title="", source="", task="causal-lm", data=tuple(pin(request.data)),
        eval_data=tuple(pin(request.eval_data)), steps_total=total, block_size=foreign.block_size or 0, optimizer="",
        settings=settings.values,
    )  # fmt: skip
    recipe = with_validation_file(apply_request(recipe, request), notes)
    tokenizer = resume_tokenizer(
        request.tokenizer, (folder,), in_bytes=False, vocabulary=vocabulary_of(config), in_text=reads_text(recipe)
    )
    rule, options, plan = choose_decay(folder, foreign.model, request, settings, total - step, notes)
    recipe = msgspec.structs.replace(recipe, decay=rule, alphadecay=dict(options))

    def load(cache: Path) -> Data:
        return load_task(recipe, config=config, tokenizer=tokenizer, seed=int(settings.values["seed"]), cache=cache)

    return assemble(
        RunSpec(
            folder=run, scratch=request.scratch, in_place=False, recipe=recipe, settings=settings,
            source=str(source), fresh_optimizer=fresh, checkpoint=source, step=step, fresh=fresh, trained=True,
            plan=plan, foreign=foreign, model_config=str(request.config or ""), layout=request.layout or "",
            load_data=load, seen=lambda _: True,
            make_model=lambda _: foreign.model, tokenizer=tokenizer,
            schedule=() if fresh or foreign.steps_total is None
            else (ScheduleSpan(step=0, steps_total=foreign.steps_total),),
            companions=lambda run: companion_files(run, (folder,), tokenizer, request.tokenizer), notes=notes,
        )
    )  # fmt: skip
