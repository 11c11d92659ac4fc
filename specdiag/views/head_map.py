"""Heads by layer: the rows of QK and OV of a report arranged for a picture or a page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport

METRICS = ("rho", "stable_rank")
"""Metrics of heads, of which the first is drawn that any head has: short heads have no exponent."""
MEANINGS = {
    "rho": "lower: heavier tail, fewer directions",
    "alpha": "lower: heavier tail",
    "stable_rank": "lower: fewer directions",
}
"""Direction of a scale."""


class HeadPanel(NamedTuple):
    """A role in a piece of the model.

    Attributes:
        title: role and piece.
        layers: from the first to the last.
        n_heads: number of query heads.
        group: query heads that share keys and values; None where that is not known.
        rows: by head and layer.
    """

    title: str
    layers: range
    n_heads: int
    group: int | None
    rows: Mapping[tuple[int, int], ModuleRecord]


def head_panels(report: SpectralReport) -> list[HeadPanel]:
    """Arrange the heads of a report, QK before OV in each piece; empty without rows of the function.

    Args:
        report: of any model.
    """
    pieces: dict[tuple[str | None, bool], dict[str, dict[tuple[int, int], ModuleRecord]]] = {}
    for row in report.function:
        if row.head is not None and row.layer is not None:
            roles = pieces.setdefault((row.component, row.cross_attention), {"qk": {}, "ov": {}})
            roles[row.role][row.head, row.layer] = row
    panels: list[HeadPanel] = []
    for (component, is_cross), roles in pieces.items():
        words = [component, "cross-attention" if is_cross else None]
        for role, rows in roles.items():
            if not rows:
                continue
            layers = [layer for _, layer in rows]
            n_heads = 1 + max(head for head, _ in rows)
            title = " ".join(filter(None, (role.upper(), *words)))
            group = _group(report.records, component, n_heads, is_cross=is_cross)
            panels.append(HeadPanel(title, range(min(layers), max(layers) + 1), n_heads, group, rows))
    return panels


def best_metric(panels: Sequence[HeadPanel]) -> str:
    """Choose the metric that is drawn where none was asked for.

    Args:
        panels: at least one.
    """
    rows = [row for panel in panels for row in panel.rows.values()]
    return next((m for m in METRICS if any(getattr(row, m) is not None for row in rows)), METRICS[-1])


def head_null(panels: Sequence[HeadPanel], metric: str) -> float | None:
    """Give the value that products of random matrices have in a metric; None where it differs or is not known.

    Args:
        panels: at least one.
        metric: a column.
    """
    if metric == "rho":
        return 1.0
    nulls = {row.alpha_null for panel in panels for row in panel.rows.values() if row.alpha is not None}
    return nulls.pop() if metric == "alpha" and len(nulls) == 1 else None


def _group(records: Sequence[ModuleRecord], component: str | None, n_heads: int, *, is_cross: bool) -> int | None:
    """Count the query heads of a group by the shapes of q and k."""
    sizes: dict[tuple[str, int | None], set[int]] = defaultdict(set)
    for r in records:
        if r.role in ("q", "k") and r.component == component and r.cross_attention == is_cross:
            sizes[r.role, r.layer].add(r.rows * r.cols)
    for (role, layer), of_q in sizes.items():
        of_k = sizes.get(("k", layer), set())
        if role == "q" and len(of_q) == len(of_k) == 1:
            group, rest = divmod(max(of_q), max(of_k))
            return None if rest or not group or n_heads % group else group
    return None
