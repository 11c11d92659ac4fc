"""Weight decay that follows the learning rate: AdamC (arXiv 2506.02285) and ScionC (arXiv 2512.08217)."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.decay.schedules import inflation
from specdiag.errors import UsageError
from specdiag.live.attaching import attach
from specdiag.live.optimizers import unwrap_optimizers
from specdiag.live.parameter_kinds import trained_parameters
from specdiag.live.parameters import ParamGroup
from specdiag.text import checks

Correction = Literal["adamc", "scionc"]


class CorrectedDecay:
    """Schedules the decay of a stock optimizer so that the norm of its weights stays the same while the lr falls.

    `adamc`: lambda_t = lambda lr_t/lr_max. `scionc`: lambda_t = lambda (lr_t/lr_max) ((2 - a_t)/a_t)/((2 - a_0)/a_0)
    with a = 1 - momentum (torch's momentum or beta1): the same while the momentum is constant, and right for a
    scheduled momentum too. The optimizer multiplies by lr_t itself.

    Every matrix is corrected but embeddings and output heads: theory assumes updates at right angles to the weights,
    and a head's are not. These and everything else keep their own decay. Composes with `AlphaDecay` as a product,
    whichever comes first.

    Corrected decay is the smaller one over most of the run: its base is usually chosen larger.

    Example:
        >>> corrected = CorrectedDecay(optimizer, model)
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        model: nn.Module,
        *,
        rule: Correction = "adamc",
        peak_lr: float | None = None,
        momentum: float | None = None,
    ) -> None:
        """Attach to a live optimizer.

        Args:
            optimizer: one or several, with decoupled decay.
            model: tells which parameters are matrices, embeddings and heads.
            rule: `adamc` or `scionc`.
            peak_lr: the largest learning rate of the schedule, of every group; None takes that of each group from its
                scheduler (`max_lr`, or `initial_lr`) when a step is taken.
            momentum: for `scionc`, the momentum at which the groups' decay holds. None takes the present momentum,
                which is wrong where a run with a scheduled momentum is continued.

        Raises:
            UsageError: an option makes no sense, the optimizer cannot take a changing decay, or it has no matrix to
                correct.
        """
        checks.one_of("rule", rule, get_args(Correction))
        momentum = None if momentum is None else checks.number("momentum", momentum, least=0, below=1)
        if peak_lr is not None and not checks.number("peak_lr", peak_lr) > 0:
            raise UsageError(f"peak_lr={peak_lr} must be a learning rate above 0")
        self._peak_lr = peak_lr
        self._rule: Correction = rule
        unwrapped = unwrap_optimizers(optimizer)
        self._corrected = _corrected_parameters(model)
        if not any(p in self._corrected for o in unwrapped for g in o.param_groups for p in g["params"]):
            raise UsageError(f"the optimizer holds no matrix of this {type(model).__name__} that could be corrected")
        self._gradient_weight = {
            p: _gradient_weight(group) if momentum is None else 1 - momentum
            for o in unwrapped
            for group in o.param_groups
            for p in group["params"]
        }
        self._detach = attach(unwrapped, "schedule", "CorrectedDecay", self._factor)[1]

    def detach(self) -> None:
        """Remove the correction from the optimizer."""
        self._detach()

    def __enter__(self) -> CorrectedDecay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _factor(self, parameter: torch.Tensor, group: ParamGroup) -> float:
        if parameter not in self._corrected:
            return 1.0
        factor = float(group["lr"]) / self._peak(group)
        if self._rule == "scionc":
            factor *= inflation(_gradient_weight(group)) / inflation(self._gradient_weight[parameter])
        return factor

    def _peak(self, group: ParamGroup) -> float:
        peak = self._peak_lr or group.get("max_lr") or group.get("initial_lr")
        if not peak:
            raise UsageError(
                "no scheduler says the largest learning rate of this optimizer: give "
                "CorrectedDecay(optimizer, model, peak_lr=...)"
            )
        if float(group["lr"]) > float(peak) * (1 + 1e-6):
            raise UsageError(
                f"the learning rate is {float(group['lr']):g}, above the peak {float(peak):g}: give peak_lr"
            )
        return float(peak)


def _corrected_parameters(model: nn.Module) -> set[torch.Tensor]:
    """Return the matrices that are corrected: all but embeddings and heads, tied or not."""
    return {each.parameter for each in trained_parameters(model) if each.kind == "hidden"}


def _gradient_weight(group: ParamGroup) -> float:
    """Return 1 - momentum, the share of the new gradient in the average; 1 without momentum."""
    if "betas" in group:
        return 1 - float(group["betas"][0])
    return 1 - float(group.get("momentum", 0.0))
