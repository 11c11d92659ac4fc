"""What takes part in a run: the matrices of the Parameters that an optimizer holds, cut from them as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from specdiag.architecture.roles import modules
from specdiag.architecture.split import Slicer
from specdiag.decay.participants import Participant, participants
from specdiag.errors import UsageError
from specdiag.live.parameters import live_config, live_parameters, untied
from specdiag.records import ModuleRecord, ModuleRole
from specdiag.spectra.live_alpha import TYPES


@dataclass(frozen=True, slots=True)
class LiveMatrix:
    """One matrix of a live Parameter: what it is, and how it is cut."""

    record: ModuleRecord
    parameter: nn.Parameter
    slicer: Slicer

    @property
    def cost(self) -> float:
        """Floating-point operations of its spectrum, up to a factor."""
        n, m = sorted((self.record.rows, self.record.cols))
        return self.record.n_slices * n * n * (m + n)

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """The matrix, shape [s, rows, cols], from the whole Parameter: a view where its layout allows."""
        whole = whole.detach()
        return self.slicer.cut(whole if self.slicer.index is None else whole[self.slicer.index])


def taking_part(
    model: nn.Module,
    held: set[torch.Tensor],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    roles: Sequence[str],
) -> tuple[list[Participant], list[LiveMatrix]]:
    """The Parameters that get a ratio, with the matrices behind it; both in definition order.

    Args:
        model: the live model.
        held: the Parameters of its optimizers; others take no part.
        include: as for `recommend`.
        exclude: as for `recommend`.
        roles: as for `recommend`.

    Raises:
        UsageError: a pattern or role matches nothing, nothing takes part, or the Parameters are not whole matrices.
    """
    if any("_fsdp_wrapped_module" in name or name.endswith("_flat_param") for name, _ in model.named_parameters()):
        raise UsageError("FullyShardedDataParallel shows pieces of weights only; wrap with fully_shard (FSDP2) instead")
    parameters = untied(live_parameters(model))
    adapter = next((name for name, p in parameters.items() if p in held and "lora_" in name), None)
    if adapter is not None:
        raise UsageError(f"the optimizer trains adapters ({adapter}): an exponent of a low-rank factor says nothing")
    found = modules({name: tuple(p.shape) for name, p in parameters.items()}, live_config(model))
    matrices = [
        LiveMatrix(_record(name, part.module, part.slicer, parameter), parameter, part.slicer)
        for name, parameter in parameters.items()
        if parameter in held and parameter.dtype in TYPES
        for part in found.parts.get(name, ())
    ]
    if not matrices:
        raise UsageError(
            f"the optimizer holds no weight matrix of this {type(model).__name__}: build it over model.parameters() "
            "(frozen weights have no decay to balance)"
        )
    chosen = participants([m.record for m in matrices], include=include, exclude=exclude, roles=roles)
    keys = {record.key for participant in chosen for record in participant.records}
    return chosen, [matrix for matrix in matrices if matrix.record.key in keys]


def _record(name: str, module: ModuleRole, slicer: Slicer, parameter: nn.Parameter) -> ModuleRecord:
    n_slices, rows, cols = slicer.shape
    return ModuleRecord(
        name=name,
        part=module.part,
        role=module.role,
        family=module.family,
        layer=module.layer,
        component=module.component,
        cross_attention=module.cross_attention,
        recognised=module.recognised,
        rows=rows,
        cols=cols,
        n_slices=n_slices,
        storage_dtype=TYPES[parameter.dtype],
        status="ok",
        tail="hill",
        method="gram",
        compute_dtype="float32",
    )
