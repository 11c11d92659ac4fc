"""Optimizers over the models of live_models, of every kind that reads its decay from its groups."""

import torch


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, "weight_decay": 0.1} | options)


def muon(model):
    return torch.optim.Muon([p for p in model.layers.parameters() if p.ndim == 2], lr=1e-2, weight_decay=0.1)


class Lion(torch.optim.Optimizer):
    """arXiv 2302.06675, algorithm 2."""

    def __init__(self, params, lr, weight_decay, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, (b1, b2) = group["lr"], group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"]).sub_(lr * m.lerp(p.grad, 1 - b1).sign())
                m.lerp_(p.grad, 1 - b2)


OPTIMIZERS = {
    "AdamW for-loop": lambda m: adamw(m, foreach=False),
    "AdamW foreach": lambda m: adamw(m, foreach=True),
    "AdamW fused": lambda m: adamw(m, fused=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, weight_decay=0.1),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1),
    "Muon": muon,
    "Lion": lambda m: Lion(m.parameters(), lr=1e-3, weight_decay=0.1),
}
