"""Plausibility of saved rows and summaries: bounds within which every measured value lies."""

from __future__ import annotations

import re
from collections.abc import Iterable

from specdiag.files import shortened
from specdiag.records import Contrast, ModuleRecord, Record, RoleLaws, RoleSummary, Summary

_SHA256 = re.compile("[0-9a-f]{64}")
_LARGEST = 1 << 48
"""More than a side or a count of a stored matrix can be."""
_LAST_LAYER = 99_999
"""No name gives a layer beyond it: figures and audits have a place for every layer up to the last."""
_MOST_VALUES = 1 << 60
"""More than the parameters or tensors of a checkpoint."""
_SIDES = ("rows", "cols", "n_slices")
_SUBSETS = ("n_clipped", "pl_k", "n_zero", "matrix_rank", "mp_spikes", "detx_k", "rand_spikes")
"""Columns that count eigenvalues of the spectrum."""
_COUNTS = (
    "k", "n_eigenvalues", "n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols", "living_rows",
    "living_cols",
)  # fmt: skip
_EXPONENTS = ("alpha", "alpha_null", "square_alpha", "alpha_25", "alpha_50", "alpha_75", "pl_alpha")
_POSITIVE = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank", "rand_spectral_norm")


def implausible(record: ModuleRecord) -> str | None:
    """Explain why no measurement can give a row.

    Args:
        record: a row of a saved report.

    Returns:
        The reason, None where the row may be true.
    """
    for names, low, high in (
        (_SIDES, 1, _LARGEST),
        (("layer",), 0, _LAST_LAYER),
        (_COUNTS, 0, _LARGEST),
        (_SUBSETS, 0, max(record.n_eigenvalues, 0)),
        (_EXPONENTS, 1, None),
        (_POSITIVE, 0, None),
    ):
        if problem := _outside(record, names, low, high):
            return problem
    if record.n_eigenvalues > record.n_slices * min(record.rows, record.cols):
        return f"{record.n_eigenvalues} eigenvalues of {record.rows} x {record.cols}"
    if problem := _outside(record, ("power_law_p",), 0, 1):
        return problem
    if (record.best_law is None) != (record.power_law_p is None) or (record.best_law and record.alpha is None):
        return f"its law is {record.best_law}, p {record.power_law_p} and alpha {record.alpha}"
    if (record.alpha is not None) != (record.status == "ok"):
        return f"its status is {record.status} and its alpha {record.alpha}"
    if record.square_status is not None and (record.square_alpha is not None) != (record.square_status == "ok"):
        return f"its square_status is {record.square_status} and its square_alpha {record.square_alpha}"
    return None


def implausible_rows(records: Iterable[ModuleRecord]) -> str | None:
    """Explain why no analysis can give these rows: an impossible value, or a matrix that comes twice.

    Args:
        records: all rows of a saved report.

    Returns:
        The reason, None where the rows may be true.
    """
    keys: set[str] = set()
    for record in records:
        if record.key in keys:
            return f"'{record.key}' is there twice"
        if problem := implausible(record):
            return f"'{record.key}': {problem}"
        keys.add(record.key)
    return None


def implausible_digest(digest: str | None) -> str | None:
    """Explain why a text is no SHA-256 of a file of eigenvalues.

    Args:
        digest: of a saved report, which a file's name is made of; None where no eigenvalues were saved.

    Returns:
        The reason, None where it is one.
    """
    if digest is None or _SHA256.fullmatch(digest):
        return None
    return f"its spectra_digest '{shortened(digest)}' is no SHA-256"


def implausible_summary(summary: Summary) -> str | None:
    """Explain why no analysis can give a summary.

    Args:
        summary: that of a saved report.

    Returns:
        The reason, None where the summary may be true.
    """
    counts = ("n_tensors", "n_parameters", "n_matrices", "analysed_parameters")
    if problem := _outside(summary, counts, 0, _MOST_VALUES) or _outside(summary, ("balance_sd", "balance_range"), 0):
        return problem
    for reason, n in (*summary.skipped.items(), *summary.statuses.items()):
        if not 0 <= n <= _MOST_VALUES:
            return f"'{reason}' is counted {n} times"
    if (summary.balance_sd is None) != (summary.balance_range is None):
        return "balance_sd and balance_range do not go together"
    roles = [(role.family, role.role) for role in summary.roles]
    contrasts = [(contrast.basis, contrast.attention) for contrast in summary.contrasts]
    tested = [(laws.family, laws.role) for laws in summary.laws]
    if len(set(roles)) < len(roles) or len(set(tested)) < len(tested) or len(set(contrasts)) < len(contrasts):
        return "a role or a contrast is there twice"
    for name, metric in summary.metrics.items():
        if problem := _outside(metric, ("n",), 1, summary.n_matrices):
            return f"metric {name}: {problem}"
    problems = (
        *map(_implausible_role, summary.roles),
        *map(_implausible_contrast, summary.contrasts),
        *map(_implausible_laws, summary.laws),
    )
    return next((problem for problem in problems if problem is not None), None)


def _implausible_role(role: RoleSummary) -> str | None:
    exponents = tuple(name for name in RoleSummary.__struct_fields__ if "alpha" in name and name != "n_alpha")
    if problem := (
        _outside(role, ("n", "parameters"), 0, _MOST_VALUES)
        or _outside(role, ("n_alpha",), 0, role.n)
        or _outside(role, exponents, 1)
        or _outside(role, ("stable_rank",), 0)
    ):
        return f"{role.family} {role.role}: {problem}"
    for name in ("alpha", "square_alpha"):
        ordered = [getattr(role, f"{name}_min"), getattr(role, name), getattr(role, f"{name}_max")]
        values = [value for value in ordered if value is not None]
        if len(values) not in (0, 3) or values != sorted(values):
            return f"{role.family} {role.role}: {name} has the minimum, median and maximum {ordered}"
    return None


def _implausible_contrast(contrast: Contrast) -> str | None:
    name = f"contrast of {contrast.attention} by {contrast.basis}"
    if problem := (
        _outside(contrast, ("n_layers",), 1, _LARGEST)
        or _outside(contrast, ("n_positive", "random_n_positive"), 0, contrast.n_layers)
        or _outside(contrast, ("p", "p_holm", "auc", "random_p"), 0, 1)
    ):
        return f"{name}: {problem}"
    if contrast.low > contrast.high:
        return f"{name}: its interval is {contrast.low} to {contrast.high}"
    random = (contrast.random_difference, contrast.random_n_positive, contrast.random_p)
    return f"{name}: what random matrices give is {random}" if 0 < random.count(None) < len(random) else None


def _implausible_laws(laws: RoleLaws) -> str | None:
    problem = _outside(laws, ("n", "n_untested"), 0, _MOST_VALUES) or _outside(laws, ("n_not_power_law",), 0, laws.n)
    if problem is None and bool(laws.n) != bool(laws.candidates):
        problem = f"{laws.n} tails were tested, and {len(laws.candidates)} laws fit best"
    return None if problem is None else f"laws of {laws.family} {laws.role}: {problem}"


def _outside(record: Record, names: Iterable[str], low: float, high: float | None = None) -> str | None:
    """Name the first field whose value lies outside of the bounds; None where all lie inside."""
    for name in names:
        value = getattr(record, name)
        if value is not None and (value < low or (high is not None and value > high)):
            return f"{name} is {value}"
    return None
