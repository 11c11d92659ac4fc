"""Cautious weight decay (arXiv 2510.12402): only weights that the step does not already grow are decayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specdiag.optim.optimizers.adam_direction import AdamDirection


class CautiousAdamW(AdamDirection):
    """AdamW that decays a weight only where the step already takes it towards zero.

    w <- w - lr (u + weight_decay 1[u w >= 0] w)

    The mask needs no setting of its own; a decay that suits AdamW is the one to start from.
    """

    def _move(self, group: dict[str, Any], parameters: list[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
        lr = float(group["lr"])
        rate = lr * group["weight_decay"]
        for p, u in zip(parameters, directions, strict=True):
            if rate:
                p.sub_(p * (u * p >= 0), alpha=rate)
            p.sub_(u, alpha=lr)
