"""From the parts of a run to one that is ready: arguments, data, model, optimizer, decay, and the folder."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from specdiag.decay.plan import DecayPlan
from specdiag.decay.plan_groups import fit
from specdiag.errors import MissingExtraError, UsageError
from specdiag.files import Table
from specdiag.live.parameters import live_parameters
from specdiag.train.callbacks.live_rules import LiveRuleCallback
from specdiag.train.callbacks.registry import rule_callback
from specdiag.train.checkpoints.finite import check_model, check_state
from specdiag.train.checkpoints.gradients import sample_gradients
from specdiag.train.checkpoints.inspect import OPTIMIZER
from specdiag.train.checkpoints.moment_order import check_order
from specdiag.train.checkpoints.optimizer_state import Moments, check_optimizer
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.data.tokens import CACHE, Data
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.methods import optimizer_maker
from specdiag.train.ranks import lock_run, wait_for_all
from specdiag.train.recipe import Recipe
from specdiag.train.runs.config import CONFIG, PLAN, RunConfig, save_config
from specdiag.train.runs.import_state import COUPLED, save_imported_state
from specdiag.train.runs.run import Run
from specdiag.train.runs.schedule import ScheduleSpan, extend_schedule
from specdiag.train.runs.trainer_arguments import TrainerArguments


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Parts of a run.

    Attributes:
        folder: of the run.
        in_place: whether it exists and goes on.
        recipe: resolved; its settings are those of `settings`.
        settings: arguments of the Trainer, with their origins.
        source: the checkpoint it started from, as its configuration says.
        fresh_optimizer: whether it started from that with a fresh optimizer.
        checkpoint: the one that is loaded; None for a run that begins.
        step: optimizer steps done.
        fresh: whether the optimizer starts anew.
        trained: whether the weights have been trained.
        plan: of fixed decays.
        foreign: the checkpoint of another program that it goes on from.
        model_config: its config, if the request named one.
        layout: the parameter order of its optimizer, if the request named one.
        load_data: gets the folder of the run, for its cache.
        make_model: gets the data, whose labels a head may need.
        tokenizer: of a language model; None for bytes.
        companions: gets the folder; files that belong into every checkpoint, such as a tokenizer's.
        schedule: the lr schedules until now.
        notes: sentences so far.
    """

    folder: Path
    in_place: bool
    recipe: Recipe
    settings: TrainerArguments
    source: str
    fresh_optimizer: bool
    checkpoint: Path | None
    step: int
    fresh: bool
    trained: bool
    plan: DecayPlan | None
    foreign: Foreign | None = None
    model_config: str = ""
    layout: str = ""
    load_data: Callable[[Path], Data]
    make_model: Callable[[Data], nn.Module]
    tokenizer: PreTrainedTokenizerBase | None
    companions: Callable[[Path], Sequence[Path]]
    schedule: Sequence[ScheduleSpan] = ()
    notes: list[str]


def assemble(parts: RunSpec) -> Run:
    """Build, check and write down. Of a run that cannot be, nothing is left.

    Raises:
        UsageError: parts do not go together.
        SourceError: data, weights or optimizer are damaged or do not fit.
    """
    run, recipe, notes = parts.folder, parts.recipe, parts.notes
    arguments = _arguments(run, parts.settings.values, recipe.steps_total)
    _check_schedule(arguments, recipe.steps_total)
    existed = run.exists()
    wait_for_all()
    with arguments.main_process_first(local=False):
        _make(run)
        lock = lock_run(run)
        notes += [lock.note] if lock is not None and lock.note else []
    if not parts.in_place and (run / CONFIG).exists():
        raise UsageError(f"{run} became a run meanwhile: another process began it; name another out=")
    kept = set(run.glob(f"{CACHE}*"))
    try:
        with arguments.main_process_first(local=False):
            data = parts.load_data(run)
            companions = parts.companions(run)
        model = parts.make_model(data)
        check_model(model, str(parts.checkpoint or recipe.start or "the new model"))
        trainer = _trainer(model, arguments, data, recipe)
        trainer.companions = companions
        optimizer = trainer.create_optimizer()
        rule = rule_callback(recipe.decay, recipe.alphadecay, parts.plan, trained=parts.trained)
        _check_decay(model, optimizer, rule, parts.plan)
        resume_from = None if parts.fresh else parts.checkpoint
        moments: Moments = {}
        if parts.foreign is not None and not parts.fresh:
            check_state(parts.foreign.moments, f"the optimizer of {parts.checkpoint}")
            notes.append(save_imported_state(trainer, parts.foreign, recipe))
            resume_from, moments = run / f"checkpoint-{parts.step}", parts.foreign.moments
        elif resume_from is not None:
            checked, moments = check_optimizer(resume_from / OPTIMIZER, optimizer, model)
            check_state(moments, str(resume_from / OPTIMIZER))
            notes.append(checked)
        warning = check_order(model, moments, sample_gradients(trainer, data)) if moments else None
        notes += [] if warning is None else [warning]
        config = RunConfig(
            source=parts.source,
            fresh_optimizer=parts.fresh_optimizer,
            model_config=parts.model_config,
            layout=parts.layout,
            recipe=recipe,
            fingerprint=data.fingerprint,
            schedule=extend_schedule(parts.schedule, parts.step, recipe.steps_total),
        )
        if arguments.process_index == 0 and not parts.in_place:
            if parts.plan is not None:
                parts.plan.save(run / PLAN)
            save_config(run, config)
    except BaseException:
        if lock is not None:
            lock.release()
        if arguments.process_index == 0:
            for path in set(run.glob(f"{CACHE}*")) - kept:
                path.unlink()
            if not existed:
                shutil.rmtree(run, ignore_errors=True)
        raise
    return Run(
        folder=run, source=parts.checkpoint, step=parts.step, fresh=parts.fresh, in_place=parts.in_place, config=config,
        settings=parts.settings, plan=parts.plan,
        rule=rule, data=data,
        trainer=trainer, tokenizer=parts.tokenizer, resume_from=resume_from, notes=notes, lock=lock,
    )  # fmt: skip


