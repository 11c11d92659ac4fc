"""Which rows of a report a figure shows, and which of their columns. An unknown name lists the available ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from statistics import median
from typing import Literal

from msgspec.structs import fields

from specdiag.errors import UsageError
from specdiag.records import FAMILIES, ROLES, ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.square import square_null
from specdiag.text import checks
from specdiag.text.globs import check_globs, chosen
from specdiag.views.cells import role_label

Basis = Literal["alpha", "square"]
Place = tuple[str | None, int | None, str, str | None, int]
"""Component, layer, role, part, and which of several that share these."""
_OF_EACH = 4
_COLUMNS: dict[str, str] = {"alpha": "alpha", "square": "square_alpha"}


def choose(
    report: SpectralReport,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
) -> list[ModuleRecord]:
    """Choose the records with such names, layers and roles, in stored order.

    Args:
        report: from `analyze` or `load_report`.
        include: globs on names; empty for all.
        layers: one or several; empty for all.
        roles: one or several; empty for all.

    Raises:
        UsageError: a name, layer or role does not exist, and the message lists those that do; or nothing is in all of
            these.
    """
    check_report(report)
    include, roles = checks.texts("include", include), checks.texts("roles", roles)
    several = tuple(layers) if isinstance(layers, (tuple, list, set, range)) else (layers,)
    layers = [checks.whole("layers", layer) for layer in several]
    records = list(report)
    check_globs("include", include, [(r.key, r.name) for r in records], f"matrices of {report.source}")
    for kind, requested, present in (
        ("role", roles, [r.role for r in in_role_order(records)]),
        ("layer", layers, sorted({r.layer for r in records if r.layer is not None})),
    ):
        unknown = [w for w in requested if w not in present]
        if unknown:
            raise UsageError(f"{report.source} has no {kind} {unknown[0]}; it has {_ends(present)}")
    selected = [
        r
        for r in records
        if chosen((r.key, r.name), include, ()) and (not layers or r.layer in layers) and (not roles or r.role in roles)
    ]
    if not selected:
        raise UsageError(f"no matrix of {report.source} is in all that was asked for: leave out a name, layer or role")
    return selected


def column(report: SpectralReport, basis: Basis) -> str:
    """Name the column that a basis stands for.

    Args:
        report: from `analyze` or `load_report`.
        basis: `alpha` or `square`.

    Raises:
        UsageError: there is no such basis, or the report has no value of it.
    """
    checks.one_of("basis", basis, _COLUMNS)
    return with_values(report, _COLUMNS[basis])


def with_values(report: SpectralReport, metric: str) -> str:
    """Check the name of a numeric column, and give it back.

    Args:
        report: from `analyze` or `load_report`.
        metric: the name.

    Raises:
        UsageError: there is no such column, or the report has no value of it.
    """
    check_report(report)
    checks.one_of("metric", metric, metrics())
    if all(value(r, metric) is None for r in report):
        raise UsageError(
            f"{report.source}: no matrix of this report has a value of {metric}: choose another, or analyze again"
        )
    return metric


def check_report(report: object, name: str = "report") -> None:
    """Check that an argument is a report.

    Args:
        report: the argument.
        name: of the argument.

    Raises:
        UsageError: it is anything else.
    """
    checks.instance(name, report, SpectralReport, "from analyze or load_report")


def value(record: ModuleRecord, column: str) -> float | None:
    """Read a number of a record; None where it has none.

    Args:
        record: a row of a report.
        column: one of `metrics`.
    """
    return getattr(record, column)


def null(record: ModuleRecord, column: str) -> float | None:
    """Compute the score of noise of the record's shape.

    Args:
        record: a row of a report.
        column: `alpha` or `square_alpha`; others have none.

    Returns:
        The score; None where there is none.
    """
    if column == "alpha":
        return record.alpha_null
    if column == "square_alpha" and record.square_alpha is not None:
        return square_null(record.living_shape)
    return None


def common_null(records: Iterable[ModuleRecord], column: str) -> float | None:
    """Give the score of noise that all shapes share but for hundredths; None where it depends on the shape.

    Args:
        records: rows of a report.
        column: any numeric column.
    """
    nulls = [v for r in records if column == "square_alpha" and (v := null(r, column)) is not None]
    return median(nulls) if nulls else None


def in_role_order(records: Iterable[ModuleRecord]) -> list[ModuleRecord]:
    """Sort by family and role, in the order of every table and legend; cross-attention follows its own role."""
    return sorted(records, key=lambda r: (FAMILIES.index(r.family), ROLES.index(r.role), r.cross_attention))


def by_place(report: SpectralReport) -> dict[Place, ModuleRecord]:
    """Map each place in the network to its record: prefixes of names differ between checkpoints of one model."""
    records: dict[Place, ModuleRecord] = {}
    for r in report:
        place, nth = (r.component, r.layer, role_label(r), r.part), 0
        while (*place, nth) in records:
            nth += 1
        records[*place, nth] = r
    return records


def few_of_each(records: Sequence[ModuleRecord]) -> tuple[list[ModuleRecord], list[str]]:
    """Take the first few matrices of each role in a layer, for there may be hundreds of experts.

    Args:
        records: rows of a report.

    Returns:
        Those to draw; a note where others are left out.
    """
    counts: Counter[tuple[str | None, int, str]] = Counter()
    first_few: list[ModuleRecord] = []
    for r in records:
        if r.layer is not None:
            place = (r.component, r.layer, role_label(r))
            counts[place] += 1
            if counts[place] > _OF_EACH:
                continue
        first_few.append(r)
    if len(first_few) == len(records):
        return first_few, []
    return first_few, [f"drawn: the first {_OF_EACH} of up to {max(counts.values())} matrices of a role in a layer"]


@cache
def metrics() -> tuple[str, ...]:
    """List the numeric columns of a record, without those that name it."""
    numeric = (int, float, int | None, float | None)
    return tuple(f.name for f in fields(ModuleRecord) if f.type in numeric and f.name not in ("layer", "head"))


def _ends(values: Sequence[object]) -> str:
    unique = list(dict.fromkeys(values))
    if not unique:
        return "none"
    return ", ".join(map(str, unique)) if len(unique) <= 16 else f"{unique[0]} to {unique[-1]}"
