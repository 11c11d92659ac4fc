"""Matrices that take part in a run: those of the Parameters that an optimizer holds, cut from them as they are now."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from msgspec.structs import asdict
from torch import nn

from specdiag.decay.targets import DecayTarget, decay_targets
from specdiag.errors import UsageError
from specdiag.live.matrices import LiveMatrix, live_matrices
from specdiag.live.parameters import live_parameters, untied
from specdiag.records import ModuleRecord
from specdiag.spectra.live_alpha import TYPES


def taking_part(
    model: nn.Module,
    held: set[torch.Tensor],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    roles: Sequence[str],
) -> tuple[list[DecayTarget], list[LiveMatrix]]:
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
    adapter = next((name for name, p in untied(live_parameters(model)).items() if p in held and "lora_" in name), None)
    if adapter is not None:
        raise UsageError(f"the optimizer trains adapters ({adapter}): an exponent of a low-rank factor says nothing")
    matrices = [m for m in live_matrices(model) if m.is_first and m.parameter in held and m.parameter.dtype in TYPES]
    if not matrices:
        raise UsageError(
            f"the optimizer holds no weight matrix of this {type(model).__name__}: build it over model.parameters() "
            "(frozen weights have no decay to balance)"
        )
    chosen = decay_targets([_record(m) for m in matrices], include=include, exclude=exclude, roles=roles)
    keys = {record.key for participant in chosen for record in participant.records}
    return chosen, [matrix for matrix in matrices if matrix.key in keys]


def _record(matrix: LiveMatrix) -> ModuleRecord:
    n_slices, rows, cols = matrix.slicer.shape
    return ModuleRecord(
        **asdict(matrix.module),
        name=matrix.name,
        rows=rows,
        cols=cols,
        n_slices=n_slices,
        storage_dtype=TYPES[matrix.parameter.dtype],
        status="ok",
        tail="hill",
        method="gram",
        compute_dtype="float32",
    )
