"""Columns of the tables: one definition for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from specdiag.records import Contrast, LawName, ModuleRecord, RoleLaws, RoleSummary, Skipped
from specdiag.text.counts import percent
from specdiag.views.cells import NOTHING, number, role_label

if TYPE_CHECKING:
    from specdiag.decay.plan import DecayPlan, PlanEntry

R = TypeVar("R", contravariant=True)
_RHO = "(alpha - 1)/(null - 1), relative to noise of this shape: 1 like noise, below 1 heavier"
_GAUGE = "square_alpha of the balanced form less that of the stored one: what it owes to how it is stored"
_SQUARE = "alpha of a square cut of the matrix, comparable across shapes"


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table whose rows are of one type.

    Attributes:
        head: the name above it.
        cell: the text for a row; `NOTHING` where there is no value.
        drop: rank among the columns that a narrow terminal leaves out, the highest first; 0 always stays.
        right: True for numbers, which stand at the right.
        help: what the column means, shown where the mouse rests on its head.
        order: the sort key of a row; None to sort by its text.
        wraps: True for a sentence, which is broken at words before a name is.
    """

    head: str
    cell: Callable[[R], str]
    drop: int = 0
    right: bool = True
    help: str = ""
    order: Callable[[R], float] | None = None
    wraps: bool = False


def field(head: str, name: str, digits: int = 2, drop: int = 0, help: str = "") -> Column[object]:
    """Make a column of one numeric attribute.

    Args:
        head: the name above it.
        name: of the attribute.
        digits: behind the point.
        drop: as for `Column`.
        help: as for `Column`.
    """
    return Column(head, lambda row: number(getattr(row, name), digits), drop, help=help)


def filled(columns: Sequence[Column[R]], rows: Sequence[R]) -> list[Column[R]]:
    """Choose the columns that have a value in some row.

    Args:
        columns: of a table.
        rows: its rows; all columns are chosen where there are none.
    """
    return [c for c in columns if not rows or any(c.cell(row) != NOTHING for row in rows)]


def role_columns() -> list[Column[RoleSummary]]:
    """Make the columns of roles: medians, and beside each exponent that of random matrices of the same shapes."""
    return [
        Column("family", lambda r: r.family, right=False),
        Column("role", lambda r: r.role, right=False),
        Column("n", lambda r: str(r.n) if r.n == r.n_alpha else f"{r.n_alpha} of {r.n}", help="with an alpha"),
        field("alpha", "alpha", help="median exponent of the upper eigenvalues; smaller: heavier tail"),
        Column("min-max", lambda r: _range(r.alpha_min, r.alpha_max), 4),
        field("null", "alpha_null", help="alpha of random matrices of the same shapes"),
        field("rho", "rho", drop=2, help=_RHO),
        field("square_alpha", "square_alpha", help=_SQUARE),
        Column("min-max", lambda r: _range(r.square_alpha_min, r.square_alpha_max), 5),
        field("null", "square_alpha_null", help="square_alpha of random matrices"),
        field("pl_alpha", "pl_alpha", drop=1, help="KS fit of a power law: another estimator, not comparable"),
        field("stable rank", "stable_rank", 1, drop=3, help="squared Frobenius norm over squared spectral norm"),
    ]


def contrast_columns() -> list[Column[Contrast]]:
    """Make the columns of MLP minus attention per layer, with the same for random matrices."""
    return [
        Column("basis", lambda c: c.basis, right=False),
        Column("attention", lambda c: c.attention, right=False),
        Column("layers > 0", lambda c: f"{c.n_positive}/{c.n_layers}"),
        Column("difference", lambda c: f"{c.difference:+.3f}", help="median over layers"),
        Column("95 %", lambda c: f"{c.low:+.2f} .. {c.high:+.2f}", 3, help="bootstrap over layers"),
        Column("p", lambda c: f"{c.p:.2g}", 1, help="two-sided sign-flip test over layers"),
        Column("p Holm", lambda c: f"{c.p_holm:.2g}", 2, help="p, corrected for the number of tests"),
        Column("AUC", lambda c: f"{c.auc:.2f}", 4, help="share of pairs in which the MLP has the larger exponent"),
        Column("random > 0", _random_layers, help="layers > 0 for random matrices of these shapes"),
        Column("random diff.", lambda c: _known(c.random_difference, "+.3f"), help="difference for random matrices"),
        Column("random p", lambda c: _known(c.random_p, ".2g"), 5, help="p for random matrices"),
    ]


def law_columns() -> list[Column[RoleLaws]]:
    """Make the columns of the fit test: which law the tails of a role follow."""

    def gain(head: str, law: LawName, help: str) -> Column[RoleLaws]:
        return Column(head, lambda r: _known(r.llr.get(law), "+.1f"), 1, help=help)

    return [
        Column("family", lambda r: r.family, 2, right=False),
        Column("role", lambda r: r.role, right=False),
        Column("n", lambda r: f"{r.n} of {r.n + r.n_untested}" if r.n_untested else str(r.n), help="with a test"),
        Column("no power law", lambda r: str(r.n_not_power_law), help="matrices whose tail differs from a power law"),
        Column("best law, or those not told apart", _best_laws, right=False, help="all matrices together"),
        gain("truncated", "truncated-power-law", "power law with an exponential cut-off"),
        gain("exponential", "exponential", "exponential law"),
        gain("lognormal", "lognormal", "lognormal law"),
        gain("mp-bulk", "mp-bulk", "Marchenko-Pastur bulk with spikes"),
    ]


