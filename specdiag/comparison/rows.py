"""A comparison as flat rows, for csv and data frames. What has no counterpart is a row too."""

from __future__ import annotations

from typing import Any

from specdiag.comparison.records import METRICS, Comparison, Delta, ModuleChange, Reshaped, Unmatched

_DELTA = tuple(name for name in Delta.__struct_fields__ if name not in ("singular_values", "subspaces"))
_SUBSPACES = ("left_angle", "right_angle", "gap")
_IDENTITY = ("match", "name", "name_a", "name_b", "role", "family", "layer", "component", "shape_a", "shape_b")

COLUMNS: tuple[str, ...] = (
    *_IDENTITY,
    "reason",
    "unchanged",
    *(f"{metric}_{side}" for metric in METRICS for side in ("a", "b", "change")),
    *(f"delta_{name}" for name in _DELTA),
    "delta_energy_8",
    *_SUBSPACES,
)
"""Of a row; the same in csv and parquet."""

SHORT: tuple[str, ...] = (
    "match", "name", "role", "alpha_a", "alpha_b", "alpha_change", "alpha_square_a", "alpha_square_b",
    "alpha_square_change", "stable_rank_change", "delta_relative_change", "delta_cosine", "delta_stable_rank",
    "left_angle", "right_angle", "reason",
)  # fmt: skip
"""The columns of markdown."""


def rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The matched matrices, then the reshaped, then what only one side has."""
    return [
        *(_matched(module) for module in comparison.modules),
        *(_reshaped(found) for found in comparison.reshaped),
        *(_unmatched(found, side) for side in ("a", "b") for found in getattr(comparison, f"only_in_{side}")),
    ]


def _matched(module: ModuleChange) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {
        "match": "both",
        "name": module.name,
        "name_a": module.a.key,
        "name_b": module.b.key,
        "shape_a": _shape((module.a.rows, module.a.cols)),
        "shape_b": _shape((module.b.rows, module.b.cols)),
    }
    row |= {name: getattr(module, name) for name in ("role", "family", "layer", "component", "unchanged")}
    for metric in METRICS:
        row[f"{metric}_a"], row[f"{metric}_b"] = getattr(module.a, metric), getattr(module.b, metric)
        row[f"{metric}_change"] = module.change.get(metric)
    if module.delta is not None:
        row |= {f"delta_{name}": getattr(module.delta, name) for name in _DELTA}
        row["delta_energy_8"] = module.delta.energy(8)
        if module.delta.subspaces is not None:
            row |= {name: getattr(module.delta.subspaces, name) for name in _SUBSPACES}
    return row


def _reshaped(found: Reshaped) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "match": "reshaped",
        "name": found.name,
        "role": found.role,
        "shape_a": _shape(found.shape_a),
        "shape_b": _shape(found.shape_b),
    }


def _unmatched(found: Unmatched, side: str) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "match": f"only in {side}",
        "name": found.name,
        f"name_{side}": found.name,
        f"shape_{side}": _shape(found.shape),
        "role": found.role,
        "reason": found.reason,
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
