"""Renormalized AdamW (arXiv 2512.08217, algorithm 1, reconstructed): steps across the weights keep their norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdiag.live.parameters import ParamGroup
from specdiag.optim.optimizers.adam_direction import AdamDirection


class RenormalizedAdamW(AdamDirection):
    """AdamW that brings each matrix to the norm that its step along the weights alone would have given.

    w' = (1 - lr weight_decay) w;  w'' = w' - lr u;  w <- w'' |w' - lr u_par|/|w''|, u_par = <u, w'> w'/|w'|^2

    Norms are of whole parameter tensors. Vectors, and what is zero before or after the step, take AdamW's step. The
    paper shows that training hardly notices: the norm then grows only by what successive updates share.
    """

    def _move(self, group: ParamGroup, parameters: list[torch.Tensor], directions: Sequence[torch.Tensor]) -> None:
        lr = float(group["lr"])
        for p, u in zip(parameters, directions, strict=True):
            p.mul_(1 - lr * group["weight_decay"])
            if p.ndim < 2:
                p.sub_(u, alpha=lr)
                continue
            before = torch.linalg.vector_norm(p)
            target = (before - lr * (u * p).sum() / before).abs()
            p.sub_(u, alpha=lr)
            after = torch.linalg.vector_norm(p)
            p.mul_(torch.where((before > 0) & (after > 0), target / after, 1.0))