def record_columns() -> list[Column[ModuleRecord]]:
    """Make the columns of single matrices."""
    return [
        Column("matrix", lambda r: r.key, right=False),
        Column("role", role_label, right=False),
        Column("layer", lambda r: number(r.layer), 10),
        Column("shape", _shape, 1, help="rows x columns; sorts by their product", order=_n_values),
        Column("alpha", _alpha, help="exponent of the upper eigenvalues, or why there is none; smaller: heavier tail"),
        Column("± arith.", lambda r: _known(r.alpha_error, ".0e"), 7, help="error of alpha from rounding"),
        field("null", "alpha_null", 3, help="alpha of a random matrix of this shape"),
        field("rho", "rho", drop=2, help=_RHO),
        field("z", "z", 0, drop=5, help="distance of alpha from null, in standard deviations of random matrices"),
        field("ks", "ks", drop=6, help="KS distance of the tail from its power law"),
        Column("at .25/.5/.75", _three_alphas, 8, help="alpha at these tail fractions"),
        field("square_alpha", "square_alpha", 3, help=_SQUARE),
        Column("shift by form", lambda r: _known(r.gauge_shift, "+.3f"), 3, help=_GAUGE),
        field("pl_alpha", "pl_alpha", drop=3, help="KS fit of a power law"),
        Column(
            "best law", lambda r: r.best_law or NOTHING, 4, right=False, help="law of the tail; its p is uncalibrated"
        ),
        field("stable rank", "stable_rank", 1, drop=4, help="squared Frobenius norm over squared spectral norm"),
        field("sigma_max", "spectral_norm", drop=9, help="largest singular value"),
    ]


def skipped_columns() -> list[Column[Skipped]]:
    """Make the columns of tensors that were left out: what they are, and why."""
    return [
        Column("tensor", lambda s: s.name if s.part is None else f"{s.name}[{s.part}]", right=False),
        Column("shape", lambda s: "x".join(map(str, s.shape)) or "scalar"),
        Column("type", lambda s: s.dtype, right=False),
        Column("reason", lambda s: s.reason, right=False),
    ]


def basis_head(plan: DecayPlan) -> str:
    """Name the column of a report from which a plan is made."""
    return {"square": "square_alpha", "farms": "alpha", "function": "balanced square_alpha"}.get(plan.basis, plan.basis)


def plan_columns(plan: DecayPlan) -> list[Column[PlanEntry]]:
    """Make the columns of Parameters: ratio, and the ratio of random weights and other tail fractions.

    Args:
        plan: the plan; decays and norms have columns where it knows them.
    """
    columns: list[Column[PlanEntry]] = [
        Column("Parameter", lambda e: e.name, right=False),
        Column("role", lambda e: e.role or "fused", 3, right=False),
        field(basis_head(plan), "value", 3, help="what the ratio is made from"),
        field("ratio", "ratio", 3, help="multiple of the base weight decay"),
        field("if random", "random_ratio", 3, drop=1, help="what the rule gives random weights of these shapes"),
    ]
    if plan.explained_by_shape and plan.has_square_ratios:
        columns.append(field("by square", "square_ratio", 3, help="what the rule gives by square_alpha"))
    columns += [
        Column("at .25/.75", _two_ratios, 2, help="ratio with these tail fractions in place of 0.5"),
    ]
    if plan.base_weight_decay is not None:
        columns.append(Column("weight decay", lambda e: _known(e.weight_decay, ".4g")))
    if plan.verdict is not None:
        changes = {entry.name: change for entry, change in zip(plan.entries, plan.verdict.changes, strict=True)}
        columns.append(Column("norm by the end", lambda e: percent(changes[e.name], 2, "+")))
    return columns


def _range(low: float | None, high: float | None) -> str:
    return NOTHING if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _known(value: float | None, form: str) -> str:
    return NOTHING if value is None else f"{value:{form}}"


def _best_laws(r: RoleLaws) -> str:
    return ", ".join(law.removesuffix("-power-law") for law in r.candidates) or NOTHING


def _random_layers(c: Contrast) -> str:
    return NOTHING if c.random_n_positive is None else f"{c.random_n_positive}/{c.n_layers}"


def _shape(r: ModuleRecord) -> str:
    return f"{r.rows}x{r.cols}" + (f" x{r.n_slices}" if r.n_slices > 1 else "")


def _n_values(r: ModuleRecord) -> int:
    return r.rows * r.cols * r.n_slices


def _alpha(r: ModuleRecord) -> str:
    return number(r.alpha, 3) if r.status == "ok" else r.status


def _three_alphas(r: ModuleRecord) -> str:
    values = (r.alpha_25, r.alpha_50, r.alpha_75)
    return NOTHING if values == (None, None, None) else "/".join(number(v) for v in values)


def _two_ratios(e: PlanEntry) -> str:
    return NOTHING if e.ratio_25 is None and e.ratio_75 is None else f"{number(e.ratio_25)}/{number(e.ratio_75)}"
