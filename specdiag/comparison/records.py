"""What a comparison says. A change is always B minus A; a value that one side lacks has no change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from specdiag import checks
from specdiag.files import write_atomically
from specdiag.records import Family, ModuleRecord, Record, Role, Settings, Source, Status
from specdiag.storage.kinds import COMPARISON

METRICS: tuple[str, ...] = (
    "alpha", "rho", "z", "ks", "alpha_square", "rho_square", "alpha_25", "alpha_50", "alpha_75", "pl_alpha", "pl_ks",
    "alpha_weighted", "log_alpha_norm", "log_norm", "spectral_norm", "frobenius_norm", "stable_rank", "effective_rank",
    "matrix_rank", "entropy", "mp_edge", "mp_spikes", "mp_softrank", "detx_k", "rand_spectral_norm", "rand_spikes",
    "n_zero", "n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols",
)  # fmt: skip
"""Columns of a row whose change is given."""

TAIL_METRICS: frozenset[str] = frozenset({"alpha", "rho", "z", "ks"})
"""Those that follow the tail rule of the settings."""


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
    """Of the spectrum of D: `zero` where nothing changed, `low_rank` where its tail is lost in rounding."""
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
    """Of D, by the tail rule of the settings."""
    alpha_null: float | None = None
    alpha_square: float | None = None
    singular_values: tuple[float, ...] = ()
    """Of D, descending, slices pooled."""
    subspaces: Subspaces | None = None

    def energy(self, rank: int) -> float | None:
        """Share of ||D||_F^2 in the best approximation of D of this rank; None where D is zero or has no spectrum."""
        squares = [value**2 for value in self.singular_values]
        total = sum(squares)
        return sum(squares[:rank]) / total if total else None


class ModuleChange(Record, frozen=True, kw_only=True):
    """One matrix that both sides have."""

    name: str
    """By which they were matched: that of the side without a prefix."""
    role: Role
    family: Family
    layer: int | None = None
    component: str | None = None
    unchanged: bool | None = None
    """Equal values in the same storage type; None where a digest is missing."""
    change: dict[str, float]
    """B minus A of every metric that both have."""
    delta: Delta | None = None
    """From the weights; None where a side is a report, or an update of low rank."""
    a: ModuleRecord
    b: ModuleRecord


class Unmatched(Record, frozen=True, kw_only=True):
    """A tensor, or a part of one, that has no counterpart."""

    name: str
    """As its own side has it."""
    role: Role | None = None
    """None for a tensor that is no matrix."""
    shape: tuple[int, ...]
    reason: str


class Reshaped(Record, frozen=True, kw_only=True):
    """One name, two shapes."""

    name: str
    role: Role | None = None
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]


class RoleChange(Record, frozen=True, kw_only=True):
    """One role: means over its matched matrices that have a value."""

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
    abs_alpha_square: float | None = None
    alpha_square: float | None = None
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


class Balance(Record, frozen=True, kw_only=True):
    """Spread of alpha_square over the attention and MLP matrices that both sides have."""

    n: int
    sd_a: float
    sd_b: float
    range_a: float
    range_b: float


class Comparison(Record, frozen=True, kw_only=True):
    """What `compare` found.

    Example:
        >>> found = specdiag.compare("org/base", "org/fine-tune")
        >>> round(found["model.layers.0.self_attn.q_proj.weight"].delta.relative_change, 3)
        0.1
    """

    schema: int = COMPARISON.schema
    a: Source
    b: Source
    settings_a: Settings
    settings_b: Settings
    prefix_a: str = ""
    """What was taken off the names of A to match those of B."""
    prefix_b: str = ""
    relative_change: float | None = None
    """||B - A||_F/||A||_F over all matched matrices together."""
    cosine: float | None = None
    """Of all matched weights as one vector."""
    balance: Balance | None = None
    roles: tuple[RoleChange, ...]
    modules: tuple[ModuleChange, ...]
    only_in_a: tuple[Unmatched, ...] = ()
    only_in_b: tuple[Unmatched, ...] = ()
    reshaped: tuple[Reshaped, ...] = ()
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> ModuleChange:
        """The matched matrix called `name`: as it was matched, or as A or B has it."""
        for module in self.modules:
            if name in (module.name, module.a.key, module.b.key):
                return module
        raise KeyError(name)

    def to_json(self) -> bytes:
        """The comparison as one JSON object."""
        return msgspec.json.encode(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the comparison as JSON, whole or not at all."""
        path = checks.path("path", path)
        write_atomically(path, self.to_json())
        return path

    def to_records(self) -> list[dict[str, Any]]:
        """Plain rows for a data frame: the matched, with both values and the change of each metric, then the others."""
        from specdiag.comparison.rows import rows

        return rows(self)
