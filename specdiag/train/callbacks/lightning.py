"""AlphaDecay and AlphaLR in a Lightning Trainer: `Trainer(callbacks=[LightningAlphaDecayCallback()])`."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from torch.optim import Optimizer

from specdiag.errors import MissingExtraError, UsageError
from specdiag.files import Table
from specdiag.optim import AlphaDecay, AlphaLR
from specdiag.optim.rules.measured_ratios import MeasuredRatios

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    # Lightning has two packages, each with its own Callback class: a subclass of both works in both.
    _callback_classes = []
    for _package in ("lightning.pytorch", "pytorch_lightning"):
        with suppress(ImportError):
            _callback_classes.append(importlib.import_module(_package).Callback)
    if not _callback_classes:
        raise MissingExtraError("the Lightning callback needs lightning: pip install lightning")
    Callback = type("Callback", tuple(_callback_classes), {})


class LightningAlphaDecayCallback(Callback):
    """Attaches `specdiag.optim.AlphaDecay` to the module's optimizer, steps it, and saves it in the checkpoints.

    The optimizer, its schedulers and their part of the checkpoint keep their layout, so that a Trainer without this
    callback can continue them. The optimizer's own `weight_decay` is the base.

    Attributes:
        rule: class of the rule in `specdiag.optim`.
        decay: the attached rule, from the beginning of training; None before.
    """

    rule: ClassVar[type[MeasuredRatios]] = AlphaDecay

    def __init__(self, **settings: object) -> None:
        """Take the keyword arguments of `AlphaDecay`, such as `s2=5.0`, `every=250`, `mode="background"`."""
        super().__init__()
        self.decay: MeasuredRatios | None = None
        self._settings: Table = settings
        self._loaded: Table | None = None
        self._announced = False
        self._watching: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the state that an earlier run or a validation loaded; this run's checkpoint is loaded later."""
        self._loaded = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the rule. Weights and optimizer are prepared by now, and their checkpoint is loaded.

        Raises:
            UsageError: the module has several optimizers, or one that the rule does not support.
        """
        self._detach()
        optimizers = trainer.optimizers
        if len(optimizers) != 1:
            raise UsageError(
                f"{type(pl_module).__name__} has {len(optimizers)} optimizers, and this callback serves one: in "
                f"on_train_start construct specdiag.optim.{type(self).rule.__name__}(self, self.optimizers()), and "
                "call its step() in training_step before those of the optimizers"
            )
        self.decay = type(self).rule(pl_module, optimizers[0], **self._settings)
        if self._loaded is not None:
            self.decay.load_state_dict(self._loaded)
            self._loaded = None
        self._announced = False
        self._watching = optimizers[0].register_step_post_hook(self._check_announced)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Step the rule, after the gradients and before the optimizer's step."""
        self._announced = True
        if self.decay is not None:
            self.decay.step(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach the rule from the optimizer; `decay` keeps its last ratios."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach the rule after an error or Ctrl-C; a checkpoint that is saved now still gets its state."""
        self._detach()

    def state_dict(self) -> Table:
        """Return the state that Lightning writes to its checkpoint."""
        if self._loaded is not None:
            return self._loaded
        return {} if self.decay is None else self.decay.state_dict()

    def load_state_dict(self, state_dict: Table) -> None:
        """Keep the state of the checkpoint until training begins."""
        self._loaded = state_dict

    def _detach(self) -> None:
        if self.decay is not None:
            self.decay.detach()
        if self._watching is not None:
            self._watching.remove()
            self._watching = None

    def _check_announced(self, *_: object) -> None:
        """Check, after each step of the optimizer, that Lightning announced it.

        Raises:
            UsageError: the optimizer was stepped without Lightning.
        """
        if not self._announced:
            raise UsageError(
                "the optimizer was stepped past Lightning, which then counts no steps and calls no callback: take it "
                "from self.optimizers(), without use_pl_optimizer=False"
            )


class LightningAlphaLRCallback(LightningAlphaDecayCallback):
    """`specdiag.optim.AlphaLR` in the same way; takes its keyword arguments, such as `s2=3.0`, `until=2000`."""

    rule = AlphaLR
