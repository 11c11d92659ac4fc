"""Constrained parameter regularisation (arXiv 2311.09058): a bound on the norm of each matrix in place of a decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specdiag import checks
from specdiag.errors import UsageError
from specdiag.optim.optimizers.adam_direction import AdamDirection


class AdamCPR(AdamDirection):
    """Adam whose parameters are drawn back where R = |w|^2 goes above a bound.

    w <- w - lr u;  l <- max(0, l + weight_decay (R - bound));  w <- w - 2 l w

    An augmented Lagrangian for each tensor. `weight_decay` is the rate of l, mu in the paper; groups without it are not
    bound. The step by l has no lr. The bound is what R is after `warm_start` steps (the paper's kappa-WS; its other
    choice, the inflection point of R, is not here).

    A reconstruction: R is a sum here, and with the paper's mu = 1 a tensor overshoots once R grows by more than 1/2 in
    a step. A small LLaMA came to 3.13 nats where AdamW came to 2.64, with mu = 0.01 to 2.82: so it is no entry of the
    registry. Choose `weight_decay` far below 1/R.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1.0,
        bound: float | None = None,
        warm_start: int = 100,
    ) -> None:
        """Adam's arguments, and two.

        Args:
            params: as AdamW's.
            lr: as AdamW's.
            betas: as AdamW's.
            eps: as AdamW's.
            weight_decay: rate of the multiplier.
            bound: of every tensor alike; None for what each has after `warm_start` steps.
            warm_start: steps before there is a bound; about those of the lr's warm-up.

        Raises:
            UsageError: a number out of range.
        """
        if bound is not None and not checks.number("bound", bound) > 0:
            raise UsageError(f"bound={bound} is of a squared norm: give a positive number, or None")
        if checks.whole("warm_start", warm_start) < 1:
            raise UsageError(f"warm_start={warm_start} must be a number of steps, 1 at least")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.defaults |= {"bound": bound, "warm_start": warm_start}
        self._complete()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Groups that AdamW saved have no bound."""
        super().__setstate__(state)
        self._complete()

    def _complete(self) -> None:
        for group in self.param_groups:
            for name in ("bound", "warm_start"):
                group.setdefault(name, self.defaults[name])

    def _move(self, group: dict[str, Any], parameters: list[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
        for p, u in zip(parameters, directions, strict=True):
            p.sub_(u, alpha=float(group["lr"]))
        rate = float(group["weight_decay"])
        if not rate:
            return
        kind = torch.promote_types(parameters[0].dtype, torch.float32)
        norms = torch.stack([torch.linalg.vector_norm(p, dtype=kind) for p in parameters])
        for p, norm in zip(parameters, norms.tolist(), strict=True):
            state, square = self.state[p], norm * norm
            state.setdefault("bound", group["bound"])
            if state["bound"] is None:
                if state["step"].item() >= group["warm_start"]:
                    state["bound"] = square
                continue
            state["multiplier"] = max(0.0, state.get("multiplier", 0.0) + rate * (square - state["bound"]))
            p.mul_(1 - 2 * state["multiplier"])
