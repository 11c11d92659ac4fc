"""A run that goes on with a decay for each module: everything is settled and checked before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.errors import MissingExtraError, UsageError
from specdiag.recommendation import recommend
from specdiag.train.checkpoints import read_state
from specdiag.train.config import CONFIG, PLAN
from specdiag.train.data import BYTES, Data
from specdiag.train.folders import new_folder, run_of
from specdiag.train.hub_data import pin
from specdiag.train.recipe import Recipe
from specdiag.train.settings import FRESH, Settings, settings_of
from specdiag.train.start import Start, find_start
from specdiag.train.tasks.loading import load_task
from specdiag.train.tasks.task import kind_of, tasks_of
from specdiag.train.tokenizers import find_tokenizer, save_tokenizer, tokenizer_files

try:
    from transformers import TrainingArguments, get_scheduler

    from specdiag.train.adopt import complete
    from specdiag.train.assembly import Parts, assemble
    from specdiag.train.begin import begin
    from specdiag.train.foreign.reading import is_foreign, read_foreign
    from specdiag.train.foreign.weights import read_weights
    from specdiag.train.models.building import read_config, trained_model
    from specdiag.train.ranks import count_ranks, one_rank_first
    from specdiag.train.rule_names import check_rule_options
    from specdiag.train.run import Run
except ImportError as error:
    raise MissingExtraError(
        "training needs transformers and accelerate: pip install transformers accelerate"
    ) from error

_OPTIONS = {"learning_rate": "--lr", "weight_decay": "--weight-decay", "per_device_train_batch_size": "--batch-size"}
CONFIG_JSON = "config.json"
_HARMLESS = (
    "save_steps", "logging_steps", "save_total_limit", "report_to", "gradient_checkpointing", "dataloader_num_workers",
)  # fmt: skip
"""May change on resuming: the weights do not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; None and empty where nothing was."""

    source: Path
    data: Sequence[str | Path] = ()
    out: Path | None = None
    decay: str | None = None
    """`plan:FILE`, or a rule."""
    alphadecay: Mapping[str, Any] | None = None
    """Options of AlphaDecay; s1, s2 and basis also of a plan that is made now."""
    steps_total: int | None = None
    extend: int | None = None
    block_size: int | None = None
    max_tokens: int | None = None
    task: str | None = None
    layout: str | None = None
    """Of another program's optimizer, where it is not plain."""
    config: str | None = None
    """config.json, folder or hub id of the model, where another program's checkpoint has none."""
    settings: Mapping[str, Any] | None = None
    """Arguments of the Trainer."""
    fresh_optimizer: bool = False
    allow_data_shift: bool = False


def prepare(request: Request) -> Run:
    """Find the checkpoint, settle everything, and check it. Nothing is written into the source.

    Raises:
        UsageError: something is to be decided first, or does not go together.
        SourceError: a checkpoint, plan or data file is missing, damaged or does not fit.
    """
    if is_foreign(Path(request.source)):
        return _adopt(request)
    with one_rank_first():  # what a killed run left is cleared away once
        start = find_start(request.source, fresh=request.fresh_optimizer, branch=request.out is not None)
    checkpoint, own, said = start.checkpoint, start.own, list(start.said)
    if checkpoint is None:
        return _start_over(request, start)
    settings = _settings(start, checkpoint, request, said)
    steps_total = _steps_total(start, checkpoint, request, settings, said)
    run = start.in_place or new_folder(request.out or Path(f"{run_of(checkpoint).name}-continued"), checkpoint)
    _check_ranks(start, checkpoint, request, said)
    config = read_config(checkpoint)
    recipe = msgspec.structs.replace(
        _former(start) or Recipe(title="", source="", task=request.task or _task(checkpoint, config), optimizer="",
                                 steps_total=steps_total, settings={}),
        data=_data_sources(start, request),
        steps_total=steps_total,
        settings=settings.values,
    )  # fmt: skip
    recipe = _asked(recipe, request)
    kind_of(recipe.task)
    model = trained_model(checkpoint, config, recipe.task, stored_type=not start.fresh)
    folders = (checkpoint, checkpoint.parent)
    in_bytes = own is not None and own.fingerprint.tokens == BYTES
    tokenizer = None if in_bytes else find_tokenizer(*folders)
    rule, options, plan = _decay(start, checkpoint, model, request, settings, steps_total, said)
    recipe = msgspec.structs.replace(recipe, decay=rule, alphadecay=dict(options))

    def load(cache: Path) -> Data:
        seed = int(settings.values.get("seed", FRESH["seed"]))
        data = load_task(recipe, config=config, tokenizer=tokenizer, seed=seed, cache=cache)
        _check_data(start, checkpoint, request, data, said)
        return data

    return assemble(
        Parts(
            folder=run, in_place=start.in_place is not None, recipe=recipe, settings=settings,
            source=own.source if own is not None and start.in_place is not None else str(checkpoint),
            fresh_optimizer=own.fresh_optimizer if own is not None and start.in_place is not None else start.fresh,
            checkpoint=checkpoint, step=start.step, fresh=start.fresh, trained=True, plan=plan, load_data=load,
            make_model=lambda _: model, tokenizer=tokenizer,
            companions=lambda folder: _companions(folder, folders, tokenizer), said=said,
        )
    )  # fmt: skip


