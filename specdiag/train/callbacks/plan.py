"""A fixed decay plan in a transformers Trainer: `trainer.add_callback(DecayPlanCallback("plan.json"))`."""

from __future__ import annotations

import os
from typing import cast

from torch import nn
from torch.optim import Optimizer

from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.errors import MissingExtraError

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise MissingExtraError("the Trainer callback needs transformers: pip install transformers accelerate") from error


class DecayPlanCallback(TrainerCallback):
    """Multiplies the decay of each Parameter by its ratio in a plan, inside the Trainer's optimizer steps.

    The Trainer's own `weight_decay` is the base; its groups, schedulers and checkpoints keep their layout. Nothing is
    saved: a resumed Trainer needs the callback again.
    """

    def __init__(self, plan: DecayPlan | str | os.PathLike[str]) -> None:
        """Take a plan or its file.

        Raises:
            SourceError: the file is no plan.
        """
        self.plan = plan if isinstance(plan, DecayPlan) else load_plan(plan)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Apply the plan. The optimizer is prepared by now, and its checkpoint is loaded."""
        self.plan.apply(cast("Optimizer", kwargs["optimizer"]), cast("nn.Module", kwargs["model"]))
