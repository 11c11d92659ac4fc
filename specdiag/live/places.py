"""Where each live parameter stands in the network: input, hidden, output or bias; what optimizers decide by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]

from specdiag.errors import UsageError
from specdiag.live.matrices import live_matrices
from specdiag.live.parameters import live_parameters, untied
from specdiag.text.globs import check_globs, fits

Place = Literal["input", "hidden", "output", "bias"]


@dataclass(frozen=True, slots=True)
class PlacedParameter:
    """A trained parameter and its position in the network.

    Attributes:
        place: `input` is an embedding table or the projection of patches, `output` the head, also where it is tied
            to the embedding, `bias` all that is no weight matrix, norms among it, and `hidden` the rest.
        table: it holds the rows of an nn.Embedding, tied or not.
        transpose: stored [in, out].
        kernel: of a convolution.
    """

    name: str
    parameter: nn.Parameter
    place: Place
    table: bool
    transpose: bool
    kernel: bool

    @property
    def decayed(self) -> bool:
        """True where decay is usual: for matrices that are no embedding, not even a tied one."""
        return self.place == "hidden" or (self.place == "output" and not self.table)


def placed(model: nn.Module, overrides: Mapping[str, Place] | None = None) -> list[PlacedParameter]:
    """Find the place of every trained parameter.

    The output is what is named like a head; where nothing is, the last Linear outside all blocks.

    Args:
        model: wrappers (DDP, torch.compile) are looked through.
        overrides: places by globs on names. They replace what was found.

    Returns:
        Every trained parameter once, under its first name, in definition order.

    Raises:
        UsageError: an override matches nothing or names no place, or nothing is trained.
    """
    matrices = live_matrices(model)
    names = {matrix.name for matrix in matrices}
    tables: set[torch.Tensor] = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    turned = tables | {m.weight for m in model.modules() if type(m).__name__ == "Conv1D"}
    kernels = {m.weight for m in model.modules() if isinstance(m, _ConvNd)}
    inputs = tables | {matrix.parameter for matrix in matrices if matrix.role == "embed"}
    outputs: set[torch.Tensor] = {matrix.parameter for matrix in matrices if matrix.is_output}
    if not outputs:
        linears: set[torch.Tensor] = {m.weight for m in model.modules() if isinstance(m, nn.Linear)}
        outside = [m.parameter for m in matrices if m.module.layer is None and m.parameter in linears]
        outputs = set(outside[-1:])

    def place(name: str, parameter: torch.Tensor) -> Place:
        if parameter in outputs:
            return "output"
        return "bias" if name not in names else "input" if parameter in inputs else "hidden"

    parameters = [
        PlacedParameter(name, p, place(name, p), p in tables, p in turned and p not in outputs, p in kernels)
        for name, p in untied(live_parameters(model)).items()
        if p.requires_grad
    ]
    if not parameters:
        raise UsageError(f"this {type(model).__name__} has no parameter that is trained")
    return _overridden(parameters, overrides or {})


def _overridden(parameters: list[PlacedParameter], overrides: Mapping[str, Place]) -> list[PlacedParameter]:
    for pattern, place in overrides.items():
        if place not in get_args(Place):
            raise UsageError(f"'{pattern}' is given no place but '{place}'; choose from {', '.join(get_args(Place))}")
        check_globs("overrides", [pattern], [(each.name,) for each in parameters], "parameters")
        parameters = [replace(each, place=place) if fits([each.name], [pattern]) else each for each in parameters]
    return parameters
