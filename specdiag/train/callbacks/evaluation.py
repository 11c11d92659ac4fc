"""Evaluates a run every so many steps, without an effect on its training."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class EvaluationCallback(TrainerCallback):
    """Evaluates after every `every`-th step but the last. It must be added after the callbacks that stop a run.

    Attributes:
        first: figures before the first step, if it evaluates then; else None.
        seconds: time that it took.
    """

    def __init__(
        self,
        every: int,
        evaluate: Callable[[int], Mapping[str, float]],
        on_log: Callable[[int, Mapping[str, float]], None],
        *,
        at_begin: bool = False,
    ) -> None:
        """Prepare evaluations.

        Args:
            every: steps between two of them.
            evaluate: evaluates and keeps the figures; takes the step.
            on_log: called with the step and the figures as `eval_NAME`.
            at_begin: True to evaluate before the first step too, once model and optimizer are prepared.
        """
        self.first: Mapping[str, float] | None = None
        self.seconds = 0.0
        self._every, self._evaluate, self._on_log, self._at_begin = every, evaluate, on_log, at_begin

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate before the first step, if asked to."""
        if self._at_begin:
            started = time.perf_counter()
            self.first = self._evaluate(state.global_step)
            self.seconds += time.perf_counter() - started

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate, unless the run stops here: it does so itself where it ends or goes on."""
        step = state.global_step
        if step % self._every or step >= state.max_steps or control.should_training_stop:
            return
        figures = self._timed(step)
        if state.is_world_process_zero:
            self._on_log(step, {f"eval_{name}": value for name, value in figures.items()})

    def _timed(self, step: int) -> Mapping[str, float]:
        started = time.perf_counter()
        with keeping_random_numbers():
            figures = self._evaluate(step)
        self.seconds += time.perf_counter() - started
        return figures


class LastEvaluation(TrainerCallback):
    """Evaluates after the last step, before callbacks behind it end their reports.

    Attributes:
        figures: its figures; None if the run ended early.
        seconds: time that it took.
    """

    def __init__(self, evaluate: Callable[[int], Mapping[str, float]], is_wanted: Callable[[], bool]) -> None:
        """Prepare the evaluation.

        Args:
            evaluate: evaluates and keeps the figures; takes the step.
            is_wanted: False where the run diverged.
        """
        self.figures: Mapping[str, float] | None = None
        self.seconds = 0.0
        self._evaluate, self._is_wanted = evaluate, is_wanted

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Evaluate, if all steps are done."""
        if state.global_step >= state.max_steps and self._is_wanted():
            started = time.perf_counter()
            self.figures = self._evaluate(state.global_step)
            self.seconds += time.perf_counter() - started


@contextmanager
def keeping_random_numbers() -> Generator[None]:
    """Restore the random generators after the block: a new iterator of a DataLoader draws a seed.

    Generators of an accelerator are left alone, because a model that is evaluated draws nothing from them.
    """
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
