"""The fit test of a report: the law that each tail follows, and those of each role, from the eigenvalues alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from msgspec.structs import replace as replace_record

from specdiag.errors import UsageError
from specdiag.records import FAMILIES, ROLES, Family, LawName, ModuleRecord, Role, RoleLaws, stored_role
from specdiag.report import SpectralReport
from specdiag.spectra.fit_test import (
    FitComparison,
    Ratios,
    against,
    candidates,
    pooled_ratios,
    power_law_p,
    untested,
)
from specdiag.text import checks

_COLUMNS: dict[LawName, str] = {
    "truncated-power-law": "llr_truncated",
    "exponential": "llr_exponential",
    "lognormal": "llr_lognormal",
    "mp-bulk": "llr_mp",
}


def fit_test(report: SpectralReport) -> SpectralReport:
    """Say which law the tail of each matrix follows: power law, truncated power law, exponential, lognormal, noise.

    `analyze(..., fit_test=True)` gives the same; this takes a saved report. `report.compare_laws(name)` has the
    parameters of the laws and the ratio of each pair.

    Args:
        report: with its eigenvalues.

    Returns:
        The report with `best_law`, `power_law_p` and the ratios of each matrix, and `summary.laws` with a row for each
        role. A matrix without an exponent, or with fewer than 50 eigenvalues in its tail, has none.

    Raises:
        UsageError: the report was saved without its eigenvalues, or made with tail='farms'.
        SourceError: the file with the eigenvalues is damaged, or is another report's.

    Example:
        >>> tested = specdiag.fit_test(specdiag.analyze("org/name", tail_fraction=0.8))
        >>> [(laws.role, laws.candidates) for laws in tested.summary.laws][:1]
        [('q', ('mp-bulk',))]
    """
    checks.instance("report", report, SpectralReport, "from analyze or load_report")
    if report.settings.tail == "farms":
        raise UsageError("the fit test takes eigenvalues of whole matrices, and tail='farms' fits those of windows")
    report = report.in_memory()
    records: list[ModuleRecord] = []
    roles: dict[tuple[Family, Role], list[Ratios | None]] = defaultdict(list)
    for record in report:
        found = report.compare_laws(record.key) if untested(record) is None else None
        records.append(record if found is None else _with_laws(record, found))
        roles[record.family, stored_role(record.role)].append(None if found is None else found.ratios)
    order = sorted(roles, key=lambda g: (FAMILIES.index(g[0]), ROLES.index(g[1])))
    return replace(
        report,
        settings=replace_record(report.settings, fit_test=True),
        records=tuple(records),
        summary=replace_record(report.summary, laws=tuple(_role(*group, roles[group]) for group in order)),
    )


def _with_laws(record: ModuleRecord, found: FitComparison) -> ModuleRecord:
    llr = {
        column: against(found.ratios, law, "power-law").value for law, column in _COLUMNS.items() if law in found.laws
    }
    return replace_record(record, best_law=found.best or "undecided", power_law_p=power_law_p(found.ratios), **llr)


def _role(family: Family, role: Role, parts: list[Ratios | None]) -> RoleLaws:
    tested = [part for part in parts if part is not None]
    ratios = pooled_ratios(tested)
    return RoleLaws(
        family=family,
        role=role,
        n=len(tested),
        n_untested=len(parts) - len(tested),
        n_not_power_law=sum("power-law" not in candidates(part) for part in tested),
        candidates=candidates(ratios) if ratios else (),
        llr={law: against(ratios, law, "power-law").value for law in _COLUMNS if ("power-law", law) in ratios},
    )
