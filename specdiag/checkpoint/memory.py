"""Checkpoints of what is in memory: a state dict or a model, under the names that it would be saved with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from specdiag.checkpoint.adapters.adapter import read_adapter
from specdiag.checkpoint.adapters.config import AdapterConfig
from specdiag.checkpoint.adapters.defects import find_defects
from specdiag.checkpoint.adapters.rows import update_rows
from specdiag.checkpoint.divided import gathered
from specdiag.checkpoint.inventory import Sorting, sort_tensors
from specdiag.checkpoint.long_names import leave_out_long
from specdiag.checkpoint.quantised.dequantise import dequantise
from specdiag.checkpoint.state_dict import plain_tensors
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.checkpoint.wrappers import unwrap
from specdiag.files import Table
from specdiag.records import Source


def from_state_dict(
    tensors: Mapping[str, torch.Tensor],
    *,
    config: Mapping[str, object] | None = None,
    role_map: Path | None = None,
    experts: int | None = None,
    seed: int = 0,
    location: str = "state_dict",
    adapters: Mapping[str | None, AdapterConfig] | None = None,
) -> Checkpoint:
    """Make a checkpoint of tensors in memory, on any device. Values are copied when a matrix is loaded.

    Tensors that are divided among processes (DTensor) are put together now, each at one of them: collective.

    Args:
        tensors: names and tensors; entries that are no tensors are left out.
        config: what config.json would hold, for models whose roles need it.
        role_map: TOML file with roles for names that the built-in rules do not know.
        experts: analyse this many experts of each layer, drawn at random; None for all.
        seed: of that draw.
        location: name of the checkpoint in messages and reports.
        adapters: the settings of the adapters in it, by their names; without them their scales are not known.

    Returns:
        The checkpoint; of an adapter that of its updates.

    Raises:
        UsageError: the role map or the number of experts is wrong.
        SourceError: two names become one, all tensors are an optimizer's, they are two models of one structure, or an
            adapter is not understood.

    Example:
        >>> checkpoint = from_state_dict({"layers.0.self_attn.q_proj.weight": torch.eye(8)})
        >>> [(matrix.module.role, matrix.shape) for matrix in checkpoint.matrices]
        [('q', (8, 8))]
    """
    # A state dict may hold anything at run time: modules add their extra state to it.
    named_tensors, left_notes = plain_tensors(gathered(cast("Mapping[object, object]", tensors)), location)
    stored, notes = unwrap(leave_out_long(list_tensors(named_tensors, location)), location)
    settings = dict(config or {})
    stored, dequantised = dequantise(stored, settings)
    source = Source(kind="memory", location=location)
    notes = (*left_notes, *notes, *dequantised)
    options = Sorting(role_map, experts, seed)
    adapter = read_adapter(stored, adapters or {}, location)
    if adapter is not None:
        return replace(update_rows(adapter, source, settings, options, notes), defects=find_defects(adapter, None))
    return sort_tensors(stored, source, settings, options, notes)


def from_model(
    model: nn.Module, *, role_map: Path | None = None, experts: int | None = None, seed: int = 0
) -> Checkpoint:
    """Make a checkpoint of a live model, with the names of its `state_dict()`.

    Its values are read when a matrix is loaded: load after an optimizer step and you see that step, but where
    the model is divided among processes (FSDP2, tensor parallelism).

    Args:
        model: any module. `model.config` serves as config.json where it has a `to_dict`, and `model.peft_config` as the
            settings of its adapters.
        role_map: as for `from_state_dict`.
        experts: as for `from_state_dict`.
        seed: as for `from_state_dict`.

    Returns:
        The checkpoint, named after the model's class.

    Raises:
        UsageError: as for `from_state_dict`.
        SourceError: as for `from_state_dict`.
    """
    adapters = getattr(model, "peft_config", None)
    configs = cast("Table", adapters) if isinstance(adapters, dict) else {}
    return from_state_dict(
        model.state_dict(keep_vars=True),
        config=_settings(getattr(model, "config", None)),
        role_map=role_map,
        experts=experts,
        seed=seed,
        location=type(model).__name__,
        adapters={name: AdapterConfig(_settings(config) or {}) for name, config in configs.items()},
    )


def _settings(config: object) -> Table | None:
    to_dict = getattr(config, "to_dict", None)
    return cast("Table", to_dict()) if callable(to_dict) else None
