"""A ghost of an optimizer: its class, attributes and groups, over small random tensors that it may step at will."""

from __future__ import annotations

import math
import types
from collections import OrderedDict, defaultdict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,  # pyright: ignore[reportPrivateUsage]
    _global_optimizer_pre_hooks,  # pyright: ignore[reportPrivateUsage]
)

_VALUES = 4096
"""Least number of values of a stand-in; 8-bit optimizers quantise the state of no smaller tensor."""
_MOST_VALUES = 1 << 18
_OF_A_KIND = 2
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (_global_optimizer_pre_hooks, _global_optimizer_post_hooks)
_OWN = ("step", "state", "param_groups", "_specdiag_multipliers")
"""Attributes that a ghost does not take over; schedulers put a `step` there."""


def small_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return a small shape with the proportions of a large one, on which the step of a matrix may depend.

    Args:
        shape: of a Parameter.

    Returns:
        As many axes. A matrix has the same rows : cols wherever their greatest common divisor allows; of a stack of
        matrices two are left, and the kernel of a convolution keeps its size.
    """
    match tuple(shape):
        case (rows, cols):
            return _small_matrix(rows, cols)
        case (count, rows, cols):
            return (min(count, 2), *_small_matrix(rows, cols))
        case (rows, cols, *kernel):
            return (*_small_matrix(rows, cols), *kernel)
        case shorter:
            return (_VALUES,) * len(shorter)


def _small_matrix(rows: int, cols: int) -> tuple[int, int]:
    divisor = math.gcd(rows, cols)
    if not divisor:
        return rows, cols
    rows, cols = rows // divisor, cols // divisor
    if rows * cols > _MOST_VALUES:
        shrink = math.sqrt(rows * cols / _VALUES)
        rows, cols = max(1, round(rows / shrink)), max(1, round(cols / shrink))
    times = math.ceil(math.sqrt(_VALUES / (rows * cols)))
    return rows * times, cols * times


class Ghost:
    """An optimizer of the same class and settings. Its steps change nothing of the original.

    Attributes:
        optimizer: the ghost itself.
        parameters: small stand-ins for Parameters, in the order of the groups.
        numbers: index of its stand-in, by Parameter of the original. Of equal ones in a group the first has its own,
            and the others share one: two of a kind show what is kept for a group as a whole.
    """

    def __init__(self, original: Optimizer) -> None:
        """Make a ghost in the state of a new optimizer; its stand-ins have the same values each time.

        Args:
            original: is left as it is.
        """
        generator = torch.Generator().manual_seed(0)
        ghost = object.__new__(type(original))
        ghost.param_groups, ghost.state = [], defaultdict(dict)
        self.optimizer = ghost
        self.parameters: list[nn.Parameter] = []
        self.numbers: dict[torch.Tensor, int] = {}
        members = [self._members(group["params"], generator) for group in original.param_groups]
        copies: dict[int, object] = {id(original): ghost, id(original.state): ghost.state}
        copies |= {id(parameter): self.parameters[i] for parameter, i in self.numbers.items()}
        copies[id(original.param_groups)] = ghost.param_groups
        for group, own in zip(original.param_groups, members, strict=True):
            made = copies[id(group)] = {**group, "params": own}
            made.pop("param_names", None)
            ghost.param_groups.append(made)
        for made in ghost.param_groups:
            made.update({key: _isolated(value, copies) for key, value in made.items() if key != "params"})
        for name, value in vars(original).items():
            if name not in _OWN:
                vars(ghost)[name] = OrderedDict() if name.endswith("_hooks") else _isolated(value, copies)

    def _members(self, parameters: Sequence[torch.Tensor], generator: torch.Generator) -> list[nn.Parameter]:
        """Make the stand-ins of a group."""
        kinds: dict[object, list[int]] = defaultdict(list)
        first = len(self.parameters)
        for parameter in parameters:
            marks = {k: v for k, v in vars(parameter).items() if isinstance(v, (bool, int, float, str))}
            shape = small_shape(parameter.shape)
            kind = kinds[shape, repr(sorted(marks.items()))]
            if len(kind) < _OF_A_KIND:
                kind.append(len(self.parameters))
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                made = nn.Parameter(torch.randn(shape, generator=generator).to(parameter.device, dtype))
                vars(made).update(marks)
                self.parameters.append(made)
            self.numbers[parameter] = kind[-1]
        return self.parameters[first:]

    def settle(self, lr: float, decay: float) -> None:
        """Set the learning rate and the decay of the groups that have one.

        Args:
            lr: for every group with a learning rate.
            decay: for every group.
        """
        for group in self.optimizer.param_groups:
            rate = group.get("lr")
            if rate is not None:
                group["lr"] = torch.full_like(rate, lr) if isinstance(rate, torch.Tensor) else lr
            if "weight_decay" in group:
                group["weight_decay"] = decay


def seed_like(parameters: Sequence[torch.Tensor]) -> None:
    """Seed the generators from which a step that draws random numbers takes them, so that runs are comparable.

    Args:
        parameters: on whose devices it draws.
    """
    torch.default_generator.manual_seed(0)
    for device in {p.device for p in parameters if p.device.type == "cuda"}:
        torch.cuda.default_generators[device.index].manual_seed(0)


@contextmanager
def undisturbed(original: Optimizer) -> Generator[None]:
    """Hide gradients of an optimizer and hooks of all, keep the random state, and compile nothing, within the block.

    A step that reached the original's Parameters by some other way than its groups would find nothing to do.

    Args:
        original: whose ghosts make steps within the block.
    """
    parameters: list[torch.Tensor] = [p for group in original.param_groups for p in group["params"]]
    gradients = [p.grad for p in parameters]
    devices = {p.device for p in parameters if p.device.type == "cuda"}
    hooks = [dict(registered) for registered in _GLOBAL_HOOKS]
    with torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
        for parameter in parameters:
            parameter.grad = None
        for registered in _GLOBAL_HOOKS:
            registered.clear()
        try:
            yield
        finally:
            for registered, held in zip(_GLOBAL_HOOKS, hooks, strict=True):
                registered.update(held)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


def _isolated(value: Any, copies: dict[int, object]) -> Any:
    """Copy containers and small tensors, and put a few zeros in the place of a large tensor.

    An object with a copy is replaced by it, also where a method is bound to it. All other objects are shared.
    """
    if id(value) in copies:
        return copies[id(value)]
    kind, made = type(value), value
    if isinstance(value, torch.Tensor):
        small = value.detach() if value.numel() <= _VALUES else torch.zeros(2, dtype=value.dtype, device=value.device)
        made = small.clone()
    elif kind is types.MethodType and id(value.__self__) in copies:
        made = types.MethodType(value.__func__, copies[id(value.__self__)])
    elif kind in (dict, OrderedDict, defaultdict):
        made = copies[id(value)] = value.copy()
        made.clear()
        made.update({copies.get(id(key), key): _isolated(inner, copies) for key, inner in value.items()})
    elif kind in (list, tuple, set):
        made = kind(_isolated(inner, copies) for inner in value)
    copies[id(value)] = made
    return made
