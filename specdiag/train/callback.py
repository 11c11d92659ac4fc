"""AlphaDecay in a transformers Trainer: `trainer.add_callback(AlphaDecayCallback())`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from specdiag.errors import MissingExtraError, UsageError
from specdiag.optim import AlphaDecay

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("the Trainer callback needs transformers: pip install transformers accelerate") from error

_log = logging.getLogger("specdiag")


class AlphaDecayCallback(TrainerCallback, ExportableState):
    """Attaches `specdiag.optim.AlphaDecay` to the Trainer's optimizer, steps it, and saves it in its checkpoints.

    The Trainer's optimizer, scheduler and checkpoint files keep their layout, so that a plain Trainer can go on from
    them. The Trainer's `weight_decay` is the base: its default is 0, and then there is nothing to multiply.

    Attributes:
        decay: the AlphaDecay, from the beginning of training on; None before.
    """

    def __init__(self, **settings: Any) -> None:
        """Take the keyword arguments of `AlphaDecay`, such as `s2=5.0`, `every=250`, `mode="sweep"`."""
        self.decay: AlphaDecay | None = None
        self._settings = settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach: the optimizer has been prepared by now, and its checkpoint loaded."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if self.decay is not None:
            self.decay.detach()
        self.decay = AlphaDecay(model, optimizer, **self._settings)
        saved = self._saved(state)
        if state.global_step > 0:
            _check_resumed(args, optimizer, state.global_step)
            if saved is not None:
                self.decay.load_state_dict(saved)
        # The checkpoint of a run without this callback has no entry for it, and the Trainer's first save needs one.
        cast("dict[str, Any]", state.stateful_callbacks).setdefault(type(self).__name__, self.state())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure what is due, after the gradients and before the step."""
        if self.decay is not None:
            self.decay.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimizer as it was; `decay` keeps its last ratios."""
        if self.decay is not None:
            self.decay.detach()

    def state(self) -> dict[str, Any]:
        """What the Trainer writes to trainer_state.json."""
        return {
            "args": {name: value for name, value in self._settings.items() if name != "process_group"},
            "attributes": {"saved": None if self.decay is None else self.decay.state_dict()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AlphaDecayCallback:
        """The callback of a checkpoint; its exponents are taken from there when training begins."""
        return cls(**state["args"])

    def _saved(self, state: TrainerState) -> dict[str, Any] | None:
        """The AlphaDecay state of the checkpoint that the Trainer resumes from."""
        held = cast("dict[str, Any]", state.stateful_callbacks).get(type(self).__name__)
        if isinstance(held, list):
            raise UsageError("the Trainer has several AlphaDecayCallbacks: their ratios would multiply; add one")
        return None if held is None else held["attributes"]["saved"]


def _check_resumed(args: TrainingArguments, optimizer: Any, step: int) -> None:
    """What a Trainer does without a word on resuming, said where it bears on decay."""
    if not any(optimizer.state.values()):
        _log.warning(
            "resumed at step %d with an empty optimizer: the Trainer loads optimizer.pt only where scheduler.pt lies "
            "beside it, so momentum starts from zero",
            step,
        )
    held = {group["weight_decay"] for group in optimizer.param_groups}
    if args.weight_decay not in held:
        _log.warning(
            "weight_decay=%g is not used: the resumed optimizer brings its own, %s",
            args.weight_decay,
            " and ".join(f"{decay:g}" for decay in sorted(held)),
        )
