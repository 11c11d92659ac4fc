"""Checkpoints of what is in memory: a state dict or a model, under the names that it would be saved with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.sorting import sort_tensors
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.checkpoint.wrappers import unwrap
from specdiag.records import Source


def from_state_dict(
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, Any] | None = None,
    role_map: Path | None = None,
    experts: int | None = None,
    seed: int = 0,
    location: str = "state_dict",
) -> Checkpoint:
    """A checkpoint of tensors in memory, on any device. Values are copied when a matrix is loaded.

    Args:
        tensors: names and tensors; entries that are no tensors are left out.
        config: what config.json would hold, for models whose roles need it.
        role_map: TOML file with roles for names that the built-in rules do not know.
        experts: analyse this many experts of each layer, drawn at random; None for all.
        seed: of that draw.
        location: what to call it.

    Raises:
        SourceError: two names become one without their wrapper prefixes.

    Example:
        >>> checkpoint = from_state_dict({"layers.0.self_attn.q_proj.weight": torch.eye(8)})
        >>> [(matrix.module.role, matrix.shape) for matrix in checkpoint.matrices]
        [('q', (8, 8))]
    """
    # A state dict may hold anything at run time: modules add their extra state to it.
    held: dict[str, Any] = dict(tensors)
    stored = list_tensors({name: value for name, value in held.items() if isinstance(value, torch.Tensor)}, location)
    stored, notes = unwrap(stored, location)
    settings = dict(config or {})
    stored, said = dequantise(stored, settings)
    source = Source(kind="memory", location=location)
    return sort_tensors(stored, source, settings, role_map=role_map, experts=experts, seed=seed, notes=(*notes, *said))


def from_model(
    model: nn.Module, *, role_map: Path | None = None, experts: int | None = None, seed: int = 0
) -> Checkpoint:
    """A checkpoint of a live model, with the names of its `state_dict()`.

    Its values are read when a matrix is loaded: load after an optimizer step and you see that step.

    Args:
        model: any module; `model.config`, where it has a `to_dict`, serves as config.json.
        role_map: as for `from_state_dict`.
        experts: as for `from_state_dict`.
        seed: as for `from_state_dict`.
    """
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return from_state_dict(
        model.state_dict(),
        config=cast("dict[str, Any]", to_dict()) if callable(to_dict) else None,
        role_map=role_map,
        experts=experts,
        seed=seed,
        location=type(model).__name__,
    )
