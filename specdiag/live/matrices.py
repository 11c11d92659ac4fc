"""Weight matrices of a model in memory: their names and roles, and how each is cut from its Parameter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from specdiag.architecture.roles import modules
from specdiag.architecture.split import Slicer
from specdiag.live.parameters import live_config, live_parameters, untied
from specdiag.records import ModuleRole, Role, key, stored_role


@dataclass(frozen=True, slots=True)
class LiveMatrix:
    """A matrix cut from a live Parameter.

    Attributes:
        name: of the Parameter, without wrappers' prefixes.
        module: role, family, layer and part.
        parameter: that the matrix is cut from.
        slicer: cuts the matrix from it.
        is_first: True where `name` is the first, or the only, name of the Parameter.
        is_output: True where the Parameter gives the logits: a head, or an embedding that is tied to one.
    """

    name: str
    module: ModuleRole
    parameter: nn.Parameter
    slicer: Slicer
    is_first: bool
    is_output: bool

    @property
    def key(self) -> str:
        """The unique name: the Parameter's, with the part in brackets where there is one."""
        return key(self.name, self.module.part)

    @property
    def role(self) -> Role:
        """The role of the matrix in its network."""
        return stored_role(self.module.role)

    @property
    def cost(self) -> float:
        """Floating-point operations of its spectrum, up to a factor."""
        n_slices, *sides = self.slicer.shape
        n, m = sorted(sides)
        return n_slices * n * n * (m + n)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """Cut the matrix from a tensor of the Parameter's shape.

        Args:
            whole: the Parameter, its gradient, or a copy.

        Returns:
            Shape [s, rows, cols], detached; a view where the layout allows.
        """
        whole = whole.detach()
        return self.slicer.cut(whole if self.slicer.index is None else whole[self.slicer.index])


def live_matrices(model: nn.Module) -> list[LiveMatrix]:
    """List the weight matrices of a model in memory.

    Args:
        model: wrappers (DDP, torch.compile) are looked through.

    Returns:
        Matrices in definition order. A tied Parameter comes under each of its names; `is_first` marks one of them.
    """
    parameters = live_parameters(model)
    first = set(untied(parameters))
    parts = modules({name: tuple(p.shape) for name, p in parameters.items()}, live_config(model)).parts
    outputs = {parameters[name] for name, own in parts.items() if any(part.module.role == "head" for part in own)}
    return [
        LiveMatrix(name, part.module, parameter, part.slicer, name in first, parameter in outputs)
        for name, parameter in parameters.items()
        for part in parts.get(name, ())
    ]
