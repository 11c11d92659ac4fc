"""Stable weight decay (arXiv 2011.11152): decay by the effective lr of the whole network, not by its nominal one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from specdiag.optim.optimizers.adam_direction import AdamDirection


class AdamS(AdamDirection):
    """AdamW whose decay is divided by the root mean square of all gradients, as Adam's second moments have it.

    w <- (1 - lr weight_decay/sqrt(mean v^)) w - lr u, the mean over all entries of all parameters with a gradient

    Adam's steps do not shrink with the gradients, and their decay should not either: both have one effective lr here.
    Gradients of transformers are far below 1, so that a decay of AdamW is divided by a small number: take a smaller
    one. The default is the authors', for images.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
    ) -> None:
        """As AdamW's.

        Raises:
            UsageError: a number out of range.
        """
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _look(self, held: Sequence[tuple[dict[str, Any], list[torch.Tensor]]]) -> None:
        sums: list[torch.Tensor] = []
        corrections: list[float] = []
        for group, parameters in held:
            for p in parameters:
                second = self.state[p]["exp_avg_sq"]
                sums.append(second.sum(dtype=torch.promote_types(second.dtype, torch.float32)).to(held[0][1][0].device))
                corrections.append(1 - group["betas"][1] ** self.state[p]["step"].item())
        count = sum(p.numel() for _, parameters in held for p in parameters)
        found = torch.stack(sums).tolist() if sums else []
        self._root = math.sqrt(sum(s / c for s, c in zip(found, corrections, strict=True)) / max(1, count))

    def _move(self, group: dict[str, Any], parameters: list[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
        lr = float(group["lr"])
        rate = lr * group["weight_decay"] / self._root if self._root else 0.0
        for p, u in zip(parameters, directions, strict=True):
            p.mul_(1 - rate).sub_(u, alpha=lr)
