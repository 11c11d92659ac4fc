"""Warning of decay that rounding undoes: decoupled decay of weights that are kept in bfloat16 or float16."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch.optim import Optimizer

from specdiag.live.parameters import ParamGroup
from specdiag.optim.decay_semantics import is_decoupled
from specdiag.optim.optimizers.combined import stepped_by

_CAREFUL = ("bf16_stochastic_round", "kahan_sum", "stochastic_rounding")
"""Settings of optimizers that keep what rounding would lose."""
_LOST = "rounding undoes it and the decay does nothing"
_LOST_IN_PART = "rounding undoes it, or part of it (a fused step rounds decay and update together)"


def warn_of_rounding(optimizers: Iterable[Optimizer], parameters: Sequence[torch.Tensor], ratio: float) -> None:
    """Warn where the decay of one step lies below half a unit in the last place of every weight.

    w (1 - c) rounds back to w for all w where c = lr * weight_decay * ratio < eps/4: 0.002 in bfloat16. A fused step
    rounds w (1 - c) - u, which keeps a part of c that falls with u.

    Args:
        optimizers: whose groups hold lr and decay; the peak of the schedule is used where it is known.
        parameters: that take part.
        ratio: the largest ratio that they will have.
    """
    wanted = {p for p in parameters if p.dtype in (torch.bfloat16, torch.float16)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            low = next((p.dtype for p in group["params"] if p in wanted), None)
            if low is None or not is_decoupled(optimizer, group) or _is_careful(optimizer, group):
                continue
            shrinkage = peak_lr(group) * float(group["weight_decay"]) * ratio
            if 0 < shrinkage < torch.finfo(low).eps / 4:
                lost = _LOST_IN_PART if group.get("fused") else _LOST
                warnings.warn(
                    f"Weights are {str(low).removeprefix('torch.')} and a step's decay, lr * weight_decay * ratio <= "
                    f"{shrinkage:.1e}, is less than half of that type's spacing ({torch.finfo(low).eps / 4:.1e} "
                    f"relative): {lost}. Keep the weights in float32 and compute "
                    "under torch.autocast, or take an optimizer with stochastic rounding (torchao's AdamW with "
                    "bf16_stochastic_round=True).",
                    UserWarning,
                    stacklevel=3,
                )
                return


def peak_lr(group: ParamGroup) -> float:
    """Return the largest learning rate of a group's schedule, as far as the group holds it.

    Args:
        group: with at least one of `lr`, `initial_lr` and `max_lr`.
    """
    return max(float(group[key]) for key in ("lr", "initial_lr", "max_lr") if key in group)


def _is_careful(optimizer: Optimizer, group: ParamGroup) -> bool:
    own = stepped_by(optimizer, group)
    return any(bool(group.get(name)) or bool(getattr(own, name, False)) for name in _CAREFUL)
