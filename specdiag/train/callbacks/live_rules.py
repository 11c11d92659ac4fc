"""Rules that follow a run, in a transformers Trainer: `trainer.add_callback(AlphaDecayCallback())`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import ClassVar, Protocol, Self, cast

from torch import nn
from torch.optim import Optimizer

from specdiag.errors import MissingExtraError, SourceError, SpecdiagError, UsageError
from specdiag.files import Table
from specdiag.optim import AlphaDecay, AlphaLR, GradientRatioDecay, ModuleAdaDecay, WeightwiseDecay
from specdiag.optim.rules.measured_ratios import MeasuredRatios

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("the Trainer callback needs transformers: pip install transformers accelerate") from error

_log = logging.getLogger("specdiag")


class LiveRule(Protocol):
    """A decay rule on a live optimizer."""

    @property
    def ratios(self) -> dict[str, float]:
        """Return the factor on the decay of each parameter."""
        ...

    def step(self, global_step: int) -> None:
        """Update the ratios if they are due; to be called before each step of the optimizer.

        Args:
            global_step: optimizer steps done.
        """

    def state_dict(self) -> Table:
        """Return the state, of types that JSON has."""
        ...

    def load_state_dict(self, state: Table, /) -> None:
        """Continue from a saved state."""

    def detach(self) -> None:
        """Remove the rule from the optimizer."""


class LiveRuleCallback(TrainerCallback, ExportableState):
    """Attaches a decay rule to the Trainer's optimizer, steps it, and saves it in the Trainer's checkpoints.

    The Trainer's optimizer, scheduler and checkpoint files keep their layout, so that a plain Trainer can continue
    them. The Trainer's `weight_decay` is the base; its default is 0, with which no rule has an effect.

    Attributes:
        rule: class of the rule in `specdiag.optim`.
        decay: the attached rule, from the beginning of training; None before.
    """

    rule: ClassVar[Callable[..., LiveRule]]

    def __init__(self, **settings: object) -> None:
        """Take the keyword arguments of the rule."""
        self.decay: LiveRule | None = None
        self._seconds = 0.0
        self._settings: Table = settings

    @property
    def seconds(self) -> float:
        """Seconds that the rule took so far, by the CPU's clock; work on a GPU may end later."""
        return self._seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Attach the rule. The optimizer is prepared by now, and its checkpoint is loaded."""
        model, optimizer = cast("nn.Module", kwargs["model"]), cast("Optimizer", kwargs["optimizer"])
        if self.decay is not None:
            self.decay.detach()
        self.decay = self.attached(model, optimizer)
        saved = self._saved(state)
        if state.global_step > 0:
            _check_resumed(args, optimizer, state.global_step)
            if saved is not None:
                _load(self.decay, saved)
        # The checkpoint of a run without this callback has no entry for it, and the Trainer's first save needs one.
        cast("Table", state.stateful_callbacks).setdefault(type(self).__name__, self.state())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Step the rule, after the gradients and before the optimizer's step."""
        if self.decay is not None:
            started = time.perf_counter()
            self.decay.step(state.global_step)
            self._seconds += time.perf_counter() - started

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Detach the rule from the optimizer; `decay` keeps its last ratios."""
        if self.decay is not None:
            self.decay.detach()

    def attached(self, model: nn.Module, optimizer: Optimizer) -> LiveRule:
        """Make the rule and attach it to a live optimizer.

        Args:
            model: model whose Parameters the optimizer has.
            optimizer: optimizer that is ready to step.

        Raises:
            UsageError: the rule does not support the optimizer or one of its settings.
        """
        return type(self).rule(model, optimizer, **self._settings)

    def state(self) -> Table:
        """Return the state that the Trainer writes to trainer_state.json."""
        return {
            "args": {name: value for name, value in self._settings.items() if name != "process_group"},
            "attributes": {"saved": None if self.decay is None else self.decay.state_dict()},
        }

    @classmethod
    def from_state(cls, state: Table) -> Self:
        """Make the callback again from a checkpoint; the rule's state is loaded when training begins."""
        return cls(**state["args"])

    def _saved(self, state: TrainerState) -> Table | None:
        """Return the rule's state in the checkpoint that the Trainer resumes from; None if it has none."""
        entry = cast("Table", state.stateful_callbacks).get(type(self).__name__)
        if isinstance(entry, list):
            raise UsageError(f"the Trainer has several {type(self).__name__}s: their ratios would multiply; add one")
        try:
            return None if entry is None else entry["attributes"]["saved"]
        except (LookupError, TypeError) as error:
            raise _damaged(self, error) from error


class _MeasuredCallback(LiveRuleCallback):
    @property
    def seconds(self) -> float:
        """Seconds that training waited for the rule, with those that `mode="background"` adds outside of its steps."""
        return self.decay.waited if isinstance(self.decay, MeasuredRatios) else super().seconds


class AlphaDecayCallback(_MeasuredCallback):
    """`specdiag.optim.AlphaDecay`; takes its keyword arguments, such as `s2=5.0`, `every=250`, `mode="background"`."""

    rule = AlphaDecay


class AlphaLRCallback(_MeasuredCallback):
    """`specdiag.optim.AlphaLR`; takes its keyword arguments, such as `s2=3.0`, `per="layer"`, `until=2000`."""

    rule = AlphaLR


class ModuleAdaDecayCallback(LiveRuleCallback):
    """`specdiag.optim.ModuleAdaDecay`; takes its keyword arguments `every` and `slope`."""

    rule = ModuleAdaDecay


class AWDCallback(LiveRuleCallback):
    """`specdiag.optim.GradientRatioDecay`: AWD's rule on any optimizer."""

    rule = GradientRatioDecay


class AdaDecayCallback(LiveRuleCallback):
    """`specdiag.optim.WeightwiseDecay`: AdaDecay's rule on any optimizer; takes its keyword argument `slope`."""

    rule = WeightwiseDecay


LIVE_RULES = (AlphaDecayCallback, AlphaLRCallback, ModuleAdaDecayCallback, AWDCallback, AdaDecayCallback)


def _load(decay: LiveRule, saved: Table) -> None:
    try:
        decay.load_state_dict(saved)
    except SpecdiagError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(decay, error) from error


def _damaged(owner: object, error: Exception) -> SourceError:
    return SourceError(
        f"the state of {type(owner).__name__} in trainer_state.json is damaged "
        f"({type(error).__name__}: {error!s:.100}): go back to an earlier checkpoint"
    )


def _check_resumed(args: TrainingArguments, optimizer: Optimizer, step: int) -> None:
    """Warn of changes that a Trainer makes silently on resuming and that affect the decay."""
    if not any(optimizer.state.values()):
        _log.warning(
            "resumed at step %d with an empty optimizer: the Trainer loads optimizer.pt only where scheduler.pt lies "
            "beside it, so momentum starts from zero",
            step,
        )
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    if args.weight_decay not in decays:
        _log.warning(
            "weight_decay=%g is not used: the resumed optimizer brings its own, %s",
            args.weight_decay,
            " and ".join(f"{decay:g}" for decay in sorted(decays)),
        )
