"""Content of a checkpoint of another program."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from specdiag.train.runs.trainer_arguments import TrainerArguments


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Content of a checkpoint of another program.

    Attributes:
        kind: `nanoGPT checkpoint`, `AlphaDecay checkpoint`, `Lightning checkpoint`, `torch dict`,
            `distributed checkpoint`.
        model: with the weights loaded, in the dtype in which they were stored.
        moments: `step`, `exp_avg` and `exp_avg_sq` by the model's parameter name, in the shape of the parameter. A tied
            Parameter is listed once.
        optimizer: `adamw` (decoupled decay) or `adam` (coupled decay).
        step: optimizer steps done.
        settings: arguments of the Trainer that the file contains.
        block_size: tokens of a sequence; None if the file does not contain it.
        steps_total: steps that the run was planned for; None if the file does not contain them.
        lr: rate of the next step under the planned schedule; None if unknown.
        random_states: files of a Trainer's random numbers, one for each process in the order of their ranks.
        notes: sentences on the layout that fits, on what was taken over, and on what is unknown.
    """

    kind: str
    model: nn.Module
    moments: dict[str, dict[str, torch.Tensor]]
    optimizer: str
    step: int
    settings: TrainerArguments
    block_size: int | None = None
    steps_total: int | None = None
    lr: float | None = None
    random_states: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list[str])
