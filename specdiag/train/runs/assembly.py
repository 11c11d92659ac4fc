"""Assembles a run from its parts: arguments, data, model, optimizer, decay and folder."""

from __future__ import annotations

import errno
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
from specdiag.train.callbacks.registry import NOTES, rule_callback
from specdiag.train.checkpoints.finite import check_model, check_state
from specdiag.train.checkpoints.gradients import sample_gradients
from specdiag.train.checkpoints.inspect import OPTIMIZER
from specdiag.train.checkpoints.moment_order import check_order
from specdiag.train.checkpoints.optimizer_state import Moments, check_optimizer
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.data.token_cache import CACHE
from specdiag.train.data.tokens import Data
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
        folder: folder of the run.
        scratch: folder for what a dry run writes; None to write into `folder`.
        in_place: True if the run exists and continues in its folder.
        recipe: complete recipe; its settings are those of `settings`.
        settings: arguments of the Trainer, with their origins.
        source: checkpoint that the run once started from, as its configuration says; empty for none.
        fresh_optimizer: True if it started from there with a fresh optimizer.
        checkpoint: checkpoint that is loaded now; None for a run that begins.
        step: optimizer steps done.
        fresh: True if the optimizer starts anew.
        trained: True if the weights have been trained.
        plan: plan of fixed decays; None for other rules.
        foreign: checkpoint of another program that is continued; None for none.
        model_config: config of that checkpoint, if the request named one.
        layout: parameter order of its optimizer, if the request named one.
        load_data: loads the data; takes the folder of the run, for its cache.
        make_model: makes the model; takes the data, because a head may need its labels.
        tokenizer: None if bytes are tokens, or there are none.
        companions: lists files to copy into every checkpoint, such as a tokenizer's; takes the folder of the run.
        seen: True if examples that are split off the data may have been trained on before; takes the data.
        schedule: lr schedules so far.
        notes: sentences so far.
    """

    folder: Path
    scratch: Path | None = None
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
    seen: Callable[[Data], bool]
    schedule: Sequence[ScheduleSpan] = ()
    notes: list[str]


def assemble(parts: RunSpec) -> Run:
    """Build a run, check it and write its folder. If that fails, nothing is left behind.

    Args:
        parts: parts of the run.

    Returns:
        The run, ready to train.

    Raises:
        UsageError: the parts do not go together.
        SourceError: data, weights or optimizer are damaged or do not fit.
    """
    run, recipe, notes = parts.scratch or parts.folder, parts.recipe, parts.notes
    dry = parts.scratch is not None
    arguments = _arguments(run, parts.settings.values, recipe.steps_total, dry=dry)
    _check_schedule(arguments, recipe.steps_total)
    existed = run.exists()
    wait_for_all()
    with arguments.main_process_first(local=False):
        if dry:
            _check_folder(parts.folder)
        else:
            _make_folder(run)
        lock = None if dry else lock_run(run)
        notes += [lock.note] if lock is not None and lock.note else []
    if not parts.in_place and (run / CONFIG).exists():
        raise UsageError(f"{run} became a run meanwhile: another process began it; name another out=")
    if dry:
        _link_cache(parts.folder, run)
    old_cache = set(run.glob(f"{CACHE}*"))
    try:
        with arguments.main_process_first(local=False):
            data = parts.load_data(run)
            companions = parts.companions(run)
        model = parts.make_model(data)
        check_model(model, str(parts.checkpoint or recipe.start or "the new model"))
        trainer = _trainer(model, arguments, data, recipe)
        trainer.companions = companions
        optimizer = trainer.create_optimizer()
        rule = rule_callback(
            recipe.decay, recipe.alphadecay, parts.plan, trained=parts.trained, steps_total=recipe.steps_total
        )
        notes += [NOTES[recipe.decay]] if recipe.decay in NOTES else []
        _check_decay(model, optimizer, rule, parts.plan)
        resume_from = None if parts.fresh else parts.checkpoint
        moments: Moments = {}
        if parts.foreign is not None and not parts.fresh:
            check_state(parts.foreign.moments, f"the optimizer of {parts.checkpoint}")
            notes.append(save_imported_state(trainer, parts.foreign, recipe, saves=not dry))
            resume_from, moments = run / f"checkpoint-{parts.step}", parts.foreign.moments
        elif resume_from is not None:
            note, moments = check_optimizer(resume_from / OPTIMIZER, optimizer, model)
            check_state(moments, str(resume_from / OPTIMIZER))
            notes.append(note)
        warning = check_order(model, moments, sample_gradients(trainer, data)) if moments else None
        notes += [] if warning is None else [warning]
        config = RunConfig(
            source=parts.source,
            fresh_optimizer=parts.fresh_optimizer,
            model_config=parts.model_config,
            layout=parts.layout,
            kept_apart=data.split_off and parts.seen(data),
            recipe=recipe,
            fingerprint=data.fingerprint,
            schedule=extend_schedule(parts.schedule, parts.step, recipe.steps_total),
        )
        if arguments.process_index == 0 and not parts.in_place and not dry:
            if parts.plan is not None:
                parts.plan.save(run / PLAN)
            save_config(run, config)
    except BaseException:
        if lock is not None:
            lock.release()
        if arguments.process_index == 0:
            for path in set(run.glob(f"{CACHE}*")) - old_cache:
                path.unlink()
            if not existed:
                shutil.rmtree(run, ignore_errors=True)
        raise
    return Run(
        folder=parts.folder, source=parts.checkpoint, step=parts.step, fresh=parts.fresh, in_place=parts.in_place,
        config=config, settings=parts.settings, plan=parts.plan, rule=rule, data=data,
        trainer=trainer, tokenizer=parts.tokenizer, resume_from=resume_from, notes=notes, lock=lock,
    )  # fmt: skip


def _trainer(model: nn.Module, arguments: TrainingArguments, data: Data, recipe: Recipe) -> CrashSafeTrainer:
    arguments.per_device_eval_batch_size = _even_batch(
        len(data.held_out), int(arguments.world_size), arguments.per_device_eval_batch_size
    )
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


def _even_batch(examples: int, processes: int, most: int) -> int:
    """Return the largest batch that divides the examples of each process.

    In a batch that accelerate fills up with examples of the beginning, these would count in the mean loss.
    """
    if processes == 1:
        return most
    return next((size for size in range(most, 0, -1) if examples % (processes * size) == 0), 1)


def _check_decay(
    model: nn.Module, optimizer: torch.optim.Optimizer, rule: TrainerCallback | None, plan: DecayPlan | None
) -> None:
    """Attach the decay rule once, so that an error comes now and not after the first evaluation."""
    if plan is not None:
        fit(plan, live_parameters(model))
    if isinstance(rule, LiveRuleCallback):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when it is attached for training
            rule.attached(model, optimizer).detach()


def _arguments(run: Path, settings: Mapping[str, Any], steps_total: int, *, dry: bool) -> TrainingArguments:
    fixed: Table = {
        "output_dir": str(run), "max_steps": steps_total, "save_strategy": "steps", "logging_strategy": "steps",
        "eval_strategy": "no", "disable_tqdm": True, "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,  # it would replace NaN by zeros and older losses
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Without it, ranks on a machine without an accelerator would not find each other.
        "use_cpu": bool(settings.get("use_cpu")) or not torch.accelerator.is_available(),
    }  # fmt: skip
    defaults: Table = {
        "per_device_eval_batch_size": settings["per_device_train_batch_size"],
        "report_to": "none",
        "run_name": run.name,
    }
    _check_reporting(str(settings.get("report_to", "none")))
    # The number of workers does not affect the results.
    fixed["dataloader_num_workers"] = min(int(settings.get("dataloader_num_workers", 0)), os.cpu_count() or 1)
    if dry:
        fixed["report_to"] = "none"
    chosen = {name: value for name, value in settings.items() if (name, value) != ("optim", COUPLED)}
    try:
        return TrainingArguments(**{**defaults, **chosen, **fixed})
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"transformers does not take these settings ({reason:.300}): give others") from error


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(run, error.strerror) from error


def _check_folder(run: Path) -> None:
    """Refuse a folder that `_make_folder` could not make, without making it."""
    above = next(path for path in (run, *run.parents) if path.exists())
    if not above.is_dir():
        raise _no_folder(run, os.strerror(errno.ENOTDIR))
    if not os.access(above, os.W_OK | os.X_OK):
        raise _no_folder(run, os.strerror(errno.EACCES))


def _no_folder(run: Path, reason: str | None) -> UsageError:
    return UsageError(f"cannot make the folder {run}: {reason}; name another with out=")


def _link_cache(run: Path, scratch: Path) -> None:
    """Let a dry run read the tokens that a run keeps."""
    for path in run.glob(f"{CACHE}*"):
        (scratch / path.name).symlink_to(path.resolve())


def _check_schedule(arguments: TrainingArguments, steps_total: int) -> None:
    """Refuse an unknown lr schedule now: the Trainer would do so only after the folder was written."""
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
