"""Several optimizers as one torch Optimizer: what a Trainer, a scheduler and a checkpoint expect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup


class Combined(Optimizer):
    """Steps several optimizers, one after the other, such as Muon and the AdamW beside it.

    Its groups are theirs, the same objects in their order, so that lr schedulers act on them. What is done to its
    groups during a step, as `AlphaDecay` does, reaches them too. It is saved as one optimizer over all parameters.

    Example:
        >>> from specdiag.optim import optimizers
        >>> optimizer = Combined(optimizers("muon", model))
        >>> scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # both go into a Trainer
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Combine optimizers, which are stepped through this one from now on.

        Args:
            optimizers: of different parameters.

        Raises:
            ValueError: there is none, or two hold one parameter.
        """
        self.optimizers = list(optimizers)
        super().__init__([group for held in self.optimizers for group in held.param_groups], {})
        self._gather_state()

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Takes the groups that the optimizers have when they are combined.

        Raises:
            UsageError: it comes later, and nothing says whose it is.
        """
        if not any(param_group is group for held in self.optimizers for group in held.param_groups):
            raise UsageError("a Combined does not know whose a new group is: add it to an optimizer, then combine them")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a step of each, over the groups that this optimizer has now. The closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        owners = self.owners()
        filled = [group for group in self.param_groups if group["params"]]
        for held in self.optimizers:
            resting = held.param_groups
            held.param_groups = [group for group in filled if owners[group["params"][0]] is held]
            try:
                held.step()
            finally:
                held.param_groups = resting
        self._gather_state()
        return loss

    def state_dict(self) -> StateDict:
        """As torch's, of all: parameters are numbered through.

        Raises:
            UsageError: a sharded optimizer holds a part of its state only.
        """
        for held in self.optimizers:
            held.state_dict()  # for what it may raise
        self._gather_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """As torch's; each optimizer loads its part."""
        super().load_state_dict(state_dict)
        groups, state, taken = self.param_groups, self.state, 0
        for held in self.optimizers:
            own = groups[taken : taken + len(held.param_groups)]
            taken += len(own)
            numbers = {p: number for number, p in enumerate(p for group in own for p in group["params"])}
            held.load_state_dict(
                {
                    "state": {number: state[p] for p, number in numbers.items() if p in state},
                    "param_groups": [g | {"params": [numbers[p] for p in g["params"]]} for g in own],
                }
            )
        self.param_groups = [group for held in self.optimizers for group in held.param_groups]
        self._gather_state()

    def owners(self) -> dict[torch.Tensor, Optimizer]:
        """Which optimizer has each parameter."""
        return {p: held for held in self.optimizers for group in held.param_groups for p in group["params"]}

    def __reduce__(self) -> tuple[type[Combined], tuple[list[Optimizer]]]:
        return type(self), (self.optimizers,)

    def _gather_state(self) -> None:
        states = {p: state for held in self.optimizers for p, state in held.state.items()}
        self.state = defaultdict(dict, states)


def stepped_by(optimizer: Optimizer, group: ParamGroup) -> Optimizer:
    """Whose step it is that reads a group, or a part of one: of a `Combined` one of its own, else itself."""
    if not isinstance(optimizer, Combined) or not group["params"]:
        return optimizer
    return optimizer.owners()[group["params"][0]]
