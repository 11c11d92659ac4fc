"""What a norm watch looks at: every matrix of the Parameters that optimizers hold, embeddings and heads among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import nn

from specdiag.architecture.roles import modules
from specdiag.architecture.split import Slicer
from specdiag.errors import UsageError
from specdiag.live.parameters import live_config, live_parameters, untied
from specdiag.records import Family, Role, key
from specdiag.text.globs import chosen


@dataclass(frozen=True, slots=True)
class WatchedMatrix:
    """One matrix of a live Parameter, and how it is cut from it."""

    key: str
    role: Role
    family: Family
    layer: int | None
    component: str | None
    parameter: nn.Parameter
    slicer: Slicer
    is_output: bool
    """Whether the logits come from it: a head, or an embedding that is tied to one."""

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The matrix, shape [s, rows, cols], from a tensor of the Parameter's shape: a view where its layout allows."""
        return self.slicer.cut(whole if self.slicer.index is None else whole[self.slicer.index])


def watched(
    model: nn.Module,
    held: set[torch.Tensor],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    roles: Sequence[str] = (),
) -> list[WatchedMatrix]:
    """The matrices of the model that the optimizers hold, in definition order.

    Args:
        model: the live model.
        held: the Parameters of its optimizers.
        include: globs on names; only these.
        exclude: globs on names; not these.
        roles: only these.

    Raises:
        UsageError: a role is unknown, nothing is left, or the Parameters are shards.
    """
    unknown = [role for role in roles if role not in get_args(Role)]
    if unknown:
        raise UsageError(f"unknown role '{unknown[0]}'; choose from {', '.join(get_args(Role))}")
    parameters = live_parameters(model)
    if any(hasattr(p, "full_tensor") or "_fsdp_wrapped_module" in name for name, p in parameters.items()):
        raise UsageError("a norm watch needs whole Parameters on each rank, as DDP has them; this model is sharded")
    parts = modules({name: tuple(p.shape) for name, p in parameters.items()}, live_config(model)).parts
    outputs = {parameters[n] for n, found in parts.items() if any(part.module.role == "head" for part in found)}
    found = [
        WatchedMatrix(
            key(name, part.module.part), part.module.role, part.module.family, part.module.layer,
            part.module.component, parameter, part.slicer, parameter in outputs,
        )
        for name, parameter in untied(parameters).items()
        if parameter in held and chosen([name], include, exclude)
        for part in parts.get(name, ())
        if not roles or part.module.role in roles
    ]  # fmt: skip
    if not found:
        what = "matches include, exclude and roles" if include or exclude or roles else "is held by the optimizer"
        raise UsageError(f"no weight matrix of this {type(model).__name__} {what}")
    return found
