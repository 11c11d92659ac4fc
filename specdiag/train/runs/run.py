"""A prepared run: trains it and keeps its results."""

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
from specdiag.train.callbacks.evaluation import EvaluationCallback, LastEvaluation
from specdiag.train.callbacks.norms import NormWatchCallback
from specdiag.train.callbacks.run_log import Decays, RunLogCallback
from specdiag.train.callbacks.stop import StopCallback
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.data.tokens import Data
from specdiag.train.ranks import one_rank_first, together
from specdiag.train.runs.config import RunConfig, save_config
from specdiag.train.runs.outcome import Outcome, forget_divergence, load_outcome, save_outcome, spike_share
from specdiag.train.runs.trainer_arguments import TrainerArguments
from specdiag.trajectories.metric_log import LOG_NAME, RUN, append_log, entry

_SPEED = ("runtime", "per_second", "preparation_time")
"""Endings of metrics of the Trainer that describe its speed, which are not kept."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Results of this process. Losses are in nats; for language models they are means over tokens."""

    run: Path
    step: int
    interrupted: bool
    seconds: float
    """Seconds of training steps, saving and measuring, without evaluations."""
    decay_seconds: float
    """Part of these seconds that the decay rule took."""
    tokens: int
    train_loss: float | None
    """Last logged loss."""
    spike_share: float | None
    """Fraction of logged losses that are spikes; None if too few were logged."""
    held_out_before: Mapping[str, float]
    """`loss` and the metrics of the task before the first step."""
    held_out_after: Mapping[str, float] | None
    """The same after the last step; None if the run was interrupted or ended early because it diverged."""
    diverged: str | None = None
    """Sentence about a run that ended because its loss or a weight was not finite; else None."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to train.

    Attributes:
        folder: folder of the run.
        source: checkpoint that it continues; None for new weights.
        step: optimizer steps done.
        fresh: True if the optimizer starts anew.
        in_place: True for an existing run that continues in its own folder.
        config: configuration, as kept in the folder.
        settings: arguments of the Trainer, with their origins.
        plan: plan of fixed decays; None for other rules.
        rule: callback that applies the decay rule; None if the optimizer's own decay is used.
        data: training and held-out data.
        trainer: the Trainer with model, data and optimizer.
        tokenizer: None if bytes are tokens, or there are none.
        resume_from: checkpoint whose optimizer, scheduler and random numbers are loaded; None for none.
        notes: sentences about what was checked, chosen and skipped.
        lock: lock of the folder; None on all processes but the first.
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
        """Evaluate, train to the end, to Ctrl-C or to a loss that is not finite, and evaluate again.

        Args:
            on_first: called before the first step with the decay of every Parameter as the optimizer reads it.
            on_log: called with the step and what the Trainer logs, with `alpha`, `ratio_min` and `ratio_max` if the
                rule has them; and with the step and the figures of an evaluation, as `eval_NAME`.
            stop_on_nan: True to end the run when the loss of a step is not finite. Weights that are not finite are
                never saved.

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
        with together():
            if self.in_place and trainer.is_world_process_zero():
                save_config(self.folder, self.config)
                forget_divergence(self.folder)
        log = RunLogCallback(self.folder, self.rule, on_first, on_log, stop.fail)
        for unwanted in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(unwanted)
        every = self.config.recipe.norms_every
        for callback in (self.rule, NormWatchCallback(every=every) if every else None, log, stop, divergence):
            if callback is not None:
                trainer.add_callback(callback)
        # The Trainer must prepare model and optimizer of several processes before it evaluates: after an evaluation it
        # takes the model for prepared, and each process would train alone. Reports begin and end with the training.
        reports = bool(trainer.args.report_to)
        begins_inside = reports or int(trainer.args.world_size) > 1
        every = self.config.recipe.eval_every or self.steps_total
        evaluation = EvaluationCallback(every, self._held_out, on_log, at_begin=begins_inside)
        trainer.add_callback(evaluation)
        trainer.divergence = divergence
        last = LastEvaluation(self._held_out, lambda: divergence.at is None)
        if reports:
            trainer.callback_handler.callbacks.insert(0, last)
        before = {} if begins_inside else self._held_out(self.step)
        started = time.perf_counter()
        with stop.on_signals():
            trainer.train(resume_from_checkpoint=None if self.resume_from is None else str(self.resume_from))
        seconds = time.perf_counter() - started - evaluation.seconds - last.seconds
        before = before if evaluation.first is None else dict(evaluation.first)
        step = int(trainer.state.global_step)
        interrupted = divergence.at is None and step < self.steps_total
        after = None if last.figures is None else dict(last.figures)
        if after is None and not interrupted and divergence.at is None:
            after = self._held_out(step)
        if divergence.stops and after is not None and math.isfinite(before["loss"]) > math.isfinite(after["loss"]):
            divergence.end_at(step, f"the loss on what is {self.config.apart}, after step {step}, is {after['loss']}")
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
            diverged=None if divergence.at is None else self._describe_divergence(divergence),
        )
        with together():
            if trainer.is_world_process_zero():
                self._save_outcome(result, divergence.at)
        return result

    def _describe_divergence(self, divergence: Divergence) -> str:
        with one_rank_first():  # the first one sets checkpoints aside
            return divergence.sentence(self.folder)

    def _held_out(self, step: int) -> dict[str, float]:
        evaluated: dict[str, Any] = self.trainer.evaluate()
        metrics = {
            name.removeprefix("eval_"): float(value)
            for name, value in evaluated.items()
            if name.startswith("eval_") and not name.endswith(_SPEED)
        }
        with together():
            if self.trainer.is_world_process_zero():
                entries = [entry(step, RUN, f"eval_{name}", metrics[name]) for name in metrics]
                append_log(self.folder / LOG_NAME, entries)
        return metrics

    def _save_outcome(self, result: Result, diverged_at: int | None) -> None:
        earlier = load_outcome(self.folder) if self.in_place else None
        if earlier is not None and earlier.step != self.step:  # of a checkpoint that no longer exists
            earlier = None
        first = _with_none(result.held_out_before) if earlier is None else earlier.held_out_before
        after = dict.fromkeys(first) if diverged_at is not None else result.held_out_after
        outcome = Outcome(
            step=result.step,
            steps_total=self.steps_total,
            seconds=result.seconds + (0.0 if earlier is None else earlier.seconds),
            decay_seconds=result.decay_seconds + (0.0 if earlier is None else earlier.decay_seconds),
            tokens=result.tokens + (0 if earlier is None else earlier.tokens),
            train_loss=result.train_loss,
            spike_share=result.spike_share,
            held_out_before=dict(first),
            held_out=None if after is None else _with_none(after),
            diverged_at=diverged_at,
        )
        save_outcome(self.folder, outcome)


def perplexity(loss: float) -> float:
    """Exponential of a loss in nats per token; infinite for a loss of 700 or more, NaN for NaN."""
    return math.inf if loss >= 700 else math.exp(loss)


def _with_none(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace values that are not finite by None, because JSON has no NaN."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