def _adopt(request: Request) -> Run:
    """A checkpoint of another program goes on here: weights, moments, step and what it tells of its settings."""
    source = Path(request.source).resolve()
    if request.fresh_optimizer:
        foreign = read_weights(source, config=request.config)
    else:
        foreign = read_foreign(source, config=request.config, layout=request.layout)
    said = list(foreign.said)
    told = Settings(dict(foreign.settings.values), dict(foreign.settings.origin), list(foreign.settings.notes))
    fresh = request.fresh_optimizer
    given = dict(request.settings or {})
    _take(told, given, request, all_told=False)
    settings = complete(foreign, Settings(FRESH | told.values, told.origin) if fresh else told)
    said += settings.notes
    if request.steps_total is not None and request.extend is not None:
        raise UsageError("--steps-total and --extend both say when the run ends: leave one out")
    planned = None if fresh else foreign.steps_total
    total = request.steps_total or (None if planned is None else planned + (request.extend or 0))
    if total is None:
        raise UsageError(f"the {foreign.kind} does not tell how long the run shall be: give --steps-total N")
    step = 0 if fresh else foreign.step
    if total <= step:
        raise UsageError(
            f"{source.name} is at step {step}, and nothing is left to do until {total}: give --steps-total N"
        )
    folder = source if source.is_dir() else source.parent
    run = new_folder(request.out or Path(f"{folder.name}-continued"), folder)
    config: Any = foreign.model.config
    tokenizer = find_tokenizer(folder)
    recipe = Recipe(
        title="", source="", task=request.task or "causal-lm", data=tuple(pin(request.data)), steps_total=total,
        block_size=request.block_size or foreign.block_size or 0, optimizer="", settings=settings.values,
    )  # fmt: skip
    recipe = _asked(recipe, request)
    kind_of(recipe.task)
    rule, options, plan = _chosen(folder, foreign.model, request, settings, total - step, said)
    recipe = msgspec.structs.replace(recipe, decay=rule, alphadecay=dict(options))

    def load(cache: Path) -> Data:
        return load_task(recipe, config=config, tokenizer=tokenizer, seed=int(settings.values["seed"]), cache=cache)

    return assemble(
        Parts(
            folder=run, in_place=False, recipe=recipe, settings=settings, source=str(source), fresh_optimizer=fresh,
            checkpoint=source, step=step, fresh=fresh, trained=True, plan=plan, foreign=foreign, load_data=load,
            make_model=lambda _: foreign.model, tokenizer=tokenizer,
            companions=lambda run: _companions(run, (folder,), tokenizer), said=said,
        )
    )  # fmt: skip


def _companions(run: Path, folders: Sequence[Path], tokenizer: Any) -> Sequence[Path]:
    """The tokenizer's files as they lie beside the weights; one that lies inside of them is saved."""
    found = tokenizer_files(*folders)
    return save_tokenizer(tokenizer, run) if tokenizer is not None and not found else found


