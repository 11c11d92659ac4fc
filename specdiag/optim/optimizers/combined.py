"""Several optimizers as one torch Optimizer, as a Trainer, a scheduler and a checkpoint expect."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import StateDict

from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup


class Combined(Optimizer):
    """Steps several optimizers, one after the other, such as Muon and AdamW for the other parameters.

    Its groups are those of the optimizers, the same objects in the same order, so that lr schedulers act on them. It is
    saved as one optimizer over all parameters.

    Example:
        >>> from specdiag.optim import optimizers
        >>> optimizer = Combined(optimizers("muon", model))
        >>> scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # both go into a Trainer
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        """Combine optimizers, which are stepped through this one from now on.

        Args:
            optimizers: without common parameters.

        Raises:
            ValueError: there is no optimizer, or two have a parameter in common.
        """
        self.optimizers = list(optimizers)
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})
        self._gather_state()

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Take a group of one of the optimizers, while they are combined.

        Raises:
            UsageError: the group comes later, so that it is unknown which optimizer should step it.
        """
        if not any(param_group is group for optimizer in self.optimizers for group in optimizer.param_groups):
            raise UsageError("a Combined does not know whose a new group is: add it to an optimizer, then combine them")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a step of each. The closure is called once, before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        self._gather_state()
        return loss

    def state_dict(self) -> StateDict:
        """Return the state of all optimizers, in torch's form of one optimizer over all parameters.

        Raises:
            UsageError: a sharded optimizer holds a part of its state only.
        """
        for optimizer in self.optimizers:
            optimizer.state_dict()  # raises where the state is incomplete
        self._gather_state()
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state of all optimizers; each loads its part."""
        super().load_state_dict(state_dict)
        groups, state, first = self.param_groups, self.state, 0
        for optimizer in self.optimizers:
            own = groups[first : first + len(optimizer.param_groups)]
            first += len(own)
            numbers = {p: number for number, p in enumerate(p for group in own for p in group["params"])}
            optimizer.load_state_dict(
                {
                    "state": {number: state[p] for p, number in numbers.items() if p in state},
                    "param_groups": [g | {"params": [numbers[p] for p in g["params"]]} for g in own],
                }
            )
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        self._gather_state()

    def owners(self) -> dict[torch.Tensor, Optimizer]:
        """Return the optimizer of each parameter."""
        return {
            p: optimizer for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
        }

    def __reduce__(self) -> tuple[type[Combined], tuple[list[Optimizer]]]:
        return type(self), (self.optimizers,)

    def _gather_state(self) -> None:
        states = {p: state for optimizer in self.optimizers for p, state in optimizer.state.items()}
        self.state = defaultdict(dict, states)


def stepped_by(optimizer: Optimizer, group: ParamGroup) -> Optimizer:
    """Return the optimizer whose step reads a group.

    Args:
        optimizer: a torch optimizer.
        group: of its groups, or a part of one.

    Returns:
        The part of a `Combined` that has the parameters of the group; any other optimizer itself.
    """
    if not isinstance(optimizer, Combined) or not group["params"]:
        return optimizer
    return optimizer.owners()[group["params"][0]]
