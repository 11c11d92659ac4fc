"""Questions to an optimizer that steps of its ghosts answer: how each Parameter decays, and may groups be divided.

A law is found where steps with the optimizer's own decay and steps without it, beside which the law is applied, give
the same weights: four steps from random weights and gradients, at another learning rate and another decay than those
from which the law's factor was taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from specdiag.live.ghost import Ghost
from specdiag.live.ghost_runs import STEPS, Setting, accepted_settings, agree, probing, run
from specdiag.live.laws import Kind, Law

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


def find_laws(optimizer: Optimizer) -> Answer:
    """Find the law of decay of each Parameter of an optimizer.

    Args:
        optimizer: a torch optimizer. Nothing of it changes.

    Raises:
        UsageError: its step fails on small tensors.
    """
    with probing(optimizer):
        first, second = accepted_settings(optimizer)
        start = Ghost(optimizer)
        begin = [p.detach() for p in start.parameters]
        has_lr = [group.get("lr") is not None for group in start.optimizer.param_groups for _ in group["params"]]
        plain, decayed = run(optimizer, first, 1, decays=False).weights, run(optimizer, first, 1).weights
        base, wanted = run(optimizer, second, STEPS, decays=False), run(optimizer, second, STEPS).weights
        reached = [not torch.equal(*pair) for pair in zip(base.weights, wanted, strict=True)]
        found: dict[int, Law] = {}
        for kind, scale, by_lr in _CANDIDATES:
            laws: list[Law | None] = [None] * len(begin)
            for i, is_reached in enumerate(reached):
                if is_reached and i not in found and (has_lr[i] or not by_lr):
                    known = None if scale is None else Law(kind, scale, by_lr)
                    laws[i] = known or _fit(kind, by_lr, begin[i], plain[i], decayed[i], first)
            if any(laws):
                tried = run(optimizer, second, STEPS, decays=False, laws=laws).weights
                found |= {i: law for i, law in enumerate(laws) if law is not None and agree(tried[i], wanted[i])}
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
    with probing(optimizer):
        _, setting = accepted_settings(optimizer)
        whole = run(optimizer, setting, STEPS)
        try:
            parts = run(optimizer, setting, STEPS, divided=(1, 2))
        except Exception:  # noqa: BLE001 - optimizers raise all sorts of errors where they meet other groups
            return False
    return whole.state == parts.state and all(map(agree, whole.weights, parts.weights))


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
