"""A run that goes on with a decay for each module: `prepare` checks everything, `Run.train` trains."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Dataset

from specdiag.decay.groups import fit
from specdiag.decay.live import live_parameters
from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.metric_log import LOG_NAME, RUN, append_log, entry
from specdiag.optim import AlphaDecay
from specdiag.recommendation import recommend
from specdiag.train.checkpoints import OPTIMIZER, read_state
from specdiag.train.config import CONFIG, PLAN, Method, RunConfig, save_config
from specdiag.train.data import CACHE, Data, find_tokenizer, load_data, tokenizer_files
from specdiag.train.optimizer_check import check_optimizer
from specdiag.train.settings import Settings, settings_of
from specdiag.train.start import Start, find_start

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        PrinterCallback,
        ProgressCallback,
        TrainerCallback,
        TrainingArguments,
        get_scheduler,
    )

    from specdiag.train.callback import AlphaDecayCallback
    from specdiag.train.following import Decays, NoDecayCallback, RunLogCallback, StopCallback
    from specdiag.train.plan_callback import DecayPlanCallback
    from specdiag.train.trainer import CrashSafeTrainer
except ImportError as error:
    raise MissingExtraError(
        "training needs transformers and accelerate: pip install transformers accelerate"
    ) from error

_LONGEST_BLOCK = 1024
_FRESH = {
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "weight_decay": 0.1, "per_device_train_batch_size": 8,
    "save_steps": 500, "logging_steps": 10, "seed": 42,
}  # fmt: skip
_OPTIONS = {"learning_rate": "--lr", "weight_decay": "--weight-decay", "per_device_train_batch_size": "--batch-size"}
_HARMLESS = ("save_steps", "logging_steps", "save_total_limit")
"""May change on resuming: the weights do not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; None and empty where nothing was."""

    source: Path
    data: Sequence[Path] = ()
    out: Path | None = None
    decay: str | None = None
    """`plan:FILE`, `alphadecay`, `uniform`, `none`."""
    alphadecay: Mapping[str, Any] | None = None
    """Arguments of AlphaDecay; s1, s2 and basis also of a plan that is made now."""
    steps_total: int | None = None
    extend: int | None = None
    block_size: int | None = None
    settings: Mapping[str, Any] | None = None
    """Arguments of the Trainer."""
    fresh_optimizer: bool = False
    allow_data_shift: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to; losses in nats a token, as means over tokens."""

    run: Path
    step: int
    interrupted: bool
    seconds: float
    """Of the training steps, saving and measuring; not of the evaluations before and after."""
    tokens: int
    train_loss: float | None
    """The last one logged."""
    held_out_before: float
    held_out_after: float | None
    """None after an interruption: then nobody wants to wait."""


