"""The decay that a step took off each matrix, by the optimizer's state after the step, in float64.

AdamW: with m, v and t of the state after the step and u = lr m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + eps), the step is
w' = (1 - x) w - u, so x = <w - u - w', w>/<w, w>. Other optimizers: a copy of the optimizer, state and gradients
included and without hooks, takes the same step at decay 0 to w''; x = <w'' - w', w>/<w, w> over the weights that
decay, which for a cautious law are those with (w - w'') w >= 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from specdiag.live.parameters import live_parameters

Group = dict[str, Any]


@dataclass
class Observed:
    """Decays of the matrices that have a ratio, in the steps of one loop.

    Attributes:
        pairs: x as measured, and lr times weight_decay times ratio.
        ratios: that were in force.
        steps: number of steps.
    """

    pairs: list[tuple[float, float]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    steps: int = 0

    def largest(self) -> float:
        """The largest relative difference."""
        return max(abs(measured / expected - 1) for measured, expected in self.pairs)


class Observer:
    """Hooks that see the weights before all other hooks of a step, and after them."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, ratios: Callable[[], Mapping[str, float]]) -> None:
        """Attach. Whatever changes decays is attached already."""
        self.found = Observed()
        self._names = {p: name for name, p in live_parameters(model).items()}
        self._ratios = ratios
        self._before: dict[nn.Parameter, torch.Tensor] = {}
        self._still: dict[nn.Parameter, torch.Tensor] = {}
        handle = optimizer.register_step_pre_hook(self._enter)
        optimizer._optimizer_step_pre_hooks.move_to_end(handle.id, last=False)  # pyright: ignore
        optimizer.register_step_post_hook(self._leave)

    def _enter(self, optimizer: Optimizer, *_: object) -> None:
        matrices = [p for group in optimizer.param_groups for p in group["params"] if p.ndim == 2]
        self._before = {p: local(p.detach()).to(torch.float64, copy=True) for p in matrices}
        self._still = {} if isinstance(optimizer, torch.optim.AdamW) else without_decay(optimizer)

    @torch.no_grad()
    def _leave(self, optimizer: Optimizer, *_: object) -> None:
        self.found.steps += 1
        for group in optimizer.param_groups:
            for p in group["params"]:
                ratio = self._ratios().get(self._names[p])
                if ratio is None or p.grad is None or not group["weight_decay"] or not group["lr"]:
                    continue
                scale = 1.0
                before, after = self._before[p], local(p.detach()).double()
                if p in self._still:
                    cautious = group.get("kind") == "muon"
                    kept = (before - self._still[p]) * before >= 0 if cautious else torch.ones_like(before)
                    scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5 if cautious else 1.0
                    gone, decaying = self._still[p] - after, before * kept
                else:
                    gone, decaying = before - adamw_update(group, optimizer.state[p]) - after, before
                products = torch.stack(((gone * decaying).sum(), decaying.square().sum()))
                if hasattr(p, "full_tensor"):
                    dist.all_reduce(products)
                if not products[1]:
                    continue  # weights of zero, as some begin
                self.found.pairs.append(
                    (float(products[0] / products[1]), scale * group["lr"] * group["weight_decay"] * ratio)
                )
                self.found.ratios.append(ratio)


def adamw_update(group: Group, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The update of AdamW in float64, from its state after the step."""
    step, (b1, b2) = float(state["step"]), group["betas"]
    first, second = (local(state[name]).double() for name in ("exp_avg", "exp_avg_sq"))
    denominator = (second / (1 - b2**step)).sqrt() + group["eps"]
    return group["lr"] * first / (1 - b1**step) / denominator


def without_decay(optimizer: Optimizer) -> dict[nn.Parameter, torch.Tensor]:
    """The weights after the same step at decay 0, taken by a copy that has no hooks."""
    copies: dict[nn.Parameter, nn.Parameter] = {}
    groups: list[Group] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            copies[p] = nn.Parameter(p.detach().clone())
            copies[p].grad = None if p.grad is None else p.grad.clone()
        groups.append(group | {"params": [copies[p] for p in group["params"]], "weight_decay": 0.0})
    other = type(optimizer)(groups)  # pyright: ignore
    for p, state in optimizer.state.items():
        other.state[copies[p]] = copy.deepcopy(state)  # pyright: ignore
    other.step()
    return {p: clone.detach().double() for p, clone in copies.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore
