"""Roles, coverage, and attention against MLP: statistics over finished records, numpy only.

The unit of the contrast is the layer, not the matrix: matrices of a layer are dependent, and a test over all of them
counts each layer many times. Neighbouring layers are not independent either: a p-value is a lower bound. Every contrast
stands beside what random matrices of the same shapes give, because the raw exponent depends on the aspect ratio:
untrained networks pass the naive test. Shape can be taken out in two ways that answer different questions
(`square_alpha`, `rho`); on weights of near orthogonal columns they disagree, so that a verdict rests on both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from statistics import fmean, median, pstdev
from typing import Literal, get_args

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag.records import (
    FAMILIES,
    FUNCTION_ROLES,
    ROLES,
    Contrast,
    MetricSummary,
    ModuleRecord,
    RoleSummary,
    Skipped,
    Summary,
)
from specdiag.spectra.square import square_null, square_sd
from specdiag.spectra.tail_rules import alpha_sd

Basis = Literal["alpha", "square_alpha", "rho"]
Group = Literal["all", "q,k", "v,o"]

METRICS = (
    "alpha", "square_alpha", "rho", "pl_alpha", "alpha_weighted", "log_alpha_norm", "log_norm", "spectral_norm",
    "frobenius_norm", "stable_rank", "effective_rank", "entropy", "mp_softrank", "mp_spikes", "detx_k",
)  # fmt: skip
"""Columns of which a model's mean and median are given."""
_EXACT_LAYERS = 16
_DRAWS = 100_000
_TIED = "tied to "
_TIES = 3
"""Most ties that are counted by the names of their owners."""
_BOOTSTRAPS = 10_000
_GROUPS: dict[Group, frozenset[str]] = {
    "all": frozenset({"q", "k", "v", "kv", "o"}),
    "q,k": frozenset({"q", "k"}),
    "v,o": frozenset({"v", "o"}),
}


