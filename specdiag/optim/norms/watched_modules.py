"""Selection of the matrices that a norm watch looks at; embeddings and heads may be among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import nn

from specdiag.errors import UsageError
from specdiag.live.matrices import LiveMatrix, live_matrices
from specdiag.records import Role
from specdiag.text.globs import chosen


def watched_matrices(
    model: nn.Module,
    optimized: set[torch.Tensor],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    roles: Sequence[str] = (),
) -> list[LiveMatrix]:
    """Select the matrices of a model whose norms are watched.

    Args:
        model: the live model.
        optimized: the Parameters of its optimizers; only their matrices are selected.
        include: globs on names; only these.
        exclude: globs on names; not these.
        roles: only matrices of these roles.

    Returns:
        Matrices in definition order, each under the first name of its Parameter.

    Raises:
        UsageError: a role is unknown, nothing is left, or the Parameters are shards of FSDP1.
    """
    unknown = [role for role in roles if role not in get_args(Role)]
    if unknown:
        raise UsageError(f"unknown role '{unknown[0]}'; choose from {', '.join(get_args(Role))}")
    if any("_fsdp_wrapped_module" in name for name, _ in model.named_parameters()):
        raise UsageError(
            "a norm watch cannot tell the matrices in flat shards of FullyShardedDataParallel (FSDP1): shard the model "
            "with fully_shard (FSDP2)"
        )
    selected = [
        matrix
        for matrix in live_matrices(model)
        if matrix.is_first
        and matrix.parameter in optimized
        and chosen([matrix.name], include, exclude)
        and (not roles or matrix.role in roles)
    ]
    if not selected:
        what = "matches include, exclude and roles" if include or exclude or roles else "is held by the optimizer"
        raise UsageError(f"no weight matrix of this {type(model).__name__} {what}")
    return selected
