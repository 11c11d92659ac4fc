"""Optimizers of other packages, rebuilt in their structure: state for a group as a whole, lists beside the groups."""

import torch


def _orthogonal(stack):
    """Five steps of Newton and Schulz, each matrix of a stack for itself."""
    x = stack / (stack.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x


class StackedMuonAndAdamW(torch.optim.Optimizer):
    """Groups of equal matrices, whose momenta are one stack under the first of them; the rest takes AdamW.

    Muon's decay is cautious, and goes by an lr that grows with rows over columns.
    """

    def __init__(self, groups):
        super().__init__(groups, {})
        self._rate = torch.tensor(0.0)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            self._muon(group) if group["kind"] == "muon" else self._adamw(group)

    def _muon(self, group):
        members = group["params"]
        gradients, stack = torch.stack([p.grad for p in members]), torch.stack(list(members))
        state = self.state[members[0]]
        momenta = state.setdefault("momenta", torch.zeros_like(gradients))
        momenta.lerp_(gradients, 1 - group["momentum"])
        update = _orthogonal(gradients.lerp(momenta, group["momentum"]))
        self._rate.fill_(group["lr"] * max(1.0, members[0].shape[0] / members[0].shape[1]) ** 0.5)
        kept = (update * stack) >= 0
        stack.sub_(self._rate * update + self._rate * group["weight_decay"] * stack * kept)
        for p, new in zip(members, stack, strict=True):
            p.copy_(new)

    def _adamw(self, group):
        for p in group["params"]:
            state = self.state[p]
            mean = state.setdefault("mean", torch.zeros_like(p))
            square = state.setdefault("square", torch.zeros_like(p))
            state["step"] = state.get("step", 0) + 1
            p.mul_(1 - group["lr"] * group["weight_decay"])
            mean.lerp_(p.grad, 0.1)
            square.lerp_(p.grad.square(), 0.01)
            size = (square / (1 - 0.99 ** state["step"])).sqrt() + 1e-8
            p.sub_(group["lr"] * mean / (1 - 0.9 ** state["step"]) / size)


def stacked_muon_and_adamw(model, decay):
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    taken = set(matrices)
    groups = [
        {"params": [p for p in matrices if p.shape == shape], "kind": "muon", "momentum": 0.9}
        for shape in dict.fromkeys(p.shape for p in matrices)
    ]
    groups.append({"params": [p for p in model.parameters() if p not in taken], "kind": "adamw"})
    return StackedMuonAndAdamW([group | {"lr": 1e-2, "weight_decay": decay} for group in groups])


class GroupMomentum(torch.optim.Optimizer):
    """Normalised momentum, kept for all of a group in one flat tensor; with `trust` a step is as long as the weights."""

    def __init__(self, params, lr, weight_decay, trust=False):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            flat = torch.cat([p.grad.flatten() for p in group["params"]])
            momentum = self.state[group["params"][0]].setdefault("flat", torch.zeros_like(flat))
            momentum.lerp_(flat, 0.1)
            for p, own in zip(group["params"], momentum.split([p.numel() for p in group["params"]]), strict=True):
                update = own.view_as(p) / (own.norm() + 1e-12)
                if group["trust"]:
                    update = (update + group["weight_decay"] * p) * p.norm()
                    p.sub_(group["lr"] * update)
                else:
                    p.sub_(group["lr"] * (update + group["weight_decay"] * p))


class Zipped(torch.optim.Optimizer):
    """SGD with one buffer list for each of its groups, which it walks beside them."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.buffers = [[torch.zeros_like(p) for p in group["params"]] for group in self.param_groups]
        self.scales = [1.0 for _ in self.param_groups]

    @torch.no_grad()
    def step(self):
        for group, scale in zip(self.param_groups, self.scales):  # noqa: B905 - as it is found
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"] * scale)


class Container(torch.optim.Optimizer):
    """Steps one optimizer for each part of a model; its own groups are for schedulers and checkpoints."""

    def __init__(self, optimizers):
        self.optimizers = optimizers
        super().__init__([p for each in optimizers for g in each.param_groups for p in g["params"]], {})

    def step(self, closure=None):
        for each in self.optimizers:
            each.step()


class Lamb(torch.optim.Optimizer):
    """Sign of the gradient with decay in it, times the norm of the weights: no law, but separable."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad.sign() + group["weight_decay"] * p
                p.sub_(update * p.norm() / (update.norm() + 1e-12), alpha=group["lr"])


FOREIGN = {
    "stacked Muon and AdamW": stacked_muon_and_adamw,
    "state of a group": lambda m, decay: GroupMomentum(m.parameters(), 1e-2, decay),
    "list beside the groups": lambda m, decay: Zipped(m.parameters(), 1e-2, decay),
    "container": lambda m, decay: Container(
        [torch.optim.AdamW(part.parameters(), lr=1e-2, weight_decay=decay) for part in m.children()]
    ),
}
