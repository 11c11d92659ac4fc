"""Table of the groups of an optimizer and their layers, to print before training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.live.parameters import ParamGroup, live_parameters, untied
from specdiag.optim.optimizers.combined import stepped_by

_COLUMNS = ("optimizer", "place", "lmo", "radius", "lr", "decay", "target C^2", "tensors", "values", "such as")
_TEXT = ("optimizer", "place", "lmo", "such as")


def layout(model: nn.Module, optimizers: Optimizer | Sequence[Optimizer]) -> str:
    """Make a table with a row for each group, without empty columns.

    Args:
        model: names the Parameters.
        optimizers: one or several, for this model.

    Returns:
        The table as text. Trained parameters outside all groups come last.
    """
    several = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items() if p.requires_grad}
    rows = [_row(optimizer, group, names) for optimizer in several for group in optimizer.param_groups]
    grouped = {p for optimizer in several for group in optimizer.param_groups for p in group["params"]}
    ungrouped = [p for p in names if p not in grouped]
    if ungrouped:
        rows.append({"optimizer": "none"} | _size(ungrouped, names))
    columns = [column for column in _COLUMNS if any(row.get(column) for row in rows)]
    table = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _TEXT else cell.rjust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _row(optimizer: Optimizer, group: ParamGroup, names: dict[torch.Tensor, str]) -> dict[str, str]:
    target = group.get("target_norm")
    return {
        "optimizer": type(stepped_by(optimizer, group)).__name__,
        "place": str(group.get("place", "")),
        "lmo": str(group.get("lmo", "")) + (" (transposed)" if group.get("transpose") else ""),
        "radius": f"{group['radius']:g}" if "radius" in group else "",
        "lr": f"{float(group['lr']):.4g}",
        "decay": f"{float(group['weight_decay']):.4g}" if "weight_decay" in group else "",
        "target C^2": "" if target is None else f"{target:.4g}",
    } | _size(group["params"], names)


def _size(parameters: Sequence[torch.Tensor], names: dict[torch.Tensor, str]) -> dict[str, str]:
    first = next((names[p] for p in parameters if p in names), "")
    return {
        "tensors": str(len(parameters)),
        "values": str(sum(p.numel() for p in parameters)),
        "such as": first,
    }
