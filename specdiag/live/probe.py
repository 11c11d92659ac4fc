"""Questions to an optimizer that steps of its ghosts answer: how each Parameter decays, and may groups be divided.

A law is found where steps with the optimizer's own decay and steps without it, beside which the law is applied, give
the same weights: four steps from random weights and gradients, at another learning rate and another decay than those
from which the law's factor was taken.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.live.division import Division
from specdiag.live.ghost import Ghost, seed_like, undisturbed
from specdiag.live.laws import Application, Kind, Law, version
from specdiag.live.optimizers import refusal
from specdiag.live.parameters import ParamGroup

Setting = tuple[float, float]
"""Learning rate and decay."""
_SETTINGS: tuple[tuple[Setting, Setting], ...] = (((0.01, 0.5), (0.004, 0.8)), ((0.01, 0.005), (0.004, 0.008)))
"""The setting from which a law's factor is taken, and that at which it must hold; smaller ones where a step refuses."""
_STEPS = 4
_TOLERANCE = 1e-6
"""Difference over the largest weight that rounding explains."""
_FLIPPED = 1e-3
"""Share of weights that may differ by more: rounding decides whether an update points towards 0."""
_FAR = 1e-2
"""Relative distance from the median of a law's factor beyond which a weight does not follow the law."""
_SNAP = 1e-5
"""A factor as near to 1 is 1."""
_LARGEST_SCALE = 1e3
_CANDIDATES: tuple[tuple[Kind, float | None, bool], ...] = (
    ("gradient", 1.0, False), ("before", 1.0, True), ("gradient", -1.0, False), ("before", None, True),
    ("cautious", None, True), ("after", None, True), ("before", None, False), ("cautious", None, False),
    ("after", None, False),
)  # fmt: skip
"""Kind, factor where it is known, and True where the learning rate multiplies; the usual ones first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Conduct of an optimizer in its steps.

    Attributes:
        laws: the law of each Parameter that has one.
        undecayed: Parameters that the decay of their group does not reach.
        moved: False where the steps do not reach the Parameters of the groups at all.
        counted: True where torch counts the writes to every Parameter.
    """

    laws: dict[torch.Tensor, Law]
    undecayed: frozenset[torch.Tensor]
    moved: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class _Run:
    """Stand-ins after some steps of a ghost, in the order of its Parameters."""

    weights: list[torch.Tensor]
    counted: bool
    state: Sequence[Mapping[str, object]]


def find_laws(optimizer: Optimizer) -> Answer:
    """Find the law of decay of each Parameter of an optimizer.

    Args:
        optimizer: a torch optimizer. Nothing of it changes.

    Raises:
        UsageError: its step fails on small tensors.
    """
    with _probing(optimizer):
        first, second = _accepted(optimizer)
        start = Ghost(optimizer)
        begin = [p.detach() for p in start.parameters]
        has_lr = [group.get("lr") is not None for group in start.optimizer.param_groups for _ in group["params"]]
        plain, decayed = _run(optimizer, first, 1, decays=False).weights, _run(optimizer, first, 1).weights
        base, wanted = _run(optimizer, second, _STEPS, decays=False), _run(optimizer, second, _STEPS).weights
        reached = [not torch.equal(*pair) for pair in zip(base.weights, wanted, strict=True)]
        found: dict[int, Law] = {}
        for kind, scale, by_lr in _CANDIDATES:
            laws: list[Law | None] = [None] * len(begin)
            for i, is_reached in enumerate(reached):
                if is_reached and i not in found and (has_lr[i] or not by_lr):
                    known = None if scale is None else Law(kind, scale, by_lr)
                    laws[i] = known or _fit(kind, by_lr, begin[i], plain[i], decayed[i], first)
            if any(laws):
                tried = _run(optimizer, second, _STEPS, decays=False, laws=laws).weights
                found |= {i: law for i, law in enumerate(laws) if law is not None and _agree(tried[i], wanted[i])}
    return Answer(
        laws={p: found[i] for p, i in start.numbers.items() if i in found},
        undecayed=frozenset(p for p, i in start.numbers.items() if not reached[i]),
        moved=not all(torch.equal(*pair) for pair in zip(begin, base.weights, strict=True)),
        counted=base.counted,
    )