def _asked(recipe: Recipe, request: Request) -> Recipe:
    """What was asked for of data and task goes before what is known."""
    return msgspec.structs.replace(
        recipe,
        task=request.task or recipe.task,
        block_size=request.block_size or recipe.block_size,
        max_tokens=request.max_tokens or recipe.max_tokens,
    )


def _former(start: Start) -> Recipe | None:
    """The recipe of a run of ours; another one that begins from its checkpoint has its weights from there."""
    if start.own is None or start.in_place is not None:
        return None if start.own is None else start.own.recipe
    return msgspec.structs.replace(start.own.recipe, model={}, start="")


def _start_over(request: Request, start: Start) -> Run:
    """A run of ours that was stopped before its first checkpoint begins again as its configuration says."""
    own, in_place = start.own, start.in_place
    if own is None or in_place is None:
        raise UsageError(f"'{request.source}' has no checkpoint to begin another run from: continue it without --out")
    plain = Request(source=request.source, fresh_optimizer=request.fresh_optimizer)
    if request != plain:
        raise UsageError(f"'{in_place}' has no checkpoint yet and starts over as it was configured: give it no options")
    return begin(own.recipe, in_place, again=own, said=start.said)


def _settings(start: Start, checkpoint: Path, request: Request, said: list[str]) -> Settings:
    given = dict(request.settings or {})
    if start.fresh:
        kept = start.own.recipe.settings if start.own is not None and start.in_place is not None else FRESH
        return Settings({**kept, **given}, {n: "given" if n in given else "default" for n in {**kept, **given}})
    if start.own is not None:
        settings = Settings(dict(start.own.recipe.settings), dict.fromkeys(start.own.recipe.settings, CONFIG))
    else:
        settings = settings_of(checkpoint)
    said += settings.notes
    _take(settings, given, request, all_told=True)
    return settings


def _take(settings: Settings, given: Mapping[str, Any], request: Request, *, all_told: bool) -> None:
    """Add what was given to what the checkpoint tells; what contradicts it is refused, unless the optimizer is new.

    Args:
        settings: are added to.
        given: by the Trainer's names.
        request: allows what it allows.
        all_told: what the checkpoint does not tell was the Trainer's default.
    """
    for name, value in given.items():
        held = settings.values.get(name)
        if held == value:
            continue
        told = (all_told or name in settings.values) and not request.fresh_optimizer
        if told and name == "per_device_train_batch_size" and not request.allow_data_shift:
            raise UsageError(
                f"the run has batches of {held}, not {value}, and would go on with other data than it left off at: "
                "--allow-data-shift takes that"
            )
        if told and name not in (*_HARMLESS, "per_device_train_batch_size"):
            raise UsageError(
                f"the run goes on with {name.replace('_', ' ')} {held} ({settings.origin.get(name, 'default')}), not "
                f"{value}: leave {_OPTIONS.get(name, name)} out, or start from its weights with --fresh-optimizer"
            )
        settings.values[name], settings.origin[name] = value, "given"


def _steps_total(start: Start, checkpoint: Path, request: Request, settings: Settings, said: list[str]) -> int:
    if request.steps_total is not None and request.extend is not None:
        raise UsageError("--steps-total and --extend both say when the run ends: leave one out")
    if start.fresh:
        total = request.steps_total or (
            start.own.recipe.steps_total if start.own is not None and start.in_place else None
        )
        if total is None:
            raise UsageError("a fresh optimizer has no schedule to go on with: say how long with --steps-total N")
        return total
    planned = start.own.recipe.steps_total if start.own is not None else int(read_state(checkpoint)["max_steps"])
    total = request.steps_total or planned + (request.extend or 0)
    if total <= start.step:
        raise UsageError(
            f"{checkpoint.name} is at step {start.step} of {planned}, and nothing is left to do until {total}: "
            "go on with --extend N or --steps-total N"
        )
    if total != planned:
        new = _rate(settings.values, start.step + 1, total)
        said.append(
            f"The {settings.values['lr_scheduler_type']} schedule spans {total} steps instead of {planned}: step "
            f"{start.step + 1} has the lr that was saved, step {start.step + 2} has {new:.3g}."
        )
    return total


