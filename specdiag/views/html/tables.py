"""The tables of the page: heads, and cells as text beside what they sort by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from specdiag.decay.plan import DecayPlan, PlanEntry
from specdiag.records import Contrast, ModuleRecord, RoleSummary, Skipped
from specdiag.views.cells import NOTHING, number
from specdiag.views.figures.selection import role_label

_RHO = "(alpha - 1)/(null - 1): 1 like noise, below 1 heavier; not comparable across shapes"


class Cell(NamedTuple):
    """One cell."""

    text: str
    order: float | None = None
    """What it sorts by, where the text does not say."""
    link: str | None = None


class Column(NamedTuple):
    """A column: its head, its cell for a row, whether it holds numbers, and what it means."""

    head: str
    cell: Callable[[Any], Cell | str]
    numeric: bool = True
    about: str = ""


class Table(NamedTuple):
    """Heads and rows, ready for the template."""

    columns: tuple[Column, ...]
    rows: list[list[Cell]]


def role_table(roles: Sequence[RoleSummary]) -> Table:
    """Medians of each role, each exponent beside what random matrices of its shapes score."""
    return _table(
        roles,
        Column("family", lambda r: r.family, numeric=False),
        Column("role", lambda r: r.role, numeric=False),
        Column("n", lambda r: str(r.n) if r.n == r.n_alpha else f"{r.n_alpha} of {r.n}", about="with an alpha"),
        _field("alpha", "alpha", about="median exponent of the upper eigenvalues; smaller: heavier tail"),
        Column("min–max", lambda r: _range(r.alpha_min, r.alpha_max)),
        _field("null", "alpha_null", about="alpha of random matrices of the same shapes"),
        _field("rho", "rho", about=_RHO),
        _field("alpha_square", "alpha_square", about="the shape-free twin of alpha"),
        Column("min–max", lambda r: _range(r.alpha_square_min, r.alpha_square_max)),
        _field("null", "alpha_square_null", about="alpha_square of random matrices"),
        _field("pl_alpha", "pl_alpha", about="KS-optimal power law: another estimator, not to be mixed with alpha"),
        _field("stable rank", "stable_rank", 1),
    )


def contrast_table(contrasts: Sequence[Contrast]) -> Table:
    """MLP minus attention per layer, beside the same for random matrices."""
    return _table(
        contrasts,
        Column("basis", lambda c: c.basis, numeric=False),
        Column("attention", lambda c: c.attention, numeric=False),
        Column("layers > 0", lambda c: f"{c.n_positive}/{c.n_layers}"),
        Column("difference", lambda c: f"{c.difference:+.3f}", about="median over layers"),
        Column("95 %", lambda c: f"{c.low:+.2f} .. {c.high:+.2f}", about="bootstrap over layers"),
        Column("p", lambda c: f"{c.p:.2g}", about="two-sided sign-flip test over layers"),
        Column("p Holm", lambda c: f"{c.p_holm:.2g}"),
        Column("AUC", lambda c: f"{c.auc:.2f}", about="share of pairs in which the MLP has the larger exponent"),
        Column("random > 0", lambda c: _of(c.random_n_positive, c.n_layers), about="random matrices of these shapes"),
        Column("random diff.", lambda c: NOTHING if c.random_difference is None else f"{c.random_difference:+.3f}"),
        Column("random p", lambda c: NOTHING if c.random_p is None else f"{c.random_p:.2g}"),
    )


def record_table(records: Sequence[ModuleRecord], links: Mapping[str, str]) -> Table:
    """One row a matrix."""
    return _table(
        records,
        Column("matrix", lambda r: Cell(r.key, link=links[r.key]), numeric=False),
        Column("role", role_label, numeric=False),
        Column("layer", lambda r: number(r.layer)),
        Column("shape", _shape, about="rows x columns; sorts by their product"),
        Column("alpha", _alpha, about="exponent of the upper eigenvalues, or why there is none; smaller: heavier tail"),
        _field("null", "alpha_null", 3, about="alpha of a random matrix of this shape"),
        _field("rho", "rho", about=_RHO),
        _field("alpha_square", "alpha_square", 3, about="the shape-free twin of alpha"),
        _field("pl_alpha", "pl_alpha", about="KS-optimal power law"),
        _field("ks", "ks", about="KS distance of the tail from its power law"),
        _field("stable rank", "stable_rank", 1),
        _field("σ max", "spectral_norm", about="largest singular value"),
    )


def plan_table(plan: DecayPlan, links: Mapping[str, str]) -> Table:
    """One row a Parameter."""
    head = {"square": "alpha_square", "farms": "alpha"}.get(plan.basis, plan.basis)
    columns = [
        Column("Parameter", lambda e: Cell(e.name, link=links.get(e.name)), numeric=False),
        Column("role", lambda e: e.role or "fused", numeric=False),
        _field(head, "value", 3),
        _field("ratio", "ratio", 3, about="multiple of the base weight decay"),
        _field("if random", "random_ratio", 3, about="what the rule gives random weights of these shapes"),
        Column("at .25/.75", _fractions, about="ratio with these tail fractions in place of 0.5"),
    ]
    if plan.base_weight_decay is not None:
        columns.append(Column("weight decay", lambda e: number(e.weight_decay, 5)))
    if plan.verdict is not None:
        changes = {e.name: change for e, change in zip(plan.entries, plan.verdict.changes, strict=True)}
        columns.append(Column("norm by the end", lambda e: f"{changes[e.name]:+.2%}"))
    return _table(plan.entries, *columns)


def skipped_table(skipped: Sequence[Skipped]) -> Table:
    """What was left out, and why."""
    return _table(
        skipped,
        Column("tensor", lambda s: s.name if s.part is None else f"{s.name}[{s.part}]", numeric=False),
        Column("shape", lambda s: "x".join(map(str, s.shape)) or "scalar"),
        Column("type", lambda s: s.dtype, numeric=False),
        Column("reason", lambda s: s.reason, numeric=False),
    )


def _table(rows: Iterable[Any], *columns: Column) -> Table:
    def cell(column: Column, row: Any) -> Cell:
        made = column.cell(row)
        return made if isinstance(made, Cell) else Cell(made)

    return Table(columns, [[cell(column, row) for column in columns] for row in rows])


def _field(head: str, name: str, digits: int = 2, about: str = "") -> Column:
    return Column(head, lambda row: number(getattr(row, name), digits), about=about)


def _range(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"{low:.2f}–{high:.2f}"


def _of(n: int | None, total: int) -> str:
    return NOTHING if n is None else f"{n}/{total}"


def _shape(r: ModuleRecord) -> Cell:
    slices = f" x{r.n_slices}" if r.n_slices > 1 else ""
    return Cell(f"{r.rows}x{r.cols}{slices}", order=r.rows * r.cols * r.n_slices)


def _alpha(r: ModuleRecord) -> str:
    return number(r.alpha, 3) if r.status == "ok" else r.status


def _fractions(e: PlanEntry) -> str:
    return NOTHING if e.ratio_25 is None and e.ratio_75 is None else f"{number(e.ratio_25)}/{number(e.ratio_75)}"
