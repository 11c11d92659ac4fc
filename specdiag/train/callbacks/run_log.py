"""Callbacks that log losses and decays of a run, or remove its decay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from specdiag.errors import ComputationError, UsageError
from specdiag.files import Table
from specdiag.live.attaching import attach, decays_in_force
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.callbacks.live_rules import LIVE_RULES, AlphaLRCallback, LiveRuleCallback
from specdiag.trajectories.loss_alerts import LossWatch
from specdiag.trajectories.metric_log import LOG_NAME, RUN, LogEntry, append_log, entry

_log = logging.getLogger("specdiag")
Decays = Mapping[str, float]
"""Weight decay that the optimizer uses, by Parameter."""


class NoDecayCallback(TrainerCallback):
    """Sets the weight decay to 0 inside the optimizer's steps; groups and checkpoints keep their values."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Attach to the optimizer, which is prepared by now."""
        attach(cast("Optimizer", kwargs["optimizer"]), "ratio", "NoDecayCallback", lambda *_: 0.0, replace=True)


class RunLogCallback(TrainerCallback):
    """Logs the losses, and the decay in force inside the optimizer's steps whenever it or a ratio of lr changed.

    It must be added after the callback that sets the decay.
    """

    def __init__(
        self,
        run: Path,
        rule: TrainerCallback | None,
        on_first: Callable[[Decays], None],
        on_log: Callable[[int, Mapping[str, float]], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """Prepare the log of a run.

        Args:
            run: folder of the run.
            rule: callback that sets the decay; exponents and ratios of a rule that follows the weights are logged too.
            on_first: called before the first step with its decays.
            on_log: called with the step and what the Trainer logs.
            on_failure: takes the error where the log cannot be written.
        """
        self._on_failure = on_failure
        self._path, self._on_first, self._on_log = run / LOG_NAME, on_first, on_log
        self._live = rule if isinstance(rule, LiveRuleCallback) else None
        self._last: Decays = {}
        self._last_rates: Mapping[str, float] = {}
        self._losses = LossWatch()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Add a hook after the decay's own, and use the intervals of this run instead of those in the state."""
        state.compute_steps(args, state.max_steps)
        for logged in state.log_history:  # of the run before it was interrupted
            if "loss" in logged:
                self._losses.observe(int(logged["step"]), float(logged["loss"]))
        own_rule = None if self._live is None else type(self._live).__name__
        for kind in LIVE_RULES:  # else the next resume would load the state of an earlier rule
            if kind.__name__ != own_rule:
                cast("Table", state.stateful_callbacks).pop(kind.__name__, None)
        names: dict[torch.Tensor, str] = {
            p: name for name, p in untied(live_parameters(cast("nn.Module", kwargs["model"]))).items()
        }

        optimizers = unwrap_optimizers(kwargs["optimizer"])

        def read(*_: object) -> None:
            self._changed({names[p]: d for each in optimizers for p, d in decays_in_force(each).items()}, state)

        optimizers[0].register_step_pre_hook(read)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Log the loss, and pass on what the Trainer logs."""
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        self._append([entry(state.global_step, RUN, "loss", logs["loss"])])
        alert = self._losses.observe(state.global_step, logs["loss"])
        if alert is not None and alert.kind == "spike":  # a loss that is not finite has its own sentence
            _log.warning("step %d: %s", alert.step, alert.message)
        decay = None if self._live is None else self._live.decay
        ratios = [] if decay is None else list(decay.ratios.values())
        alphas = [a for a in getattr(decay, "alphas", {}).values() if a is not None]
        more = {"ratio_min": min(ratios), "ratio_max": max(ratios)} if ratios else {}
        self._on_log(state.global_step, {**logs, **more, **({"alpha": fmean(alphas)} if alphas else {})})

    def _append(self, entries: Sequence[LogEntry]) -> None:
        try:
            append_log(self._path, entries)
        except (UsageError, ComputationError) as error:  # the other processes wait in a meeting of their own
            self._on_failure(error)

    def _changed(self, decays: Decays, state: TrainerState) -> None:
        decay = None if self._live is None else self._live.decay
        decays = {**decays, **getattr(decay, "decays", {})}
        rates = decay.ratios if decay is not None and isinstance(self._live, AlphaLRCallback) else {}
        if (decays == self._last and rates == self._last_rates) or not state.is_world_process_zero:
            return
        if not self._last:
            self._on_first(decays)
        alphas: Mapping[str, float | None] = getattr(decay, "alphas", {})
        ratios = {} if decay is None or rates else decay.ratios
        column = "square_alpha" if alphas and decay is not None and _by_square(decay) else "alpha"
        changed = [
            name
            for name in decays
            if decays[name] != self._last.get(name) or rates.get(name) != self._last_rates.get(name)
        ]
        entries = [entry(state.global_step, name, "weight_decay", decays[name]) for name in changed]
        entries += [entry(state.global_step, name, "ratio", ratios[name]) for name in changed if name in ratios]
        entries += [entry(state.global_step, n, column, a) for n in changed if (a := alphas.get(n)) is not None]
        rhos: Mapping[str, float | None] = getattr(decay, "rhos", {})
        by_shape = column.replace("alpha", "rho")
        entries += [entry(state.global_step, n, by_shape, r) for n in changed if (r := rhos.get(n)) is not None]
        entries += [entry(state.global_step, n, "lr_ratio", rates[n]) for n in changed if n in rates]
        self._append(entries)
        self._last, self._last_rates = dict(decays), dict(rates)


def _by_square(decay: Any) -> bool:
    return decay.state_dict()["settings"]["basis"] == "square"