def _rate(settings: Mapping[str, Any], step: int, total: int) -> float:
    """The lr at a step if the schedule spans so many."""
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


def _data_sources(start: Start, request: Request) -> tuple[str, ...]:
    if request.data:
        return tuple(pin(request.data))
    return start.own.recipe.data if start.own is not None else ()


def _task(checkpoint: Path, config: Any) -> str:
    """By the class of the model; where that can learn several, one must be named."""
    named = list(config.architectures or [])
    able = tasks_of(named[0]) if named else ["causal-lm"]
    if len(able) != 1:
        what = f"a {named[0]}, which " + ("may learn several tasks" if able else "no task here fits")
        raise UsageError(f"{checkpoint} is {what}: say which with --task (causal-lm, masked-lm, glue/NAME, ...)")
    return able[0]


def _check_data(start: Start, checkpoint: Path, request: Request, data: Data, said: list[str]) -> None:
    kept = None if start.own is None else start.own.fingerprint
    if kept is None and not start.fresh:
        said.append(
            f"{checkpoint.name} does not say which data it was trained on: step {start.step} of these blocks is "
            "where it goes on."
        )
    changed = [] if kept is None else kept.differences(data.fingerprint)
    if changed and not request.allow_data_shift:
        raise UsageError(
            f"the data is not what the run was trained on: {'; '.join(changed[:3])}. Give the same data, or "
            "--allow-data-shift"
        )
    said += [f"Other data than before: {change}." for change in changed]


def _check_ranks(start: Start, checkpoint: Path, request: Request, said: list[str]) -> None:
    if start.fresh:
        return
    before, now = max(1, len(list(checkpoint.glob("rng_state_*.pth")))), count_ranks()
    if before == now:
        return
    if not request.allow_data_shift:
        raise UsageError(
            f"the run was trained by {_processes(before)} and this is {now}, which see other batches: "
            "--allow-data-shift takes that"
        )
    said.append(f"The run was trained by {_processes(before)}: a step has {now}/{before} of their blocks now.")


def _processes(n: int) -> str:
    return f"{n} process" if n == 1 else f"{n} processes"


def _decay(
    start: Start, checkpoint: Path, model: Any, request: Request, settings: Settings, steps_total: int, said: list[str]
) -> tuple[str, Mapping[str, Any], DecayPlan | None]:
    """Rule, its options, and the plan where the rule is one."""
    given, choice, own = dict(request.alphadecay or {}), request.decay, start.own
    if start.in_place is not None and own is not None:
        if choice is not None or given:
            raise UsageError(
                f"the run goes on with decay '{own.recipe.decay}': --out DIR begins another one with another"
            )
        plan = load_plan(start.in_place / PLAN) if own.recipe.decay == "plan" else None
        return own.recipe.decay, own.recipe.alphadecay, plan
    return _chosen(checkpoint, model, request, settings, steps_total - start.step, said)


def _chosen(
    checkpoint: Path, model: Any, request: Request, settings: Settings, steps_left: int, said: list[str]
) -> tuple[str, Mapping[str, Any], DecayPlan | None]:
    given, choice = dict(request.alphadecay or {}), request.decay
    if choice is not None and not choice.startswith("plan:"):
        check_rule_options(choice, given)
        return choice, given, None
    found = None if choice is None else Path(choice.removeprefix("plan:"))
    if choice is None and not given:
        found = next((p for p in (checkpoint / PLAN, checkpoint.parent / PLAN) if p.is_file()), None)
    if found is not None:
        said.append(f"The decays are those of {found}.")
        return "plan", {}, load_plan(found)
    live = [name for name in given if name not in ("s1", "s2", "basis")]
    if live:
        raise UsageError(f"--{live[0].replace('_', '-')} belongs to --decay alphadecay: a plan is made once")
    said.append(f"No plan lies beside {checkpoint.name}: it is recommended now.")
    plan = recommend(
        checkpoint if (checkpoint / CONFIG_JSON).is_file() else model,  # else names may be none of the model's
        weight_decay=settings.values["weight_decay"],
        base_origin=settings.origin["weight_decay"],
        lr=settings.values["learning_rate"],
        steps_left=steps_left,
        **given,
    )
    return "plan", {}, plan
