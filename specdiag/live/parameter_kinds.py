"""Kind of each trained parameter: input, hidden, output or bias. Optimizers choose decay and step size by it."""

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
from specdiag.text import checks
from specdiag.text.globs import check_globs, fits

ParameterKind = Literal["input", "hidden", "output", "bias"]
"""`input` is an embedding table or the projection of patches, `output` the head, also where it is tied to the
embedding, `bias` all that is no weight matrix, norms among it, and `hidden` the rest."""


@dataclass(frozen=True, slots=True)
class TrainedParameter:
    """A trained parameter, with its kind.

    Attributes:
        name: its first name in the model, without wrappers' prefixes.
        parameter: the Parameter itself.
        kind: see `ParameterKind`.
        table: True where it holds the rows of an nn.Embedding, tied or not.
        transpose: True where it is stored [in, out].
        kernel: True for the kernel of a convolution.
    """

    name: str
    parameter: nn.Parameter
    kind: ParameterKind
    table: bool
    transpose: bool
    kernel: bool

    @property
    def decayed(self) -> bool:
        """True where decay is usual: for matrices that are no embedding, not even a tied one."""
        return self.kind == "hidden" or (self.kind == "output" and not self.table)


def trained_parameters(
    model: nn.Module, overrides: Mapping[str, ParameterKind] | None = None
) -> list[TrainedParameter]:
    """List the trained parameters of a model, each with its kind.

    The output is what is named like a head. Where nothing is, it is the last Linear outside all blocks.

    Args:
        model: wrappers (DDP, torch.compile) are looked through.
        overrides: kinds by globs on names. They replace the kinds that were found; a later glob wins.

    Returns:
        Every trained parameter once, under its first name, in definition order.

    Raises:
        UsageError: `model` is no module, an override matches nothing or names no kind, or nothing is trained.
    """
    checks.instance("model", model, nn.Module, "such as transformers makes")
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

    def kind_of(name: str, parameter: torch.Tensor) -> ParameterKind:
        if parameter in outputs:
            return "output"
        return "bias" if name not in names else "input" if parameter in inputs else "hidden"

    parameters = [
        TrainedParameter(name, p, kind_of(name, p), p in tables, p in turned and p not in outputs, p in kernels)
        for name, p in untied(live_parameters(model)).items()
        if p.requires_grad
    ]
    if not parameters:
        raise UsageError(f"this {type(model).__name__} has no parameter that is trained")
    return _override(parameters, overrides or {})


def _override(parameters: list[TrainedParameter], overrides: Mapping[str, ParameterKind]) -> list[TrainedParameter]:
    for pattern, kind in overrides.items():
        if kind not in get_args(ParameterKind):
            kinds = ", ".join(get_args(ParameterKind))
            raise UsageError(f"'{pattern}' is given no place but '{kind}'; choose from {kinds}")
        check_globs("overrides", [pattern], [(each.name,) for each in parameters], "parameters")
        parameters = [replace(each, kind=kind) if fits([each.name], [pattern]) else each for each in parameters]
    return parameters
