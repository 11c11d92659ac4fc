"""What happens beside the steps of a run: its log, the decay that acts, and stopping when asked to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from specdiag.decay.live import live_parameters, untied
from specdiag.decay.multipliers import attach
from specdiag.decay.servable import servable
from specdiag.metric_log import LOG_NAME, RUN, append_log, entry
from specdiag.train.callback import AlphaDecayCallback

Decays = Mapping[str, float]
"""What the optimizer takes as weight decay, by Parameter."""


class NoDecayCallback(TrainerCallback):
    """Takes all weight decay away, inside the optimizer's steps: its groups and checkpoints keep theirs."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the prepared optimizer."""
        attach(kwargs["optimizer"], "ratio", "NoDecayCallback", lambda *_: 0.0, replace=True)


class RunLogCallback(TrainerCallback):
    """Logs the losses and, where it changed, the decay that the optimizer reads inside its step.

    To be added after the callback that sets the decay.
    """

    def __init__(
        self,
        run: Path,
        alpha: AlphaDecayCallback | None,
        on_first: Callable[[Decays], None],
        on_log: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        """Follow a run.

        Args:
            run: the folder whose log is written.
            alpha: whose exponents are logged with the decays.
            on_first: gets the decays of the first step, before it.
            on_log: gets the step and what the Trainer logs.
        """
        self._path, self._alpha, self._on_first, self._on_log = run / LOG_NAME, alpha, on_first, on_log
        self._last: Decays = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hook into the step, behind the decay's own hook; let this run's intervals hold, not those of the state."""
        state.compute_steps(args, state.max_steps)
        if self._alpha is None:  # exponents of an older AlphaDecay would be taken for this run's on the next resume
            cast("dict[str, Any]", state.stateful_callbacks).pop(AlphaDecayCallback.__name__, None)
        names: dict[torch.Tensor, str] = {
            p: name for name, p in untied(live_parameters(cast("nn.Module", kwargs["model"]))).items()
        }

        def read(optimizer: Optimizer, *_: object) -> None:
            groups = optimizer.param_groups
            self._changed({names[p]: float(g["weight_decay"]) for g in groups for p in g["params"]}, state.global_step)

        servable(kwargs["optimizer"]).register_step_pre_hook(read)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the losses in the long form too."""
        if logs is not None and "loss" in logs:
            append_log(self._path, [entry(state.global_step, RUN, "loss", logs["loss"])])
            self._on_log(state.global_step, logs)

    def _changed(self, decays: Decays, step: int) -> None:
        if decays == self._last:
            return
        if not self._last:
            self._on_first(decays)
        held = None if self._alpha is None else self._alpha.decay
        by_square = held is not None and held.state_dict()["settings"]["basis"] == "square"
        column = "alpha_square" if by_square else "alpha"
        alphas, ratios = ({}, {}) if held is None else (held.alphas, held.ratios)
        changed = [name for name in decays if decays[name] != self._last.get(name)]
        entries = [entry(step, name, "weight_decay", decays[name]) for name in changed]
        entries += [entry(step, name, "ratio", ratios[name]) for name in changed if name in ratios]
        entries += [entry(step, n, column, a) for n in changed if (a := alphas.get(n)) is not None]
        append_log(self._path, entries)
        self._last = dict(decays)


class StopCallback(TrainerCallback):
    """Ends the run after the current step, with a checkpoint, once `wanted` is set."""

    wanted = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop."""
        if self.wanted:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def on_signals(self) -> Generator[None]:
        """Ctrl-C and a polite kill stop the run; the second one at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.getsignal(number) for number in numbers]

        def stop(number: int, frame: FrameType | None) -> None:
            if self.wanted:
                raise KeyboardInterrupt
            self.wanted = True

        for number in numbers:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