def is_separable(optimizer: Optimizer) -> bool:
    """Tell whether the groups of an optimizer may be divided for some of its steps.

    Args:
        optimizer: a torch optimizer. Nothing of it changes.

    Raises:
        UsageError: its step fails on small tensors.
    """
    with _probing(optimizer):
        _, setting = _accepted(optimizer)
        whole = _run(optimizer, setting, _STEPS)
        try:
            parts = _run(optimizer, setting, _STEPS, divided=(1, 2))
        except Exception:  # noqa: BLE001 - optimizers raise all sorts of errors where they meet other groups
            return False
    return whole.state == parts.state and all(map(_agree, whole.weights, parts.weights))


@contextmanager
def _probing(optimizer: Optimizer) -> Generator[None]:
    try:
        with undisturbed(optimizer), torch.no_grad():
            yield
    except Exception as error:
        said = f"{type(error).__name__}: {error!s:.200}"
        raise UsageError(
            refusal(optimizer, f"cannot be asked how it decays: its step fails on small random tensors ({said})")
        ) from error


def _accepted(optimizer: Optimizer) -> tuple[Setting, Setting]:
    """Choose settings that the optimizer's step takes: a decay towards a target norm refuses large ones."""
    *larger, least = _SETTINGS
    for settings in larger:
        try:
            for setting in settings:
                _run(optimizer, setting, 1)
        except UsageError:
            continue
        return settings
    return least


def _run(
    optimizer: Optimizer,
    setting: Setting,
    steps: int,
    *,
    decays: bool = True,
    laws: Sequence[Law | None] = (),
    divided: Sequence[int] = (),
) -> _Run:
    """Make steps of a new ghost.

    Args:
        optimizer: the original.
        setting: learning rate and decay.
        steps: number of steps.
        decays: False sets the decay of the groups to 0.
        laws: that are applied beside each step, by number of the Parameter.
        divided: steps in which each Parameter has a group of its own.
    """
    ghost, gradients, (lr, decay) = Ghost(optimizer), torch.Generator().manual_seed(1), setting
    ghost.settle(lr, decay if decays else 0.0)
    seed_like(ghost.parameters)
    counted = True
    for step in range(steps):
        for p in ghost.parameters:
            p.grad = torch.randn(p.shape, generator=gradients).to(p)
        applied = [
            Application(law, p, law.amount(lr, decay), ghost.optimizer)
            for law, p in zip(laws, ghost.parameters)  # noqa: B905 - there may be no laws
            if law is not None
        ]
        versions = [version(p) for p in ghost.parameters]
        division = Division(ghost.optimizer, _alone) if step in divided else None
        _step(ghost.optimizer)
        if division is not None:
            division.join(ghost.optimizer)
        counted &= all(before != version(p) for before, p in zip(versions, ghost.parameters, strict=True))
        for application in applied:
            application.finish()
    states: list[dict[str, object]] = [
        {name: getattr(value, "shape", type(value)) for name, value in ghost.optimizer.state[p].items()}
        for p in ghost.parameters
    ]
    return _Run([p.detach().clone() for p in ghost.parameters], counted, states)


def _step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except TypeError:  # one that cannot do without a closure
        optimizer.step(lambda: 0.0)


def _alone(group: ParamGroup) -> list[ParamGroup]:
    return [{**group, "params": [parameter]} for parameter in group["params"]]


def _fit(
    kind: Kind, by_lr: bool, begin: torch.Tensor, plain: torch.Tensor, decayed: torch.Tensor, setting: Setting
) -> Law | None:
    """Take the factor of a law from one step with decay and one without it, from the same weights.

    Rounding may have turned a few weights' updates towards 0: what is far from the median is left out.
    """
    lr, decay = setting
    direction = {"before": begin, "after": plain, "cautious": begin * ((begin - plain) * begin >= 0)}[kind].double()
    clear = direction.abs() > direction.abs().max() / 10
    direction, difference = direction[clear], (plain.double() - decayed.double())[clear]
    if not direction.numel():
        return None
    ratios = difference / direction
    typical = (ratios - ratios.median()).abs() <= _FAR * ratios.median().abs()
    scale = float((difference * direction)[typical].sum() / direction[typical].square().sum()) / decay
    scale = scale / lr if by_lr else scale
    if not 1 / _LARGEST_SCALE < scale < _LARGEST_SCALE:
        return None
    return Law(kind, 1.0 if abs(scale - 1) < _SNAP else scale, by_lr)


def _agree(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Tell whether two results are the same but for rounding errors."""
    off = (first - second).abs() > _TOLERANCE * second.abs().max()
    return bool(second.isfinite().all()) and float(off.float().mean()) <= _FLIPPED
