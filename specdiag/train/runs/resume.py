"""Prepares a run that continues a checkpoint: everything is decided and checked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.train.checkpoints.inspect import gguf_in, read_state, refuse_adapter
from specdiag.train.data.hub import pin
from specdiag.train.data.tokenizers import resume_tokenizer
from specdiag.train.data.tokens import BYTES, Data
from specdiag.train.recipe import Recipe, check_settings
from specdiag.train.runs.config import CONFIG, PLAN
from specdiag.train.runs.folders import new_folder, run_of
from specdiag.train.runs.overrides import (
    apply_request,
    choose_decay,
    companion_files,
    override_arguments,
    requested_total,
)
from specdiag.train.runs.request import Request
from specdiag.train.runs.schedule import ScheduleSpan, total_at
from specdiag.train.runs.starting_point import Start, find_start
from specdiag.train.runs.trainer_arguments import DEFAULT_ARGUMENTS, TrainerArguments, read_arguments
from specdiag.train.sampling import check_task
from specdiag.train.tasks.loading import load_task, reads_text, vocabulary_of, with_validation_file
from specdiag.train.tasks.task import tasks_of

try:
    from specdiag.train.foreign.reading import is_foreign
    from specdiag.train.models.building import read_config, trained_model
    from specdiag.train.ranks import one_rank_first
    from specdiag.train.runs.assembly import RunSpec, assemble
    from specdiag.train.runs.batches import check_ranks
    from specdiag.train.runs.begin import begin
    from specdiag.train.runs.import_run import import_run
    from specdiag.train.runs.rates import stretched
    from specdiag.train.runs.run import Run
    from specdiag.train.sharding import check_launch
except ImportError as error:
    raise MissingExtraError(
        "training needs transformers and accelerate: pip install transformers accelerate"
    ) from error


_NOT_OF_THE_RUN = ("source", "fresh_optimizer", "continues_text", "scratch")
"""Fields of a request that are allowed for a run that starts over, because they change nothing in it."""


def prepare(request: Request) -> Run:
    """Find the checkpoint to continue, and decide and check everything. Nothing is written into the source.

    Args:
        request: source and options of the run.

    Returns:
        The run, ready to train.

    Raises:
        UsageError: an option is missing, or options contradict each other or the checkpoint.
        SourceError: a checkpoint, plan or data file is missing, damaged or does not fit.
    """
    check_launch()
    refuse_adapter(Path(request.source))
    if is_foreign(Path(request.source)):
        return import_run(request)
    with one_rank_first():  # the first one removes leftovers of a killed run
        start = find_start(request.source, fresh=request.fresh_optimizer, branch=request.out is not None,
                           dry=request.scratch is not None)  # fmt: skip
    checkpoint, own, notes = start.checkpoint, start.own, list(start.notes)
    if checkpoint is None:
        return _start_over(request, start)
    settings = _settings(start, checkpoint, request, notes)
    steps_total = _steps_total(start, checkpoint, request, settings, notes)
    run = start.in_place or new_folder(request.out or Path(f"{run_of(checkpoint).name}-continued"), checkpoint)
    if not start.fresh:
        check_ranks(max(1, len(list(checkpoint.glob("rng_state_*.pth")))), request, notes)
    config = read_config(checkpoint)
    recipe = msgspec.structs.replace(
        _own_recipe(start) or Recipe(title="", source="", task=request.task or _task(checkpoint, config), optimizer="",
                                 steps_total=steps_total, settings={}),
        data=tuple(pin(request.data)) or (own.recipe.data if own is not None else ()),
        eval_data=tuple(pin(request.eval_data)) or (own.recipe.eval_data if own is not None else ()),
        steps_total=steps_total,
        settings=settings.values,
    )  # fmt: skip
    recipe = apply_request(recipe, request)
    recipe = with_validation_file(recipe, notes) if own is None else recipe
    model = trained_model(checkpoint, config, recipe.task, stored_type=not start.fresh)
    folders = (checkpoint, checkpoint.parent)
    tokenizer = resume_tokenizer(
        request.tokenizer, folders, in_bytes=own is not None and own.fingerprint.tokens == BYTES,
        vocabulary=vocabulary_of(config), in_text=reads_text(recipe),
    )  # fmt: skip
    rule, options, plan = _decay(start, checkpoint, model, request, settings, steps_total, notes)
    recipe = msgspec.structs.replace(recipe, decay=rule, alphadecay=dict(options))

    existing = own if start.in_place is not None else None

    def load(cache: Path) -> Data:
        seed = int(settings.values.get("seed", DEFAULT_ARGUMENTS["seed"]))
        data = load_task(recipe, config=config, tokenizer=tokenizer, seed=seed, cache=cache)
        _check_data(start, checkpoint, request, data, notes)
        return data

    return assemble(
        RunSpec(
            folder=run, scratch=request.scratch, in_place=start.in_place is not None, recipe=recipe, settings=settings,
            source=str(checkpoint) if existing is None else existing.source,
            fresh_optimizer=start.fresh if existing is None else existing.fresh_optimizer,
            model_config="" if existing is None else existing.model_config,
            layout="" if existing is None else existing.layout,
            checkpoint=checkpoint, step=start.step, fresh=start.fresh, trained=True, plan=plan, load_data=load,
            seen=lambda data: own is None or own.kept_apart or bool(own.fingerprint.differences(data.fingerprint)),
            make_model=lambda _: model, tokenizer=tokenizer, schedule=_schedule(start, checkpoint),
            companions=lambda folder: companion_files(folder, folders, tokenizer, request.tokenizer), notes=notes,
        )
    )  # fmt: skip


def _own_recipe(start: Start) -> Recipe | None:
    """Return the recipe of a run of ours, without its model if a new run starts from one of its checkpoints."""
    if start.own is None or start.in_place is not None:
        return None if start.own is None else start.own.recipe
    return msgspec.structs.replace(start.own.recipe, model={}, start="")


def _start_over(request: Request, start: Start) -> Run:
    """Begin a run of ours again that was stopped before its first checkpoint, by its own configuration."""
    own, in_place = start.own, start.in_place
    if own is None or in_place is None:
        raise UsageError(f"'{request.source}' has no checkpoint to begin another run from: continue it without out=")
    options = [field.name for field in dataclasses.fields(request) if getattr(request, field.name)]
    options = [name.replace("_", " ") for name in options if name not in _NOT_OF_THE_RUN]
    if options:
        raise UsageError(
            f"'{in_place}' has no checkpoint yet and starts over as it was configured: leave out {', '.join(options)}"
        )
    if request.continues_text:
        check_task(own.recipe.task)
    return begin(own.recipe, in_place, again=own, notes=start.notes, scratch=request.scratch)


def _settings(start: Start, checkpoint: Path, request: Request, notes: list[str]) -> TrainerArguments:
    requested = dict(request.settings or {})
    check_settings(requested)
    if start.fresh:
        base = start.own.recipe.settings if start.own is not None and start.in_place is not None else DEFAULT_ARGUMENTS
        values = {**base, **requested}
        return TrainerArguments(values, {name: "given" if name in requested else "default" for name in values})
    if start.own is not None:
        settings = TrainerArguments(dict(start.own.recipe.settings), dict.fromkeys(start.own.recipe.settings, CONFIG))
        _check_own(settings)
    else:
        settings = read_arguments(checkpoint)
    notes += settings.notes
    override_arguments(settings, requested, request, complete=True)
    return settings


def _check_own(settings: TrainerArguments) -> None:
    """Refuse a configuration that was edited or damaged so that no Trainer takes it."""
    settings.values.pop("logging_nan_inf_filter", None)
    missing = [name for name in ("per_device_train_batch_size", "learning_rate") if name not in settings.values]
    try:
        check_settings(settings.values)
    except UsageError as error:
        raise SourceError(f"{CONFIG} cannot be continued: {error}") from error
    if missing:
        raise SourceError(f"{CONFIG} does not say {missing[0].replace('_', ' ')}: copy the run again")


def _steps_total(start: Start, checkpoint: Path, request: Request, settings: TrainerArguments, notes: list[str]) -> int:
    if start.fresh:
        total = requested_total(
            request, start.own.recipe.steps_total if start.own is not None and start.in_place else None
        )
        if total is None:
            raise UsageError("a fresh optimizer has no schedule to go on with: give its length as steps_total=N")
        return total
    planned = start.own.recipe.steps_total if start.own is not None else int(read_state(checkpoint)["max_steps"])
    total = requested_total(request, planned) or planned
    if total <= start.step:
        done = f"{checkpoint.name} is at step {start.step} of {planned}"
        if request.steps_total is not None:
            raise UsageError(f"{done}: steps_total={total} is over; give a larger one, or extend=N")
        raise UsageError(f"{done}, the run is finished: go on with extend=N")
    before = total_at(_schedule(start, checkpoint), start.step) or planned
    notes += stretched(settings.values, start.step, before, total)
    return total


def _schedule(start: Start, checkpoint: Path) -> tuple[ScheduleSpan, ...]:
    """Return the lr schedules under which the weights were trained so far."""
    if start.fresh:
        return ()
    if start.own is not None:
        return start.own.schedule
    return (ScheduleSpan(step=0, steps_total=int(read_state(checkpoint)["max_steps"])),)


def _task(checkpoint: Path, config: Any) -> str:
    """Return the only task that the class of the model can learn; it must be named if there are several."""
    classes = list(config.architectures or [])
    tasks = tasks_of(classes[0]) if classes else ["causal-lm"]
    if len(tasks) != 1:
        description = f"a {classes[0]}, which " + ("may learn several tasks" if tasks else "no task here fits")
        raise UsageError(f"{checkpoint} is {description}: say which with task= (causal-lm, masked-lm, glue/NAME, ...)")
    return tasks[0]


def _check_data(start: Start, checkpoint: Path, request: Request, data: Data, notes: list[str]) -> None:
    saved = None if start.own is None else start.own.fingerprint
    if saved is None and not start.fresh:
        notes.append(
            f"{checkpoint.name} does not say which data it was trained on: step {start.step} of these blocks is "
            "where it goes on."
        )
    changed = [] if saved is None else saved.differences(data.fingerprint)
    if changed and not request.allow_data_shift:
        raise UsageError(
            f"the data is not what the run was trained on: {'; '.join(changed[:3])}. Give the same data, or "
            "allow_data_shift=True"
        )
    notes += [f"Other data than before: {change}." for change in changed]


def _decay(
    start: Start,
    checkpoint: Path,
    model: Any,
    request: Request,
    settings: TrainerArguments,
    steps_total: int,
    notes: list[str],
) -> tuple[str, Mapping[str, Any], DecayPlan | None]:
    """Return the decay rule, its options, and the plan if the rule is one."""
    options, own = dict(request.alphadecay or {}), start.own
    if start.in_place is not None and own is not None:
        if request.decay is not None or options:
            raise UsageError(
                f"the run goes on with decay '{own.recipe.decay}': out=DIR begins another run with another decay"
            )
        plan = load_plan(start.in_place / PLAN) if own.recipe.decay == "plan" else None
        return own.recipe.decay, own.recipe.alphadecay, plan
    weights = model if gguf_in(checkpoint) is not None else checkpoint  # its names are not the model's
    return choose_decay(checkpoint, weights, request, settings, steps_total - start.step, notes)
