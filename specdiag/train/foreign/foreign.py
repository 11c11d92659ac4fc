"""Record of a checkpoint of another program."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from specdiag.train.runs.trainer_arguments import TrainerArguments


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A checkpoint of another program, read.

    Attributes:
        kind: `nanoGPT checkpoint`, `AlphaDecay checkpoint`, `Lightning checkpoint`, `torch dict`.
        model: with the weights loaded, in the dtype in which they were stored.
        moments: state of the optimizer by the model's parameter name, a tied Parameter once: step, exp_avg,
            exp_avg_sq, in the shape of the model's parameter.
        optimizer: `adamw` (decoupled decay) or `adam` (coupled).
        step: optimizer steps done.
        settings: arguments of the Trainer in the file, and no others.
        block_size: tokens of a sequence; None if the file does not contain it.
        steps_total: steps that the run was planned for; None if the file does not contain them.
        notes: what was taken from where, which layout matched, and what is not known.
    """

    kind: str
    model: nn.Module
    moments: dict[str, dict[str, torch.Tensor]]
    optimizer: str
    step: int
    settings: TrainerArguments
    block_size: int | None = None
    steps_total: int | None = None
    notes: list[str] = field(default_factory=list[str])
