"""The saved state_dict of an Adam or AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from specdiag.errors import SourceError, UsageError
from specdiag.live.parameters import ParamGroup
from specdiag.train.checkpoints.unread_optimizer import refuse_unread
from specdiag.train.foreign.opening import SavedDict
from specdiag.train.foreign.plausible import check_options, check_step

MOMENTS = ("exp_avg", "exp_avg_sq")
_KEPT = {"step", *MOMENTS}
_UNSUPPORTED = ("amsgrad", "maximize")
_RATES = ("lr", "initial_lr", "betas", "eps")
"""Options that must be equal in all groups for a Trainer to continue."""


@dataclass(frozen=True)
class SavedOptimizer:
    """A state_dict of Adam or AdamW.

    Attributes:
        label: name of the file, for messages.
        groups: parameter groups as they were saved.
        state: state by parameter index.
    """

    label: str
    groups: list[ParamGroup]
    state: Mapping[int, SavedDict]

    @property
    def indices(self) -> list[list[int]]:
        """Parameter indices of each group that has parameters."""
        return [list(group["params"]) for group in self.groups if group["params"]]

    @property
    def names(self) -> list[str] | None:
        """Names of all parameters, which torch saves from 2.6 on if the optimizer got them; else None."""
        groups = [group for group in self.groups if group["params"]]
        if not all(isinstance(group.get("param_names"), list) for group in groups):
            return None
        return [str(name) for group in groups for name in group["param_names"]]

    def shape(self, index: int) -> tuple[int, ...] | None:
        """Return the shape of a parameter's moments by its index; None if it has none."""
        moment = self.state.get(index, {}).get(MOMENTS[1])
        return tuple(moment.shape) if isinstance(moment, torch.Tensor) else None

    def common(self, key: str) -> object:
        """Return the value that all groups have for an option; None if no group has the option.

        Raises:
            UsageError: the values differ.
        """
        values = {_plain(group[key]) for group in self.groups if key in group and group["params"]}
        if len(values) > 1:
            listed = ", ".join(str(value) for value in sorted(values, key=str)[:4])
            raise UsageError(f"{self.label} has groups of different {key} ({listed}), and a Trainer has one: {_SCRIPT}")
        return next(iter(values), None)

    @property
    def decays(self) -> set[float]:
        """Distinct weight decays of the groups, without 0."""
        values = {float(_plain(group.get("weight_decay", 0.0))) for group in self.groups if group["params"]}
        return {decay for decay in values if decay}

    @property
    def kind(self) -> str | None:
        """`adamw` or `adam`; None if the groups do not say whether decay is decoupled."""
        decoupled = self.common("decoupled_weight_decay")
        return None if decoupled is None else "adamw" if decoupled else "adam"

    @property
    def step(self) -> int:
        """Step counter of all parameters.

        Raises:
            SourceError: the counters differ.
        """
        counters = {check_step(self.label, state.get("step", 0)) for state in self.state.values()}
        if len(counters) != 1:
            raise SourceError(
                f"{self.label} has parameters at step {min(counters)} and at step {max(counters)}: it is damaged, or "
                "some were trained for a part of the run; go on in its own script"
            )
        return counters.pop()


_SCRIPT = "go on in its own script, with specdiag.optim.AlphaDecay or DecayPlan.apply"


def saved_optimizer(content: object, label: str, elsewhere: str | None = None) -> SavedOptimizer:
    """Check that content is the state_dict of Adam or AdamW.

    Args:
        content: content of the file where the optimizer belongs.
        label: name of the file, for messages.
        elsewhere: where the state of an optimizer lies that is not read; None where there is none.

    Raises:
        UsageError: there is no optimizer, it is another one, or groups differ in lr, betas or eps.
        SourceError: the content is no state_dict of an optimizer, or has options that none has.
    """
    if not content and elsewhere is not None:
        refuse_unread(label, elsewhere)
    if not content:
        raise UsageError(
            f"{label} holds weights and no optimizer, so there is no run to resume: fresh_optimizer=True starts one "
            "from these weights"
        )
    groups, state = (content.get(key) if isinstance(content, Mapping) else None for key in ("param_groups", "state"))
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        raise SourceError(f"{label} holds no state_dict of an optimizer where one belongs")
    groups = cast("list[ParamGroup]", groups)
    if not all(isinstance(moments, Mapping) for moments in cast("Mapping[int, object]", state).values()):
        raise SourceError(f"{label} has something else than moments for a parameter: it is damaged")
    state = cast("Mapping[int, SavedDict]", state)
    if not all(isinstance(group.get("params"), list) for group in groups):
        raise SourceError(f"{label} has parameter groups without parameters: it is no state_dict of an optimizer")
    if not state:
        raise UsageError(
            f"{label} has an optimizer without moments: no step was done, or they were not saved; "
            "fresh_optimizer=True starts one"
        )
    keys = {str(key) for moments in state.values() for key in moments}
    if keys >= set(MOMENTS) and "step" not in keys:
        raise SourceError(f"{label} has moments without a step, which Adam needs to correct their bias: it is damaged")
    check_options(label, groups)
    if not keys >= _KEPT or any(group.get(key) for group in groups for key in _UNSUPPORTED):
        unexpected = ", ".join(sorted(keys - _KEPT) or [key for key in _UNSUPPORTED if any(g.get(key) for g in groups)])
        raise UsageError(f"{label} has the state of another optimizer than Adam and AdamW ({unexpected}): {_SCRIPT}")
    if keys > _KEPT:
        raise UsageError(f"{label} keeps {', '.join(sorted(keys - _KEPT))} beside Adam's moments: {_SCRIPT}")
    saved = SavedOptimizer(label, groups, state)
    for key in _RATES:
        saved.common(key)
    return saved


def _plain(value: Any) -> Any:
    """Return a plain value: the lr of a capturable optimizer is a tensor of one element."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(item) for item in cast("list[Any]", value))
    return value.item() if isinstance(value, torch.Tensor) else value
