"""A run that is ready: training it, and what came of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, TrainerCallback

from specdiag.decay.plan import DecayPlan
from specdiag.system.folder_lock import FolderLock
from specdiag.train.callbacks.divergence import Divergence
from specdiag.train.callbacks.norms import NormWatchCallback
from specdiag.train.callbacks.run_log import Decays, RunLogCallback, StopCallback
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.data.tokens import Data
from specdiag.train.ranks import one_rank_first
from specdiag.train.runs.config import RunConfig, save_config
from specdiag.train.runs.outcome import Outcome, forget_divergence, load_outcome, save_outcome, spike_share
from specdiag.train.runs.trainer_arguments import TrainerArguments
from specdiag.trajectories.metric_log import LOG_NAME, RUN, append_log, entry

_SPEED = ("runtime", "per_second", "preparation_time")
"""Endings of what the Trainer reports of its own speed."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Results of this process. Losses are in nats, for language models means over tokens."""

    run: Path
    step: int
    interrupted: bool
    seconds: float
    """Seconds of training steps, saving and measuring, without the evaluations before and after."""
    decay_seconds: float
    """Seconds of these that the decay rule took."""
    tokens: int
    train_loss: float | None
    """The last one logged."""
    spike_share: float | None
    """Share of logged losses that are spikes; None where too few were logged to tell."""
    held_out_before: Mapping[str, float]
    """`loss`, and the task's figures of merit."""
    held_out_after: Mapping[str, float] | None
    """None after an interruption, for then nobody wants to wait, and where the run diverged."""
    diverged: str | None = None
    """A sentence where the loss or a weight was no number any more and that ended the run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready.

    Attributes:
        folder: where it is written.
        source: the checkpoint it goes on from; None where it begins with new weights.
        step: optimizer steps done.
        fresh: whether the optimizer starts anew.
        in_place: whether it is a run of ours that goes on in its own folder.
        config: as kept in the folder.
        settings: arguments of the Trainer, with their origins.
        plan: of the decays, where they are fixed.
        rule: applies the decay rule; None where the optimizer's own decay stands.
        data: what it trains and is judged on.
        trainer: ready to train.
        tokenizer: None where bytes are tokens, or there are none.
        resume_from: checkpoint whose optimizer, scheduler and random numbers are loaded.
        notes: what was checked, chosen and passed over.
        lock: of the folder; None on all processes but the first.
    """

    folder: Path
    source: Path | None
    step: int
    fresh: bool
    in_place: bool
    config: RunConfig
    settings: TrainerArguments
    plan: DecayPlan | None
    rule: TrainerCallback | None
    data: Data
    trainer: CrashSafeTrainer
    tokenizer: PreTrainedTokenizerBase | None
    resume_from: Path | None
    notes: list[str]
    lock: FolderLock | None = None

    @property
    def steps_total(self) -> int:
        """Steps of the whole run."""
        return self.config.recipe.steps_total

    def train(
        self,
        on_first: Callable[[Decays], None] = lambda _: None,
        on_log: Callable[[int, Mapping[str, float]], None] = lambda *_: None,
        *,
        stop_on_nan: bool = True,
    ) -> Result:
        """Evaluate, train to the end, to Ctrl-C or to a loss that is not finite, evaluate.

        Args:
            on_first: gets the decay of every Parameter as the optimizer reads it, before the first step.
            on_log: gets the step and what the Trainer logs, with `alpha`, `ratio_min` and `ratio_max` where the rule
                has them.
            stop_on_nan: end the run where the loss of a step is not finite; else it goes on. Weights that are not
                finite are never saved.

        Raises:
            ComputationError: a checkpoint could not be saved.
        """
        try:
            return self._train(on_first, on_log, Divergence(stops=stop_on_nan))
        finally:
            if self.lock is not None:
                self.lock.release()

    def _train(
        self,
        on_first: Callable[[Decays], None],
        on_log: Callable[[int, Mapping[str, float]], None],
        divergence: Divergence,
    ) -> Result:
        trainer, stop = self.trainer, StopCallback()
        if self.in_place and trainer.is_world_process_zero():
            save_config(self.folder, self.config)
            forget_divergence(self.folder)
        log = RunLogCallback(self.folder, self.rule, on_first, on_log)
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        every = self.config.recipe.norms_every
        for callback in (self.rule, NormWatchCallback(every=every) if every else None, log, stop, divergence):
            if callback is not None:
                trainer.add_callback(callback)
        trainer.divergence = divergence
        before = self._held_out(self.step)
        started = time.perf_counter()
        with stop.on_signals():
            trainer.train(resume_from_checkpoint=None if self.resume_from is None else str(self.resume_from))
        seconds = time.perf_counter() - started
        step = int(trainer.state.global_step)
        interrupted = divergence.at is None and step < self.steps_total
        after = None if interrupted or divergence.at is not None else self._held_out(step)
        if divergence.stops and after is not None and math.isfinite(before["loss"]) > math.isfinite(after["loss"]):
            divergence.end_at(step, f"the held-out loss after step {step} is {after['loss']}")
        losses = [logged["loss"] for logged in trainer.state.log_history if "loss" in logged]
        result = Result(
            run=self.folder,
            step=step,
            interrupted=interrupted,
            seconds=seconds,
            decay_seconds=float(getattr(self.rule, "seconds", 0.0)),
            tokens=trainer.tokens * int(trainer.args.world_size),
            train_loss=losses[-1] if losses else None,
            spike_share=spike_share(losses),
            held_out_before=before,
            held_out_after=after,
            diverged=None if divergence.at is None else self._ended(divergence),
        )
        if trainer.is_world_process_zero():
            self._keep(result, divergence.at)
        return result

    def _ended(self, divergence: Divergence) -> str:
        with one_rank_first():  # the first one sets checkpoints aside
            return divergence.sentence(self.folder)

    def _held_out(self, step: int) -> dict[str, float]:
        found: dict[str, Any] = self.trainer.evaluate()
        held = {
            name.removeprefix("eval_"): float(value)
            for name, value in found.items()
            if name.startswith("eval_") and not name.endswith(_SPEED)
        }
        if self.trainer.is_world_process_zero():
            append_log(self.folder / LOG_NAME, [entry(step, RUN, f"eval_{name}", held[name]) for name in held])
        return held

    def _keep(self, result: Result, diverged_at: int | None) -> None:
        former = load_outcome(self.folder) if self.in_place else None
        if former is not None and former.step != self.step:  # of a checkpoint that is gone
            former = None
        first = _with_none(result.held_out_before) if former is None else former.held_out_before
        after = dict.fromkeys(first) if diverged_at is not None else result.held_out_after
        outcome = Outcome(
            step=result.step,
            steps_total=self.steps_total,
            seconds=result.seconds + (0.0 if former is None else former.seconds),
            decay_seconds=result.decay_seconds + (0.0 if former is None else former.decay_seconds),
            tokens=result.tokens + (0 if former is None else former.tokens),
            train_loss=result.train_loss,
            spike_share=result.spike_share,
            held_out_before=dict(first),
            held_out=None if after is None else _with_none(after),
            diverged_at=diverged_at,
        )
        save_outcome(self.folder, outcome)


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; NaN of NaN."""
    return math.inf if loss >= 700 else math.exp(loss)


def _with_none(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """None for what is not finite."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
