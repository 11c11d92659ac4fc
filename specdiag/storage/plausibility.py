"""Whether a saved row can be one of a matrix. What is refused here holds for every row that was ever measured."""

from __future__ import annotations

from collections.abc import Iterable

from specdiag.records import ModuleRecord

_LARGEST = 1 << 48
"""More than a side or a count of a stored matrix can be."""
_LAST_LAYER = 99_999
"""No name gives a layer beyond it: figures and audits have a place for every layer up to the last."""
_SIDES = ("rows", "cols", "n_slices")
_SUBSETS = ("pl_k", "n_zero", "matrix_rank", "mp_spikes", "detx_k", "rand_spikes")
"""Columns that count eigenvalues of the spectrum."""
_COUNTS = (
    "k", "n_eigenvalues", "n_nonfinite", "n_denormal", "n_saturated", "n_dead_rows", "n_dead_cols", "living_rows",
    "living_cols",
)  # fmt: skip
_EXPONENTS = ("alpha", "alpha_null", "square_alpha", "alpha_25", "alpha_50", "alpha_75", "pl_alpha")
_POSITIVE = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank", "rand_spectral_norm")


def implausible(record: ModuleRecord) -> str | None:
    """Why no measurement gives this row; None where one may."""
    for names, low, high in (
        (_SIDES, 1, _LARGEST),
        (("layer",), 0, _LAST_LAYER),
        (_COUNTS, 0, _LARGEST),
        (_SUBSETS, 0, max(record.n_eigenvalues, 0)),
        (_EXPONENTS, 1, None),
        (_POSITIVE, 0, None),
    ):
        for name in names:
            value = getattr(record, name)
            if value is not None and (value < low or (high is not None and value > high)):
                return f"{name} is {value}"
    if record.n_eigenvalues > record.n_slices * min(record.rows, record.cols):
        return f"{record.n_eigenvalues} eigenvalues of {record.rows} x {record.cols}"
    if (record.alpha is not None) != (record.status == "ok"):
        return f"its status is {record.status} and its alpha {record.alpha}"
    return None


def implausible_rows(records: Iterable[ModuleRecord]) -> str | None:
    """What is wrong with the rows of a report: a value that cannot be, or a matrix that is there twice."""
    seen: set[str] = set()
    for record in records:
        if record.key in seen:
            return f"'{record.key}' is there twice"
        if problem := implausible(record):
            return f"'{record.key}': {problem}"
        seen.add(record.key)
    return None
