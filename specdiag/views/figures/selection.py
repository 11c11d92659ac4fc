"""Which rows of a report a figure shows, and which of their columns. An unknown name lists the available ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
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
    """The records with such names (globs), layers and roles, in stored order; all of them where nothing is asked.

    Raises:
        UsageError: something that was asked for is not there; what is there is listed.
    """
    check_report(report)
    include, roles = checks.texts("include", include), checks.texts("roles", roles)
    wanted = tuple(layers) if isinstance(layers, (tuple, list, set, range)) else (layers,)
    layers = [checks.whole("layers", layer) for layer in wanted]
    records = list(report)
    check_globs("include", include, [(r.key, r.name) for r in records], f"matrices of {report.source}")
    for what, wanted, there in (
        ("role", roles, [r.role for r in in_role_order(records)]),
        ("layer", layers, sorted({r.layer for r in records if r.layer is not None})),
    ):
        missing = [w for w in wanted if w not in there]
        if missing:
            raise UsageError(f"{report.source} has no {what} {missing[0]}; it has {_ends(there)}")
    found = [
        r
        for r in records
        if chosen((r.key, r.name), include, ()) and (not layers or r.layer in layers) and (not roles or r.role in roles)
    ]
    if not found:
        raise UsageError(f"no matrix of {report.source} is in all that was asked for: leave out a name, layer or role")
    return found


def column(report: SpectralReport, basis: Basis) -> str:
    """The column that a basis stands for.

    Raises:
        UsageError: there is no such basis, or the report has no value of it.
    """
    checks.one_of("basis", basis, _COLUMNS)
    return with_values(report, _COLUMNS[basis])


def with_values(report: SpectralReport, metric: str) -> str:
    """The name of a numeric column, checked.

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
    """Raise UsageError unless it is a report."""
    checks.instance(name, report, SpectralReport, "from analyze or load_report")


def value(record: ModuleRecord, column: str) -> float | None:
    """Read a number of a record."""
    return getattr(record, column)


def null(record: ModuleRecord, column: str) -> float | None:
    """Compute the score of noise of the record's shape in `alpha` or `square_alpha`; None elsewhere."""
    if column == "alpha":
        return record.alpha_null
    if column == "square_alpha" and record.square_alpha is not None:
        return square_null(record.living_shape)
    return None


def in_role_order(records: Iterable[ModuleRecord]) -> list[ModuleRecord]:
    """By family and role, in the order of every table and legend; cross-attention after its own role."""
    return sorted(records, key=lambda r: (FAMILIES.index(r.family), ROLES.index(r.role), r.cross_attention))


def by_place(report: SpectralReport) -> dict[Place, ModuleRecord]:
    """Each record by its place in the network: names of one model differ between checkpoints by their prefixes."""
    found: dict[Place, ModuleRecord] = {}
    for r in report:
        place, nth = (r.component, r.layer, role_label(r), r.part), 0
        while (*place, nth) in found:
            nth += 1
        found[*place, nth] = r
    return found


def few_of_each(records: Sequence[ModuleRecord]) -> tuple[list[ModuleRecord], list[str]]:
    """The first few matrices of each role in a layer, and a note where that leaves some out: experts are hundreds."""
    met: Counter[tuple[str | None, int, str]] = Counter()
    kept: list[ModuleRecord] = []
    for r in records:
        if r.layer is not None:
            place = (r.component, r.layer, role_label(r))
            met[place] += 1
            if met[place] > _OF_EACH:
                continue
        kept.append(r)
    if len(kept) == len(records):
        return kept, []
    return kept, [f"of up to {max(met.values())} matrices of a role in a layer the first {_OF_EACH} are drawn"]


@cache
def metrics() -> tuple[str, ...]:
    """The numeric columns of a record."""
    numeric = (int, float, int | None, float | None)
    return tuple(f.name for f in fields(ModuleRecord) if f.type in numeric and f.name != "layer")


def _ends(there: Sequence[object]) -> str:
    known = list(dict.fromkeys(there))
    if not known:
        return "none"
    return ", ".join(map(str, known)) if len(known) <= 16 else f"{known[0]} to {known[-1]}"
