"""Selection of the Parameters that get a ratio during a run, with their matrices."""

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

NO_EXPONENT = (
    "low-rank factors B and A: (cB, A/c) is the same update for every c, so that a factor's own exponent means "
    "nothing, and decay pulls the weights to the base model's, not to 0"
)
"""Reason why decay by exponents of an adapter is refused."""


def select_participants(
    model: nn.Module,
    optimized: set[torch.Tensor],
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    roles: Sequence[str],
) -> tuple[list[DecayTarget], list[LiveMatrix]]:
    """Select the Parameters that get a ratio.

    Args:
        model: the live model.
        optimized: the Parameters of its optimizers; others take no part.
        include: globs on names; only these.
        exclude: globs on names; not these.
        roles: roles that take part, instead of the projections of attention and MLP.

    Returns:
        The Parameters, and their matrices; both in definition order.

    Raises:
        UsageError: a glob or role matches nothing, nothing takes part, or the Parameters are pieces of weights or
            adapters.
    """
    if any("_fsdp_wrapped_module" in name or name.endswith("_flat_param") for name, _ in model.named_parameters()):
        raise UsageError("FullyShardedDataParallel shows pieces of weights only; wrap with fully_shard (FSDP2) instead")
    adapter = next(
        (name for name, p in untied(live_parameters(model)).items() if p in optimized and "lora_" in name), None
    )
    if adapter is not None:
        raise UsageError(f"the optimizer trains adapters ({adapter}), and rules by exponents are not for {NO_EXPONENT}")
    matrices = [
        m for m in live_matrices(model) if m.is_first and m.parameter in optimized and m.parameter.dtype in TYPES
    ]
    if not matrices:
        raise UsageError(
            f"the optimizer holds no weight matrix of this {type(model).__name__}: build it over model.parameters() "
            "(frozen weights have no decay to balance)"
        )
    targets = decay_targets([_record(m) for m in matrices], include=include, exclude=exclude, roles=roles)
    keys = {record.key for target in targets for record in target.records}
    return targets, [matrix for matrix in matrices if matrix.key in keys]


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