def summarise(
    records: Sequence[ModuleRecord],
    skipped: Sequence[Skipped],
    function: Sequence[ModuleRecord] = (),
    *,
    n_tensors: int,
    n_parameters: int,
) -> Summary:
    """Summarise finished records.

    Args:
        records: one row a matrix.
        skipped: what was left out.
        function: rows of the function's matrices, which count for nothing but their own medians.
        n_tensors: stored tensors of the checkpoint.
        n_parameters: their values.
    """
    weights = [r for r in records if not _is_update(r)]
    square = [r.square_alpha for r in weights if r.family in ("attention", "mlp") and r.square_alpha is not None]
    balance = balance_score(square) if len(square) > 1 else (None, None)
    return Summary(
        n_tensors=n_tensors,
        n_parameters=n_parameters,
        n_matrices=len(records),
        analysed_parameters=sum(r.rows * r.cols * r.n_slices for r in weights),
        skipped=count_reasons(s.reason for s in skipped),
        statuses=dict(Counter(r.status for r in records).most_common()),
        roles=_roles(weights),
        contrasts=contrasts(weights),
        function=_roles(function),
        balance_sd=balance[0],
        balance_range=balance[1],
        unrecognised=tuple(r.key for r in records if not r.recognised),
        metrics=_metrics(weights),
    )


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Count what is left out by its reason, the most frequent first. Many ties are counted together.

    Args:
        reasons: one a tensor.
    """
    counts = Counter(reasons)
    ties = [reason for reason in counts if reason.startswith(_TIED)]
    if len(ties) > _TIES:
        counts[f"{_TIED}other tensors"] = sum(counts.pop(reason) for reason in ties)
    return dict(counts.most_common())


def _metrics(records: Sequence[ModuleRecord]) -> dict[str, MetricSummary]:
    found: dict[str, MetricSummary] = {}
    for name in METRICS:
        values: list[float] = [value for record in records if (value := getattr(record, name)) is not None]
        if values:
            found[name] = MetricSummary(n=len(values), mean=fmean(values), median=median(values))
    return found


def balance_score(alphas: Sequence[float]) -> tuple[float, float]:
    """Compute standard deviation and range of shape-free exponents, exactly rounded: their order changes no bit."""
    return pstdev(alphas), max(alphas) - min(alphas)


def contrasts(records: Sequence[ModuleRecord]) -> tuple[Contrast, ...]:
    """Compare attention with MLP per layer by alpha, square_alpha and rho; empty where fewer than two have both."""
    found: list[Contrast] = []
    for basis in get_args(Basis):
        group = [c for name in _GROUPS if (c := _contrast(records, basis, name)) is not None]
        found += _holm(group)
    return tuple(found)


def contrast_in_balance(records: Sequence[ModuleRecord]) -> tuple[Contrast, Contrast] | None:
    """Compare attention with MLP by square_alpha as stored and in the balanced form, over the same matrices.

    Args:
        records: rows of a report, `gauge_shift` where it is known.

    Returns:
        The contrast as stored and the balanced one; None where fewer than two layers have both families.
    """
    stored = [r for r in records if r.balanced_alpha is not None and not _is_update(r)]
    balanced = [replace(r, square_alpha=r.balanced_alpha) for r in stored]
    found = [_contrast(rows, "square_alpha", "all") for rows in (stored, balanced)]
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _is_update(record: ModuleRecord) -> bool:
    """Tell whether the row is the update of a weight that has a row of its own, as in a live model with an adapter."""
    return (record.part or "").rpartition(".")[2].startswith("delta")


def sign_flip_p(differences: NDArray[np.float64]) -> float:
    """Compute the two-sided sign-flip p of the mean: exact up to 16 differences, else 100,000 seeded draws, add-one.

    Args:
        differences: one paired difference a layer, shape [n].
    """
    n, observed = len(differences), abs(differences.sum())
    if n <= _EXACT_LAYERS:
        signs = (np.arange(2**n)[:, None] >> np.arange(n) & 1) * 2.0 - 1
        sums = np.abs(signs @ differences)
        return float((sums >= observed * (1 - 1e-12)).mean())
    hits = sum(int((np.abs(signs @ differences) >= observed * (1 - 1e-12)).sum()) for signs in _drawn_signs(n))
    return (hits + 1) / (_DRAWS + 1)


@lru_cache(maxsize=1)  # contrasts of one report are of the same layers
def _drawn_signs(n: int) -> NDArray[np.int8]:
    """Draw 1 and -1 for n differences, in ten parts, shape [10, _DRAWS / 10, n]."""
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, 2, (_DRAWS // 10, n), dtype=np.int8) * 2 - 1 for _ in range(10)])


def auc(lower: Iterable[float], upper: Iterable[float]) -> float:
    """P(upper > lower) over all pairs, ties one half: the Mann-Whitney U over its maximum."""
    a, b = np.fromiter(lower, float), np.fromiter(upper, float)
    above = (b[:, None] > a).sum() + 0.5 * (b[:, None] == a).sum()
    return float(above / (len(a) * len(b)))


def _contrast(records: Sequence[ModuleRecord], basis: Basis, group: Group) -> Contrast | None:
    layers = _layers(records, basis, _GROUPS[group])
    if len(layers) < 2:
        return None
    observed = _differences(layers, lambda r: _value(r, basis))
    rng = np.random.default_rng(0)
    random = _differences(layers, lambda r: _random_value(r, basis, rng))
    has_null = bool(np.isfinite(random).all())
    resampled = np.median(observed[rng.integers(0, len(observed), (_BOOTSTRAPS, len(observed)))], axis=1)
    low, high = np.quantile(resampled, (0.025, 0.975))
    p = sign_flip_p(observed)
    return Contrast(
        basis=basis,
        attention=group,
        n_layers=len(layers),
        n_positive=int((observed > 0).sum()),
        difference=float(np.median(observed)),
        low=float(low),
        high=float(high),
        p=p,
        p_holm=p,
        auc=auc(
            (_value(r, basis) for attention, _ in layers for r in attention),
            (_value(r, basis) for _, mlp in layers for r in mlp),
        ),
        random_difference=float(np.median(random)) if has_null else None,
        random_n_positive=int((random > 0).sum()) if has_null else None,
        random_p=sign_flip_p(random) if has_null else None,
    )


Layer = tuple[list[ModuleRecord], list[ModuleRecord]]


def _layers(records: Sequence[ModuleRecord], basis: Basis, roles: frozenset[str]) -> list[Layer]:
    """Attention and MLP matrices of every layer that has both, by (component, layer)."""
    layers: dict[tuple[str | None, int], Layer] = defaultdict(lambda: ([], []))
    for r in records:
        if r.layer is None or getattr(r, basis) is None:
            continue
        if r.family == "attention" and r.role in roles:
            layers[r.component, r.layer][0].append(r)
        elif r.family == "mlp":
            layers[r.component, r.layer][1].append(r)
    return [layer for layer in layers.values() if all(layer)]


def _differences(layers: list[Layer], value: Callable[[ModuleRecord], float]) -> NDArray[np.float64]:
    """Mean over the MLP minus mean over attention, one a layer."""
    means = [(fmean(value(r) for r in mlp), fmean(value(r) for r in attention)) for attention, mlp in layers]
    return np.array([upper - lower for upper, lower in means])


def _value(record: ModuleRecord, basis: Basis) -> float:
    value: float | None = getattr(record, basis)
    assert value is not None
    return value


def _random_value(record: ModuleRecord, basis: Basis, rng: np.random.Generator) -> float:
    """Draw the exponent of a random matrix of this shape from its moments; else its null, NaN without one."""
    shape = record.living_shape
    if basis == "square_alpha":
        return float(rng.normal(square_null(shape), square_sd(shape)))
    sd = alpha_sd(record.tail, shape, record.n_slices)
    null = record.alpha_null if record.alpha_null is not None else np.nan
    # The moments are those of tail fraction 1/2; at another fraction only the spread is borrowed.
    alpha = float(null if sd is None else rng.normal(null, sd))
    return alpha if basis == "alpha" else (alpha - 1) / (null - 1)


def _holm(group: list[Contrast]) -> list[Contrast]:
    """The same contrasts with p-values corrected for their number."""
    order = sorted(range(len(group)), key=lambda i: group[i].p)
    corrected, running = list(group), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(group) - rank) * group[i].p))
        corrected[i] = replace(group[i], p_holm=running)
    return corrected


def _roles(records: Sequence[ModuleRecord]) -> tuple[RoleSummary, ...]:
    groups: dict[tuple[str, str], list[ModuleRecord]] = defaultdict(list)
    for r in records:
        groups[r.family, r.role].append(r)
    roles = (*FUNCTION_ROLES, *ROLES)
    order = sorted(groups, key=lambda g: (FAMILIES.index(g[0]), roles.index(g[1])))  # pyright: ignore[reportArgumentType]
    return tuple(_role(groups[g]) for g in order)


def _role(group: list[ModuleRecord]) -> RoleSummary:
    def values(name: str) -> list[float]:
        return [v for r in group if (v := getattr(r, name)) is not None]

    def over(reduce: Callable[[list[float]], float], name: str) -> float | None:
        found = values(name)
        return float(reduce(found)) if found else None

    def median(found: list[float]) -> float:
        return float(np.median(found))

    square_nulls = [square_null(r.living_shape) for r in group if r.square_alpha is not None]
    return RoleSummary(
        family=group[0].family,
        role=group[0].role,
        n=len(group),
        n_alpha=len(values("alpha")),
        parameters=sum(r.rows * r.cols * r.n_slices for r in group),
        alpha=over(median, "alpha"),
        alpha_min=over(min, "alpha"),
        alpha_max=over(max, "alpha"),
        alpha_null=over(median, "alpha_null"),
        rho=over(median, "rho"),
        square_alpha=over(median, "square_alpha"),
        square_alpha_min=over(min, "square_alpha"),
        square_alpha_max=over(max, "square_alpha"),
        square_alpha_null=median(square_nulls) if square_nulls else None,
        pl_alpha=over(median, "pl_alpha"),
        stable_rank=over(median, "stable_rank"),
    )
