"""Steps of an optimizer's ghosts on random weights and gradients, from which a probe learns how it behaves."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.division import Division
from specdiag.live.ghost import Ghost, seed_like, undisturbed
from specdiag.live.laws import Application, Law, version
from specdiag.live.optimizers import Changed, refusal
from specdiag.live.parameters import ParamGroup
from specdiag.live.scaled_update import ScaledUpdate

Setting = tuple[float, float]
"""Learning rate and decay."""
Rate = Callable[[int, int], float]
"""(step, number of the Parameter) -> factor on the learning rate."""
_SETTINGS: tuple[tuple[Setting, Setting], ...] = (((0.01, 0.5), (0.004, 0.8)), ((0.01, 0.005), (0.004, 0.008)))
"""The setting from which a law's factor is taken, and that at which it must hold; smaller ones where a step refuses."""
STEPS = 4
_TOLERANCE = 1e-6
"""Difference over the largest weight that rounding explains."""
_FLIPPED = 1e-3
"""Share of weights that may differ by more: rounding decides whether an update points towards 0."""


@dataclass(frozen=True, slots=True)
class Run:
    """Stand-ins after some steps of a ghost, in the order of its Parameters.

    Attributes:
        weights: values of each.
        counted: True where torch counted a write to each Parameter in each step.
        state: names and shapes of what the optimizer keeps for each.
    """

    weights: list[torch.Tensor]
    counted: bool
    state: Sequence[Mapping[str, object]]


@contextmanager
def probing(optimizer: Optimizer, changed: Changed = "decay") -> Generator[None]:
    """Make steps of ghosts possible within the block.

    Args:
        optimizer: the original. Nothing of it changes.
        changed: setting that is asked about, for messages.

    Raises:
        UsageError: its step fails on small tensors.
    """
    try:
        with undisturbed(optimizer), torch.no_grad():
            yield
    except Exception as error:
        said = f"{type(error).__name__}: {error!s:.200}"
        raise UsageError(
            refusal(
                optimizer, f"cannot be asked how it steps: its step fails on small random tensors ({said})", changed
            )
        ) from error


def accepted_settings(optimizer: Optimizer) -> tuple[Setting, Setting]:
    """Choose settings that the optimizer's step takes: a decay towards a target norm refuses large ones.

    Args:
        optimizer: the original, within `probing`.
    """
    *larger, least = _SETTINGS
    for settings in larger:
        try:
            for setting in settings:
                run(optimizer, setting, 1)
        except UsageError:
            continue
        return settings
    return least


def run(
    optimizer: Optimizer,
    setting: Setting,
    steps: int,
    *,
    decays: bool = True,
    laws: Sequence[Law | None] = (),
    divided: Sequence[int] = (),
    rate: Rate | None = None,
    scaled: bool = False,
) -> Run:
    """Make steps of a new ghost.

    Args:
        optimizer: the original, within `probing`.
        setting: learning rate and decay.
        steps: number of steps.
        decays: False sets the decay of the groups to 0.
        laws: that are applied beside each step, by number of the Parameter.
        divided: steps in which each Parameter has a group of its own.
        rate: factors on the learning rate. A step that is not divided has one for all Parameters.
        scaled: True scales the updates by `rate`, beside the step, instead of the learning rate.
    """
    ghost, gradients, (lr, decay) = Ghost(optimizer), torch.Generator().manual_seed(1), setting
    ghost.settle(lr, decay if decays else 0.0)
    seed_like(ghost.parameters)
    numbers = {id(p): i for i, p in enumerate(ghost.parameters)}
    counted = True
    for step in range(steps):
        rates = [1.0 if rate is None else rate(step, i) for i in range(len(ghost.parameters))]
        for p in ghost.parameters:
            p.grad = torch.randn(p.shape, generator=gradients).to(p)
        applied = [
            Application(law, p, law.amount(lr, decay), ghost.optimizer)
            for law, p in zip(laws, ghost.parameters)  # noqa: B905 - there may be no laws
            if law is not None
        ]
        versions = [version(p) for p in ghost.parameters]
        updates = [ScaledUpdate(p, r) for p, r in zip(ghost.parameters, rates, strict=True)] if scaled else []
        division = None
        if step in divided:
            division = Division(ghost.optimizer, _divider(rates, numbers), "lr" if rate else "weight_decay")
        elif rate is not None and not scaled:
            ghost.settle(lr * rates[0], decay if decays else 0.0)
        _step(ghost.optimizer)
        if division is not None:
            division.join(ghost.optimizer)
        counted &= all(before != version(p) for before, p in zip(versions, ghost.parameters, strict=True))
        for application in applied:
            application.finish()
        for update in updates:
            update.finish()
    states: list[dict[str, object]] = [
        {name: getattr(value, "shape", type(value)) for name, value in ghost.optimizer.state[p].items()}
        for p in ghost.parameters
    ]
    return Run([p.detach().clone() for p in ghost.parameters], counted, states)


def agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two results are the same but for rounding errors.

    Args:
        first: weights after some steps.
        second: weights after the same steps in another way.
    """
    off = (first - second).abs() > _TOLERANCE * second.abs().max()
    return bool(second.isfinite().all()) and float(off.float().mean()) <= _FLIPPED


def _step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except TypeError:  # one that cannot do without a closure
        optimizer.step(lambda: 0.0)


def _divider(rates: Sequence[float], numbers: Mapping[int, int]) -> Callable[[ParamGroup], list[ParamGroup]]:
    """Divide a group into one for each Parameter, at its own rate."""

    def divide(group: ParamGroup) -> list[ParamGroup]:
        factors = [rates[numbers[id(parameter)]] for parameter in group["params"]]
        return [
            {**group, "params": [parameter], **({} if factor == 1 else {"lr": group["lr"] * factor})}
            for parameter, factor in zip(group["params"], factors, strict=True)
        ]

    return divide