def prepare(request: Request) -> Run:
    """Find the checkpoint, settle everything, and check it. Nothing is written into the source.

    Raises:
        UsageError: something is to be decided first, or does not go together.
        SourceError: a checkpoint, plan or data file is missing, damaged or does not fit.
    """
    branch = request.out is not None
    start = find_start(request.source, fresh=request.fresh_optimizer, branch=branch)
    said = list(start.said)
    settings = _settings(start, request, said)
    steps_total = _steps_total(start, request, settings, said)
    run = start.in_place or _new_folder(start, request)
    _check_ranks(start, request, said)
    model, tokenizer = _model(start.checkpoint), find_tokenizer(start.checkpoint, start.checkpoint.parent)
    method, alphadecay, plan = _decay(start, request, settings, steps_total, said)
    arguments = _arguments(run, settings.values, steps_total)
    existed = run.exists()
    run.mkdir(parents=True, exist_ok=True)
    kept = set(run.glob(f"{CACHE}*"))
    try:
        data = _data(start, request, model, tokenizer, settings, run, said)
        trainer = CrashSafeTrainer(
            model=model,
            args=arguments,
            train_dataset=cast("Dataset[Any]", data.train),
            eval_dataset=cast("Dataset[Any]", data.held_out),
        )
        trainer.companions = tokenizer_files(start.checkpoint, start.checkpoint.parent)
        trainer.create_optimizer()
        optimizer = cast("torch.optim.Optimizer", trainer.optimizer)
        if not start.fresh:
            said.append(check_optimizer(start.checkpoint / OPTIMIZER, optimizer, model))
        _check_decay(model, optimizer, alphadecay if method == "alphadecay" else None, plan)
        config = RunConfig(
            source=str(start.checkpoint if start.in_place is None or start.own is None else start.own.source),
            fresh_optimizer=start.fresh if start.own is None or start.in_place is None else start.own.fresh_optimizer,
            steps_total=steps_total,
            decay=method,
            alphadecay=dict(alphadecay),
            data=tuple(str(path) for path in _paths(start, request)),
            settings=settings.values,
            fingerprint=data.fingerprint,
        )
        if plan is not None:
            plan.save(run / PLAN)
        save_config(run, config)
    except BaseException:
        for path in set(run.glob(f"{CACHE}*")) - kept:
            path.unlink()
        if not existed:
            shutil.rmtree(run, ignore_errors=True)
        raise
    return Run(
        folder=run, start=start, config=config, settings=settings, plan=plan, data=data, trainer=trainer, said=said
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready.

    Attributes:
        folder: where it is written.
        start: where it goes on.
        config: as kept in the folder.
        settings: with their origins.
        plan: of the decays, where they are fixed.
        data: blocks.
        trainer: ready to train.
        said: what was checked, chosen and passed over.
    """

    folder: Path
    start: Start
    config: RunConfig
    settings: Settings
    plan: DecayPlan | None
    data: Data
    trainer: CrashSafeTrainer
    said: list[str]

    def train(
        self,
        on_first: Callable[[Decays], None] = lambda _: None,
        on_log: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
    ) -> Result:
        """Evaluate, train to the end or to Ctrl-C, evaluate.

        Args:
            on_first: gets the decay of every Parameter as the optimizer reads it, before the first step.
            on_log: gets the step and what the Trainer logs.

        Raises:
            ComputationError: a checkpoint could not be saved.
        """
        trainer, stop = self.trainer, StopCallback()
        alpha = AlphaDecayCallback(**self.config.alphadecay, fresh=False) if self.config.decay == "alphadecay" else None
        acting: dict[Method, TrainerCallback | None] = {
            "alphadecay": alpha,
            "plan": None if self.plan is None else DecayPlanCallback(self.plan),
            "none": NoDecayCallback(),
            "uniform": None,
        }
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        for callback in (acting[self.config.decay], RunLogCallback(self.folder, alpha, on_first, on_log), stop):
            if callback is not None:
                trainer.add_callback(callback)
        before = self._held_out(self.start.step)
        started = time.perf_counter()
        with stop.on_signals():
            trainer.train(resume_from_checkpoint=None if self.start.fresh else str(self.start.checkpoint))
        seconds = time.perf_counter() - started
        step = int(trainer.state.global_step)
        interrupted = step < self.config.steps_total
        losses = [logged["loss"] for logged in trainer.state.log_history if "loss" in logged]
        return Result(
            run=self.folder,
            step=step,
            interrupted=interrupted,
            seconds=seconds,
            tokens=trainer.tokens,
            train_loss=losses[-1] if losses else None,
            held_out_before=before,
            held_out_after=None if interrupted else self._held_out(step),
        )

    def _held_out(self, step: int) -> float:
        """Mean over the held-out tokens: all blocks predict the same number of them."""
        loss = float(self.trainer.evaluate()["eval_loss"])
        append_log(self.folder / LOG_NAME, [entry(step, RUN, "eval_loss", loss)])
        return loss


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


def _settings(start: Start, request: Request, said: list[str]) -> Settings:
    given = dict(request.settings or {})
    if start.fresh:
        kept = start.own.settings if start.own is not None and start.in_place is not None else _FRESH
        return Settings({**kept, **given}, {n: "given" if n in given else "default" for n in {**kept, **given}})
    if start.own is not None:
        settings = Settings(dict(start.own.settings), dict.fromkeys(start.own.settings, CONFIG))
    else:
        settings = settings_of(start.checkpoint)
    said += settings.notes
    for name, value in given.items():
        held = settings.values.get(name)
        if held == value:
            continue
        if name == "per_device_train_batch_size" and not request.allow_data_shift:
            raise UsageError(
                f"the run has batches of {held}, not {value}, and would go on with other data than it left off at: "
                "--allow-data-shift takes that"
            )
        if name not in (*_HARMLESS, "per_device_train_batch_size"):
            raise UsageError(
                f"the run goes on with {name.replace('_', ' ')} {held} ({settings.origin.get(name, 'default')}), not "
                f"{value}: leave {_OPTIONS.get(name, name)} out, or start from its weights with --fresh-optimizer"
            )
        settings.values[name], settings.origin[name] = value, "given"
    return settings


def _steps_total(start: Start, request: Request, settings: Settings, said: list[str]) -> int:
    if request.steps_total is not None and request.extend is not None:
        raise UsageError("--steps-total and --extend both say when the run ends: leave one out")
    if start.fresh:
        total = request.steps_total or (start.own.steps_total if start.own is not None and start.in_place else None)
        if total is None:
            raise UsageError("a fresh optimizer has no schedule to go on with: say how long with --steps-total N")
        return total
    planned = start.own.steps_total if start.own is not None else int(read_state(start.checkpoint)["max_steps"])
    total = request.steps_total or planned + (request.extend or 0)
    if total <= start.step:
        raise UsageError(
            f"{start.checkpoint.name} is at step {start.step} of {planned}, and nothing is left to do until {total}: "
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


def _new_folder(start: Start, request: Request) -> Path:
    source = start.checkpoint
    run = source.parent if source.name.startswith("checkpoint-") else source
    out = (request.out or Path(f"{run.name}-continued")).resolve()
    if out in (run, source) or out.is_relative_to(source):
        raise UsageError(f"--out {out} is where the source lies, which is never written to: name another folder")
    if (out / CONFIG).exists():
        raise UsageError(f"{out} is a run already: go on with 'specdiag train --resume {out}', or name another --out")
    if out.exists() and (not out.is_dir() or any(not path.name.startswith(CACHE) for path in out.iterdir())):
        raise UsageError(f"{out} is not empty: name another --out")
    return out


def _check_ranks(start: Start, request: Request, said: list[str]) -> None:
    ranks = len(list(start.checkpoint.glob("rng_state_*.pth"))) if not start.fresh else 0
    if ranks > 1:
        if not request.allow_data_shift:
            raise UsageError(
                f"the run was trained by {ranks} processes and this is one, with batches of 1/{ranks}: "
                "--allow-data-shift takes that"
            )
        said.append(f"The run was trained by {ranks} processes: batches are 1/{ranks} of theirs now.")


def _model(checkpoint: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        built: Any = AutoModelForCausalLM
        model, loading = built.from_pretrained(checkpoint, trust_remote_code=False, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"transformers cannot build the model of {checkpoint} ({reason})") from error
    wanted = list(config.architectures or [])
    if wanted and type(model).__name__ not in wanted:
        raise UsageError(f"{checkpoint} is a {wanted[0]}; causal language models are continued, and it is none")
    missing = sorted(loading["missing_keys"])
    if missing:
        raise SourceError(f"{checkpoint} lacks weights of its model, such as {missing[0]} ({len(missing)} in all)")
    return model


def _decay(
    start: Start, request: Request, settings: Settings, steps_total: int, said: list[str]
) -> tuple[Method, Mapping[str, Any], DecayPlan | None]:
    given = dict(request.alphadecay or {})
    if start.in_place is not None and start.own is not None:
        if request.decay is not None or given:
            raise UsageError(
                f"the run goes on with decay '{start.own.decay}': --out DIR begins another one with another"
            )
        plan = load_plan(start.in_place / PLAN) if start.own.decay == "plan" else None
        return start.own.decay, start.own.alphadecay, plan
    choice = request.decay
    if choice == "alphadecay":
        return "alphadecay", given, None
    if choice in ("uniform", "none"):
        if given:
            raise UsageError(f"--{next(iter(given))} belongs to --decay alphadecay, not to {choice}")
        return choice, {}, None
    if choice is not None and not choice.startswith("plan:"):
        raise UsageError(f"unknown --decay '{choice}'; choose plan:FILE, alphadecay, uniform or none")
    found = None if choice is None else Path(choice.removeprefix("plan:"))
    beside = [start.checkpoint / PLAN, start.checkpoint.parent / PLAN]
    if choice is None and not given:
        found = next((path for path in beside if path.is_file()), None)
    if found is not None:
        said.append(f"The decays are those of {found}.")
        return "plan", {}, load_plan(found)
    live = [name for name in given if name not in ("s1", "s2", "basis")]
    if live:
        raise UsageError(f"--{live[0]} belongs to --decay alphadecay: a plan is made once")
    said.append(f"No plan lies beside {start.checkpoint.name}: it is recommended now.")
    plan = recommend(
        start.checkpoint,
        weight_decay=settings.values["weight_decay"],
        base_origin=settings.origin["weight_decay"],
        lr=settings.values["learning_rate"],
        steps_left=steps_total - start.step,
        **given,
    )
    return "plan", {}, plan


def _check_decay(
    model: Any, optimizer: torch.optim.Optimizer, alphadecay: Mapping[str, Any] | None, plan: DecayPlan | None
) -> None:
    """Raise now what attaching would raise when training begins: the first evaluation may take long."""
    if plan is not None:
        fit(plan, live_parameters(model))
    if alphadecay is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come when it is attached for good
            AlphaDecay(model, optimizer, **alphadecay).detach()


def _arguments(run: Path, settings: Mapping[str, Any], steps_total: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(run),
        max_steps=steps_total,
        save_strategy="steps",
        logging_strategy="steps",
        eval_strategy="no",
        per_device_eval_batch_size=int(settings["per_device_train_batch_size"]),
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings,
    )


def _paths(start: Start, request: Request) -> list[Path]:
    return [p.resolve() for p in request.data] or [Path(p) for p in (start.own.data if start.own is not None else ())]


def _data(
    start: Start, request: Request, model: Any, tokenizer: Any, settings: Settings, run: Path, said: list[str]
) -> Data:
    kept = None if start.own is None else start.own.fingerprint
    longest = getattr(model.config, "max_position_embeddings", None) or _LONGEST_BLOCK
    block_size = request.block_size or (kept.block_size if kept is not None else min(longest, _LONGEST_BLOCK))
    if block_size < 2 or block_size > longest:
        raise UsageError(f"--block-size {block_size} must be 2 to {longest}, the positions of the model")
    data = load_data(
        _paths(start, request),
        tokenizer=tokenizer,
        vocabulary=int(model.config.vocab_size),
        block_size=block_size,
        seed=int(settings.values.get("seed", 42)),
        cache=run,
    )
    if kept is None and not start.fresh:
        said.append(
            f"{start.checkpoint.name} does not say which data it was trained on: step {start.step} of these blocks is "
            "where it goes on."
        )
    changed = [] if kept is None else kept.differences(data.fingerprint)
    if changed and not request.allow_data_shift:
        raise UsageError(
            f"the data is not what the run was trained on: {'; '.join(changed[:3])}. Give the same data, or "
            "--allow-data-shift"
        )
    said += [f"Other data than before: {change}." for change in changed]
    return data
