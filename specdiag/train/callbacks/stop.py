"""Ends a run on request, or where a process cannot write: all processes after the same step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from specdiag.analysis.processes import RankFailed
from specdiag.system import interrupts
from specdiag.train.ranks import largest, own_rank


class StopCallback(TrainerCallback):
    """Ends the run after the current step, with a checkpoint, once `requested` is set; without one after a failure.

    Attributes:
        requested: True if this process was asked to stop.
        failure: what this process could not do between the meetings of all.
    """

    requested = False
    failure: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Keep a failure until all processes meet: the others would wait for one that ended by itself."""
        self.failure = self.failure or error

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Save and stop if any rank was asked to; all ranks stop after the same step.

        Raises:
            RankFailed: another process failed; a failure of this one is raised as it is.
        """
        if self._asked():
            self.requested = True
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Raise what failed after the last step, as `on_step_end` does."""
        self._asked()

    def _asked(self) -> bool:
        asked, failed = largest([int(self.requested), 0 if self.failure is None else own_rank() + 1])
        if self.failure is not None:
            raise self.failure
        if failed:
            raise RankFailed(f"process {failed - 1} failed: its own error says why")
        return bool(asked)

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """Stop the run, within the block, on a signal that would end the process.

        A second Ctrl-C ends it at once. Other signals do not, because they often come twice.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = interrupts.stopping_signals()
        before = [signal.getsignal(number) for number in numbers]

        def stop(number: int, frame: FrameType | None) -> None:
            interrupts.remember(number)
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.requested = True

        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
