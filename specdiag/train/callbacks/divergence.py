"""Ends a run after a step whose loss is not finite, and keeps it from saving a checkpoint with such weights."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from specdiag.train.checkpoints.finite import live_defect
from specdiag.train.checkpoints.inspect import checkpoints_of, step_of
from specdiag.train.ranks import any_rank

_log = logging.getLogger(__name__)
ASIDE = ".diverged-"
"""Prefix of the name of a checkpoint that led to a loss that is not finite, so that no run continues it."""


class Divergence(TrainerCallback):
    """Watches the losses of the steps, and the values that a checkpoint would hold.

    Gradients are not checked: in half precision some overflow, and the scaler skips their steps.

    Attributes:
        at: steps after which the loss or a weight was not finite; None while all are finite.
        problem: description of what was not finite; empty while all are finite.
    """

    def __init__(self, *, stops: bool) -> None:
        """Begin to watch.

        Args:
            stops: True to end a run whose loss is not finite; False only to keep it from saving such weights.
        """
        self.stops = stops
        self.at: int | None = None
        self.problem = ""
        self._bad: torch.Tensor | None = None
        self._loss: torch.Tensor | None = None

    def observe(self, loss: torch.Tensor) -> None:
        """Remember whether the loss of a forward pass is finite, without waiting for the device."""
        loss = loss.detach()
        bad = ~loss.isfinite().all()
        self._loss = loss if self._bad is None else torch.where(self._bad, self._loss, loss)  # pyright: ignore
        self._bad = bad if self._bad is None else self._bad | bad

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """End the run on all ranks if the loss of the step was not finite. The step is logged and not saved."""
        bad, loss = self._bad, self._loss
        self._bad = self._loss = None
        if not self.stops or not any_rank(bad is not None and bool(bad)):
            return
        value = "not finite on another process" if loss is None or bool(loss.isfinite().all()) else float(loss)
        self._end(state.global_step - 1, f"the loss of step {state.global_step} is {value}", control)
        control.should_log, control.should_save = True, False

    def allows_saving(self, model: nn.Module, optimizer: Optimizer, step: int, control: TrainerControl) -> bool:
        """Return True if model and optimizer are finite. Every rank must call this.

        Args:
            model: model to be saved.
            optimizer: its optimizer, whose state is saved too.
            step: optimizer steps done.
            control: the Trainer's control, through which the run is ended if `stops`.
        """
        if self.at is not None:
            return False
        defect = live_defect(model, optimizer)
        if not any_rank(defect is not None):
            return True
        problem = f"after step {step} {defect or 'another process has values that are not finite'}"
        if self.stops:
            self._end(step, problem, control)
        else:
            _log.warning("checkpoint-%d is not saved: %s", step, problem)
        return False

    def end_at(self, step: int, problem: str) -> None:
        """Record that the run ended.

        Args:
            step: steps after which the loss or a weight was not finite.
            problem: description of what was not finite.
        """
        self.at, self.problem = step, problem

    def sentence(self, run: Path) -> str:
        """Describe the end of the run and how to continue. Checkpoints that led to it are renamed.

        Args:
            run: folder of the run.
        """
        moved = [_set_aside(path) for path in checkpoints_of(run) if self.at is not None and step_of(path) >= self.at]
        remaining = checkpoints_of(run)
        ended = f"'{run.name}' diverged: {self.problem}"
        if moved:
            ended += f"; {moved[0].name.removeprefix(ASIDE)}, which led there, is {moved[0].name} now"
        if not remaining:
            return (
                f"{ended}; there is no checkpoint before that: begin again with a lower lr, or with stop_on_nan=False"
            )
        return (
            f"{ended}; the last good checkpoint is {remaining[0].name}: go on there with resume={str(run)!r}, and with "
            "stop_on_nan=False in spite of such a loss; fresh_optimizer=True starts from its weights, with a lower lr="
        )

    def _end(self, step: int, problem: str, control: TrainerControl) -> None:
        self.end_at(step, problem)
        control.should_training_stop = True


def _set_aside(checkpoint: Path) -> Path:
    target = checkpoint.with_name(f"{ASIDE}{checkpoint.name}")
    shutil.rmtree(target, ignore_errors=True)  # from an earlier attempt that ended in the same way
    return checkpoint.rename(target)
