"""Rich tables of records and summaries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from specdiag.records import Contrast, ModuleRecord, RoleSummary, Summary

EXTREMES = 10
ALL_UP_TO = 60
DEPTH_BINS = 6


def number(value: float | int | None, digits: int = 2) -> str:
    """A number for a person; a dot where there is none."""
    if value is None:
        return "·"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def role_table(roles: Sequence[RoleSummary]) -> Table:
    """Medians per role, each exponent beside what random matrices of its shapes score."""
    columns = (
        "n", "alpha", "range", "null", "rho", "alpha_square", "range", "null", "pl_alpha", "stable rank",
    )  # fmt: skip
    table = _table("Roles (medians; null: random matrices of the same shapes)", ("family", "role"), columns)
    previous = None
    for r in roles:
        table.add_row(
            r.family if r.family != previous else "",
            r.role,
            str(r.n),
            number(r.alpha),
            _range(r.alpha_min, r.alpha_max),
            number(r.alpha_null),
            number(r.rho),
            number(r.alpha_square),
            _range(r.alpha_square_min, r.alpha_square_max),
            number(r.alpha_square_null),
            number(r.pl_alpha),
            number(r.stable_rank, 1),
        )
        previous = r.family
    return table


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """MLP minus attention per layer, beside the same for random matrices."""
    columns = ("layers > 0", "difference", "95 %", "p", "p Holm", "AUC", "random: layers > 0", "difference", "p")
    table = _table("MLP - attention per layer (positive: attention heavier-tailed)", ("basis", "attention"), columns)
    for c in contrasts:
        table.add_row(
            c.basis,
            c.attention,
            f"{c.n_positive}/{c.n_layers}",
            f"{c.difference:+.3f}",
            f"{c.low:+.3f} .. {c.high:+.3f}",
            f"{c.p:.2g}",
            f"{c.p_holm:.2g}",
            f"{c.auc:.2f}",
            f"{c.random_n_positive}/{c.n_layers}",
            f"{c.random_difference:+.3f}",
            f"{c.random_p:.2g}",
        )
    return table


def record_table(records: Iterable[ModuleRecord], title: str) -> Table:
    """One row a matrix."""
    columns = (
        "shape", "alpha", "± arith.", "null", "rho", "z", "ks", ".25/.5/.75", "alpha_square", "pl_alpha", "stable rank",
        "sigma_max",
    )  # fmt: skip
    table = _table(title, ("matrix", "role"), columns)
    for r in records:
        table.add_row(
            Text(r.key),
            r.role,
            f"{r.rows}x{r.cols}" + (f" x{r.n_slices}" if r.n_slices > 1 else ""),
            number(r.alpha, 3) if r.status == "ok" else r.status,
            "·" if r.alpha_error is None else f"{r.alpha_error:.0e}",
            number(r.alpha_null, 3),
            number(r.rho),
            number(r.z, 0),
            number(r.ks),
            "/".join(number(v) for v in (r.alpha_25, r.alpha_50, r.alpha_75)),
            number(r.alpha_square, 3),
            number(r.pl_alpha),
            number(r.stable_rank, 1),
            number(r.spectral_norm),
        )
    return table


def depth_table(records: Sequence[ModuleRecord], basis: str) -> Table | None:
    """Median exponent by role and depth, the layers in at most six bins; None where no matrix has a layer."""
    placed = [r for r in records if r.layer is not None and r.family in ("attention", "mlp")]
    if not placed:
        return None
    last = max(r.layer or 0 for r in placed)
    width = -(-(last + 1) // DEPTH_BINS)
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for r in placed:
        value: float | None = getattr(r, basis)
        if value is not None:
            cells[r.role, (r.layer or 0) // width].append(value)
    bins = range(last // width + 1)
    heads = [f"{b * width}" if width == 1 else f"{b * width}-{min(last, (b + 1) * width - 1)}" for b in bins]
    table = _table(f"{basis} by role and layer (medians)", ("role",), heads)
    for role in dict.fromkeys(r.role for r in placed):
        table.add_row(role, *(number(_median(cells[role, b])) for b in bins))
    return table


def extremes(records: Sequence[ModuleRecord], basis: str) -> list[ModuleRecord]:
    """The ten matrices with the smallest and the ten with the largest exponent."""
    ranked = sorted((r for r in records if getattr(r, basis) is not None), key=lambda r: getattr(r, basis))
    return ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]


def balance(summary: Summary) -> str:
    """The balance score in a line."""
    return (
        f"Balance of alpha_square over attention and MLP: standard deviation {number(summary.balance_sd, 3)}, "
        f"range {number(summary.balance_range, 3)}."
    )


def rows_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Any rows as they are."""
    names = list(rows[0]) if rows else []
    table = _table(title, names[:1], names[1:])
    for row in rows:
        table.add_row(*(Text("" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v)) for v in row.values()))
    return table


def _median(values: Sequence[float]) -> float | None:
    from statistics import median

    return median(values) if values else None


def _range(low: float | None, high: float | None) -> str:
    return "·" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
