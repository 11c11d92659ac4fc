"""A norm watch in a transformers Trainer: `trainer.add_callback(NormWatchCallback())`."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.optim import Optimizer

from specdiag.errors import MissingExtraError, UsageError
from specdiag.files import Table
from specdiag.optim.norms.norm_watch import NormWatch

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingExtraError("the Trainer callback needs transformers: pip install transformers accelerate") from error


class NormWatchCallback(TrainerCallback, ExportableState):
    """Logs norms, updates and their angles by `specdiag.optim.NormWatch`, into `specdiag_norms/` of the output folder.

    Gradients are as the optimizer gets them, after clipping. The vectors from which the spectral norms continue are
    saved in trainer_state.json.

    Attributes:
        watch: the NormWatch, from the beginning of training; None before.
    """

    def __init__(self, **settings: object) -> None:
        """Take the keyword arguments of `NormWatch`, such as `every=100`, `out="runs/mine"`, `roles=("q", "head")`."""
        self.watch: NormWatch | None = None
        self._settings: Table = settings

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Attach the watch. The optimizer is prepared by now, and its checkpoint is loaded."""
        if self.watch is not None:
            self.watch.detach()
        settings: Table = {"out": args.output_dir} | self._settings
        self.watch = NormWatch(cast("nn.Module", kwargs["model"]), cast("Optimizer", kwargs["optimizer"]), **settings)
        stateful = cast("Table", state.stateful_callbacks)
        entry = stateful.get(type(self).__name__)
        if isinstance(entry, list):
            raise UsageError("the Trainer has several NormWatchCallbacks, which would write into one log: add one")
        if state.global_step > 0 and entry is not None and entry["attributes"]["saved"] is not None:
            self.watch.load_state_dict(entry["attributes"]["saved"])
        # The checkpoint of a run without this callback has no entry for it, and the Trainer's first save needs one.
        stateful.setdefault(type(self).__name__, self.state())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tell the watch that a step follows."""
        if self.watch is not None:
            self.watch.step(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Log the last norms, and detach the watch."""
        if self.watch is not None:
            self.watch.finish(state.global_step)

    def state(self) -> Table:
        """Return the state that the Trainer writes to trainer_state.json."""
        saved = None if self.watch is None else self.watch.state_dict()
        return {"args": dict(self._settings), "attributes": {"saved": saved}}

    @classmethod
    def from_state(cls, state: Table) -> NormWatchCallback:
        """Make the callback again from a checkpoint; its vectors are loaded when training begins."""
        return cls(**state["args"])
