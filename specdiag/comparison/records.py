"""The records of a comparison, and its rows. A change is after minus before; a value that one side lacks has none.

Formulas call a matrix before A, and after B.
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec

from specdiag.files import json_decoder
from specdiag.records import AnyRole, Family, ModuleRecord, Record, Role, Settings, Source, Status
from specdiag.storage.kinds import COMPARISON, read_record
from specdiag.storage.result import Result, Row
from specdiag.text import checks
from specdiag.text.counts import counted, percent

METRICS: tuple[str, ...] = (
    "alpha", "rho", "z", "ks", "square_alpha", "square_rho", "alpha_25", "alpha_50", "alpha_75", "pl_alpha", "pl_ks",
    "alpha_weighted", "log_alpha_norm", "log_norm", "spectral_norm", "frobenius_norm", "stable_rank", "effective_rank",
    "matrix_rank", "entropy", "mp_edge", "mp_spikes", "mp_softrank", "detx_k", "rand_spectral_norm", "rand_spikes",
    "n_zero", "n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols",
)  # fmt: skip
"""Columns of a row whose change is given."""

TAIL_METRICS: frozenset[str] = frozenset({"alpha", "rho", "z", "ks"})
"""Metrics that depend on the tail rule of the settings."""


class Subspaces(Record, frozen=True, kw_only=True):
    """How the leading singular subspaces of A and B lie to each other."""

    k: int
    left: tuple[float, ...]
    """Cosines of the k principal angles between the leading left singular vectors, descending."""
    right: tuple[float, ...]
    left_angle: float
    """The largest of these angles, degrees."""
    right_angle: float
    gap: float
    """(sigma_k - sigma_(k+1))/sigma_k of A: where it is small against the relative change, the angles mean little."""


class Delta(Record, frozen=True, kw_only=True):
    """The difference D = B - A of one matrix."""

    status: Status
    """Status of the spectrum of D: `zero` where nothing changed, `low_rank` where its tail is lost in rounding."""
    relative_change: float | None = None
    """||D||_F/||A||_F."""
    cosine: float | None = None
    """<A, B>/(||A||_F ||B||_F)."""
    cosine_distance: float | None = None
    """1 - cosine, without the cancellation."""
    frobenius_norm: float | None = None
    spectral_norm: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    alpha: float | None = None
    """Exponent of D, by the tail rule of the settings."""
    alpha_null: float | None = None
    square_alpha: float | None = None
    singular_values: tuple[float, ...] = ()
    """Singular values of D, descending, slices pooled."""
    subspaces: Subspaces | None = None

    def energy(self, rank: int) -> float | None:
        """Compute the share of ||D||_F^2 in the best approximation of D of some rank.

        Args:
            rank: of the approximation.

        Returns:
            0 to 1; None where D is zero or has no spectrum.
        """
        squares = [value**2 for value in self.singular_values]
        total = sum(squares)
        return sum(squares[:rank]) / total if total else None


class ModuleChange(Record, frozen=True, kw_only=True):
    """A matrix that both sides have."""

    name: str
    """The common name: that of the side without a prefix."""
    role: AnyRole
    family: Family
    layer: int | None = None
    component: str | None = None
    unchanged: bool | None = None
    """Equal values in the same storage type; None where a digest is missing."""
    change: dict[str, float]
    """After minus before, of every metric that both have."""
    delta: Delta | None = None
    """From the weights; None where a side is a report, or an update of low rank."""
    before: ModuleRecord
    after: ModuleRecord


class Unmatched(Record, frozen=True, kw_only=True):
    """A tensor, or a part of one, that has no counterpart."""

    name: str
    """As its own side has it."""
    role: Role | None = None
    """None for a tensor that is no matrix."""
    shape: tuple[int, ...]
    reason: str


class Reshaped(Record, frozen=True, kw_only=True):
    """A name that has two shapes."""

    name: str
    role: Role | None = None
    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]


class RoleChange(Record, frozen=True, kw_only=True):
    """A role: means over its matched matrices that have a value."""

    family: Family
    role: Role
    n: int
    n_unchanged: int
    abs_alpha: float | None = None
    """Mean of |change of alpha|."""
    alpha: float | None = None
    """Mean change of alpha."""
    alpha_sd: float | None = None
    """Mean standard deviation of alpha over random matrices of these shapes: what a redrawn network would move."""
    abs_square_alpha: float | None = None
    square_alpha: float | None = None
    stable_rank: float | None = None
    frobenius_norm: float | None = None
    """Mean of ||B||_F/||A||_F - 1."""
    relative_change: float | None = None
    cosine: float | None = None
    delta_stable_rank: float | None = None
    energy_8: float | None = None
    """Mean share of ||D||_F^2 in rank 8."""
    left_angle: float | None = None
    right_angle: float | None = None


class FunctionChange(Record, frozen=True, kw_only=True):
    """A role of what the weights compute: means over its rows on both sides that have a value."""

    role: AnyRole
    family: Family
    n: int
    alpha: float | None = None
    """Mean change of alpha, and likewise of rho and stable rank; heads paired by index."""
    rho: float | None = None
    stable_rank: float | None = None
    sigma: float | None = None
    """Median |ln(after/before)| of the largest singular value, heads paired by index."""
    sigma_sorted: float | None = None
    """The same with the heads (experts) of each layer sorted by size, which their order does not change."""


class Balance(Record, frozen=True, kw_only=True):
    """Spread of square_alpha over the attention and MLP matrices that both sides have."""

    n: int
    sd_before: float
    sd_after: float
    range_before: float
    range_after: float


_DELTA = tuple(name for name in Delta.__struct_fields__ if name not in ("singular_values", "subspaces"))
_SUBSPACES = ("left_angle", "right_angle", "gap")
_IDENTITY = (
    "match",
    "form",
    "name",
    "name_before",
    "name_after",
    "role",
    "family",
    "layer",
    "head",
    "component",
    "shape_before",
    "shape_after",
)

COLUMNS: tuple[str, ...] = (
    *_IDENTITY,
    "reason",
    "unchanged",
    *(f"{metric}_{side}" for metric in METRICS for side in ("before", "after", "change")),
    *(f"delta_{name}" for name in _DELTA),
    "delta_energy_8",
    *_SUBSPACES,
)
"""Columns of a row, the same in csv, parquet and data frames."""

SHORT: tuple[str, ...] = (
    "match", "name", "role", "alpha_before", "alpha_after", "alpha_change", "square_alpha_before", "square_alpha_after",
    "square_alpha_change", "stable_rank_change", "delta_relative_change", "delta_cosine", "delta_stable_rank",
    "left_angle", "right_angle", "reason",
)  # fmt: skip
"""Columns of markdown."""


class Comparison(Result, Record, frozen=True, kw_only=True):
    """The answer of `compare`: how the weights `after` differ from those `before`.

    Example:
        >>> found = specdiag.compare("org/base", "org/fine-tune")
        >>> round(found["model.layers.0.self_attn.q_proj.weight"].delta.relative_change, 3)
        0.1
    """

    schema: int = COMPARISON.schema
    before: Source
    after: Source
    settings_before: Settings
    settings_after: Settings
    architecture_before: str | None = None
    """As config.json or GGUF names it."""
    architecture_after: str | None = None
    prefix_before: str = ""
    """Prefix that was taken off the names of `before` to match those of `after`."""
    prefix_after: str = ""
    relative_change: float | None = None
    """||B - A||_F/||A||_F over all matched matrices together."""
    cosine: float | None = None
    """Norms of all matched weights as one vector."""
    balance: Balance | None = None
    roles: tuple[RoleChange, ...]
    modules: tuple[ModuleChange, ...]
    only_before: tuple[Unmatched, ...] = ()
    only_after: tuple[Unmatched, ...] = ()
    reshaped: tuple[Reshaped, ...] = ()
    function: tuple[ModuleChange, ...] = ()
    """Function of the weights (QK and OV of each head, DU), where both sides were analysed with it."""
    function_roles: tuple[FunctionChange, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> ModuleChange:
        """The matched matrix called `name`: as it was matched, or as either side has it.

        Raises:
            KeyError: no matched matrix has this name.
        """
        for module in (*self.modules, *self.function):
            if name in (module.name, module.before.key, module.after.key):
                return module
        raise KeyError(name)

    def to_json(self) -> bytes:
        """Encode the comparison as one JSON object, the content of its file."""
        return msgspec.json.encode(self)

    def to_records(self) -> list[Row]:
        """Make plain rows: the matched matrices, those of the function, the reshaped, those that only one side has.

        Returns:
            Rows with `COLUMNS`: both values and the change of each metric, None where there is no value.
        """
        return [
            *(_matched(module) for module in self.modules),
            *(_matched(module) for module in self.function),
            *(_reshaped(module) for module in self.reshaped),
            *(_unmatched(module, "before") for module in self.only_before),
            *(_unmatched(module, "after") for module in self.only_after),
        ]

    def _title(self) -> str:
        moved = "" if self.relative_change is None else f", moved by {percent(self.relative_change, 1)} of their norm"
        n_lost = sum(bool({m.before.status, m.after.status} & {"nonfinite", "failed"}) for m in self.modules)
        moved += f", {n_lost} without numbers" if n_lost else ""
        return (
            f"{self.before} → {self.after}: {counted(len(self.modules), 'matrix', 'matrices')} matched{moved}; "
            f"{len(self.only_before)} only "
            f"before, {len(self.only_after)} only after, {len(self.reshaped)} of other shape"
        )

    def _columns(self) -> tuple[str, ...]:
        return COLUMNS

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("family", "role", "n", "n_unchanged", "abs_alpha", "square_alpha", "relative_change", "cosine")
        return names, [[getattr(role, name) for name in names] for role in self.roles]


def load_comparison(path: str | os.PathLike[str]) -> Comparison:
    """Read a saved comparison.

    Args:
        path: a file of `Comparison.save`, or of `specdiag compare -o`.

    Returns:
        The comparison.

    Raises:
        SourceError: the file is missing, is no comparison, or is of another schema.
    """
    return read_record(checks.path("path", path), _decode, COMPARISON)


_decode = json_decoder(Comparison)


def _empty() -> Row:
    return Row(dict.fromkeys(COLUMNS))


def _matched(module: ModuleChange) -> Row:
    row = _empty()
    row |= {
        "match": "both",
        "form": module.before.form,
        "head": module.before.head,
        "name": module.name,
        "name_before": module.before.key,
        "name_after": module.after.key,
        "shape_before": _shape((module.before.rows, module.before.cols)),
        "shape_after": _shape((module.after.rows, module.after.cols)),
    }
    row |= {name: getattr(module, name) for name in ("role", "family", "layer", "component", "unchanged")}
    for metric in METRICS:
        row[f"{metric}_before"], row[f"{metric}_after"] = getattr(module.before, metric), getattr(module.after, metric)
        row[f"{metric}_change"] = module.change.get(metric)
    if module.delta is not None:
        row |= {f"delta_{name}": getattr(module.delta, name) for name in _DELTA}
        row["delta_energy_8"] = module.delta.energy(8)
        if module.delta.subspaces is not None:
            row |= {name: getattr(module.delta.subspaces, name) for name in _SUBSPACES}
    return row


def _reshaped(reshaped: Reshaped) -> Row:
    return _empty() | {
        "match": "reshaped",
        "name": reshaped.name,
        "role": reshaped.role,
        "shape_before": _shape(reshaped.shape_before),
        "shape_after": _shape(reshaped.shape_after),
    }


def _unmatched(unmatched: Unmatched, side: Literal["before", "after"]) -> Row:
    return _empty() | {
        "match": f"only {side}",
        "name": unmatched.name,
        f"name_{side}": unmatched.name,
        f"shape_{side}": _shape(unmatched.shape),
        "role": unmatched.role,
        "reason": unmatched.reason,
    }


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