def _trainer(model: nn.Module, arguments: TrainingArguments, data: Data, recipe: Recipe) -> CrashSafeTrainer:
    trainer = CrashSafeTrainer(
        model=model,
        args=arguments,
        train_dataset=cast("Dataset[Any]", data.train),
        eval_dataset=cast("Dataset[Any]", data.held_out),
        data_collator=data.collate,
        compute_metrics=data.metrics,
        callbacks=list(data.callbacks),
    )
    trainer.make_optimizer = optimizer_maker(recipe)
    if recipe.settings.get("optim") == COUPLED:
        trainer.optimizer_cls_and_kwargs = (
            torch.optim.Adam,
            {"lr": arguments.learning_rate, "betas": (arguments.adam_beta1, arguments.adam_beta2),
             "eps": arguments.adam_epsilon},
        )  # fmt: skip
    return trainer


def _check_decay(
    model: nn.Module, optimizer: torch.optim.Optimizer, rule: TrainerCallback | None, plan: DecayPlan | None
) -> None:
    """Raise now what attaching would raise when training begins: the first evaluation may take long."""
    if plan is not None:
        fit(plan, live_parameters(model))
    if isinstance(rule, LiveRuleCallback):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come when it is attached for good
            rule.attached(model, optimizer).detach()


def _arguments(run: Path, settings: Mapping[str, Any], steps_total: int) -> TrainingArguments:
    ours: Table = {
        "output_dir": str(run), "max_steps": steps_total, "save_strategy": "steps", "logging_strategy": "steps",
        "eval_strategy": "no", "disable_tqdm": True, "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # it would put zeros and older losses in the place of NaN
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Without it ranks on a machine that has no accelerator would not know of each other.
        "use_cpu": bool(settings.get("use_cpu")) or not torch.accelerator.is_available(),
    }  # fmt: skip
    batch: Table = {
        "per_device_eval_batch_size": settings["per_device_train_batch_size"],
        "report_to": "none",
    }
    _check_reporting(str(settings.get("report_to", "none")))
    workers = min(int(settings.get("dataloader_num_workers", 0)), os.cpu_count() or 1)  # they change no number
    ours["dataloader_num_workers"] = workers
    theirs = {name: value for name, value in settings.items() if (name, value) != ("optim", COUPLED)}
    try:
        return TrainingArguments(**{**batch, **theirs, **ours})
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"transformers does not take these settings ({reason:.300}): give others") from error


def _make(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {run}: {error.strerror}; name another with out=") from error


def _check_schedule(arguments: TrainingArguments, steps_total: int) -> None:
    """Raise now what the Trainer would raise when the folder is a run already."""
    kind, options = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        get_scheduler(
            kind, optimizer, num_warmup_steps=arguments.get_warmup_steps(steps_total), num_training_steps=steps_total,
            scheduler_specific_kwargs=cast("Any", options),
        )  # fmt: skip
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"there is no lr schedule '{getattr(kind, 'value', kind)}' with lr_scheduler_kwargs {options!r:.80} "
            f"({error!s:.200})"
        ) from error


def _check_reporting(name: str) -> None:
    if name in ("none", "all"):
        return
    if name not in INTEGRATION_TO_CALLBACK:
        known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
        raise UsageError(f"the Trainer does not report to '{name}'; choose from {known}")
    if name not in get_available_reporting_integrations():
        raise MissingExtraError(f"reporting to {name} needs its package: pip install {name}")
