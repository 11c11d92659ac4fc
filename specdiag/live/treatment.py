"""Choice of the way in which an optimizer's decay is changed: by its law, or by division of its groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.laws import Law
from specdiag.live.optimizers import is_from, refusal
from specdiag.live.probe import find_laws, is_separable

ROUNDED = (torch.bfloat16, torch.float16)
"""Types in which most factors of a step's decay round to 1."""
BY_POSITION = "bitsandbytes"
"""Its settings go by the position of a Parameter in the groups."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """Way in which the decay of an optimizer is changed.

    Attributes:
        laws: the law of each Parameter that has one; other Parameters get no decay, or the groups are divided.
        decayed: Parameters with a decay when the optimizer was asked; it is asked again where there are others.
        divides: True where the groups are divided for each step, and each part gets a decay of its own.
        lawful: True where every Parameter with decay has a law.
        counted: True where torch counts the optimizer's writes to its Parameters.
    """

    laws: Mapping[torch.Tensor, Law]
    decayed: frozenset[torch.Tensor]
    divides: bool
    lawful: bool
    counted: bool


def choose_treatment(optimizer: Optimizer) -> Treatment:
    """Ask an optimizer how it decays, and choose how its decay is changed.

    The law comes first: it leaves the groups alone. Parameters in bfloat16 or float16 are an exception, for there a
    factor is rounded before the update is; groups that may be divided leave the arithmetic to the optimizer.

    Args:
        optimizer: a torch optimizer, with a decay in some group.

    Raises:
        UsageError: the decay of a Parameter follows no law and the groups may not be divided; or the steps do not
            decay, or do not reach, the Parameters of the groups.
    """
    answer = find_laws(optimizer)
    decayed: list[torch.Tensor] = [p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    if not answer.moved:
        raise UsageError(refusal(optimizer, "does not step the Parameters of its groups (a probe shows it)"))
    if all(p in answer.undecayed for p in decayed):
        raise UsageError(refusal(optimizer, "does not apply the weight_decay of its groups (a probe shows it)"))
    lawful = all(p in answer.laws or p in answer.undecayed for p in decayed)
    is_rounded = any(p.dtype in ROUNDED for p in decayed)
    by_position = is_from(optimizer, BY_POSITION)
    divides = (is_rounded or not lawful) and not by_position and is_separable(optimizer)
    if not lawful and not divides:
        undivided = "finds its settings by position in them" if by_position else "keeps something for each as a whole"
        raise UsageError(
            refusal(
                optimizer,
                "decays by no law that can be applied beside its step (a probe on small tensors shows it), and its "
                f"groups cannot be divided, for it {undivided}",
            )
        )
    return Treatment(answer.laws, frozenset(decayed), divides, lawful, answer.counted)
