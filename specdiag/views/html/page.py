"""Building the page from a report, a plan and an audit. Nothing is computed here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec
from markupsafe import Markup

from specdiag.auditing import wording
from specdiag.auditing.records import AuditReport, Finding
from specdiag.decay.plan import DecayPlan
from specdiag.errors import UsageError
from specdiag.files import check_writable, write_atomically
from specdiag.records import ModuleRecord, Source
from specdiag.reference.peers import Peers, Place
from specdiag.reference.ranges import METRICS, ReferenceLike, ReferenceRanges, the_reference
from specdiag.report import SpectralReport
from specdiag.spectra import farms
from specdiag.text import checks
from specdiag.views import plan_sentences, sentences
from specdiag.views.answer import answer
from specdiag.views.cells import number
from specdiag.views.figures.selection import value
from specdiag.views.figures.style import plan_caption
from specdiag.views.html import interactive, provenance, tables
from specdiag.views.html.chart import HEIGHT, WIDTH, Chart, chart
from specdiag.views.html.facts import facts, glossary
from specdiag.views.html.heads import head_map
from specdiag.views.html.heat import Heatmap, heatmap
from specdiag.views.html.rendering import render
from specdiag.views.html.spectrum import Spectrum, spectrum

_SKIPPED_UP_TO = 300
_UNCHECKED = ("Not checked:", "Needs the checkpoint itself:")
"""Sentences of an audit that a page folds: lists of names."""
_EXTREMES = 3
"""Spectra of the heaviest tails on the page itself, and of those nearest to noise."""


class Module(NamedTuple):
    """The panel of one matrix."""

    record: ModuleRecord
    exponent: str
    facts: list[tuple[str, str]]
    chart: Chart | None
    why_not: str
    """Why there is no chart."""
    places: list[Place]
    """Its numbers among those of reference models."""


class CheckFindings(NamedTuple):
    """The findings of one check."""

    first: Finding
    explanation: str
    n: int
    shown: list[tuple[str, str, str]]
    """Module, value and threshold of a few."""


class Plan(NamedTuple):
    """A decay plan."""

    headline: str
    """Its answer; empty where it has none."""
    caption: str
    sentences: list[str]
    table: tables.Table


def html_report(
    report: SpectralReport,
    *,
    plan: DecayPlan | None = None,
    audit: AuditReport | None = None,
    reference: ReferenceLike = None,
    path: str | os.PathLike[str] | None = None,
) -> str:
    """Draw a report as one HTML page that needs no network: findings, tables, heatmap, plan, and all spectra.

    With plotly installed (`pip install plotly`) an opened spectrum can be zoomed. Equal input gives an equal page.

    Args:
        report: from `analyze` or `load_report`; spectra are shown where it carries its eigenvalues.
        plan: a decay plan for it, from `recommend`; None for a page without one.
        audit: an audit of it, from `audit`; None for a page without one.
        reference: ranges to hold its matrices against, from `build_reference`; None for those that come with specdiag.
        path: an .html file to write as well, whole or not at all.

    Returns:
        The page.

    Raises:
        UsageError: `path` is no .html file, or a place that cannot be written.
        SourceError: `reference` is a file that holds no reference.

    Example:
        >>> page = specdiag.html_report(
        ...     report, plan=specdiag.recommend(report), audit=specdiag.audit(report), path="name.html"
        ... )
    """
    checks.instance("report", report, SpectralReport, "from analyze or load_report")
    if plan is not None:
        checks.instance("plan", plan, DecayPlan, "from recommend or load_plan")
    if audit is not None:
        checks.instance("audit", audit, AuditReport, "from specdiag.audit")
    path = None if path is None else checks.path("path", path)
    if path is not None:
        check_target(path)
    page = render_page(report, plan, audit, the_reference(reference))
    if path is not None:
        write_atomically(path, page.encode())
    return page


def check_target(path: Path) -> None:
    """Check before any work that a page can be saved.

    Args:
        path: the file.

    Raises:
        UsageError: it is no .html file, or a place that cannot be written.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a page is saved as .html, not '{path.name}'")
    check_writable(path)


def render_page(
    report: SpectralReport,
    plan: DecayPlan | None,
    audit: AuditReport | None,
    reference: ReferenceRanges,
    words: Mapping[Literal["audit", "recommend"], Callable[[str], str]] = MappingProxyType({}),
) -> str:
    """Draw the page of `html_report`.

    Args:
        report: as there.
        plan: as there.
        audit: as there.
        reference: ranges to hold its matrices against.
        words: turn a sentence of the audit, or of the plan, into the words of who asked for the page.
    """
    of_audit, of_plan = (words.get(name, str) for name in ("audit", "recommend"))
    report = report.in_memory()  # else every spectrum would open the file anew
    drawn = [_drawn(report, r) for r in report]
    links = {r.key: f"m{i}" for i, r in enumerate(report)}
    heat = heatmap(report.records)
    peers = Peers.of(report, reference)
    modules = [_module(r, *drawing, peers) for r, drawing in zip(report, drawn, strict=True)]
    plotly = interactive.plotly()
    covered = [] if audit is None else wording.coverage(audit)
    answered = answer(report, reference)
    return render(
        "report.html.j2",
        (plotly.digest,) if plotly else (),
        report=report,
        source=report.source,
        title=_title(report.source),
        settings=report.settings,
        tail=provenance.tail(report.settings),
        windows=farms.described(report.settings),
        selection=provenance.selection(report.settings),
        coverage=sentences.coverage(report.summary),
        answer=answered,
        found={name for point in answered.points for name in (point.module, *point.others)},
        verdict=_verdict(report),
        audit=audit,
        findings=[] if audit is None else _findings(audit, of_audit),
        audited_by="" if audit is None else _audited_by(audit),
        audited=[of_audit(s) for s in covered if not s.startswith(_UNCHECKED)],
        not_checked=[of_audit(s) for s in covered if s.startswith(_UNCHECKED)],
        roles=tables.role_table(report.summary.roles),
        contrasts=tables.contrast_table(report.summary.contrasts),
        laws=tables.law_table(report.summary.laws),
        heat=heat,
        heads=head_map(report),
        function=tables.role_table(report.summary.function),
        records=tables.record_table(report.records, links),
        skipped=tables.skipped_table(report.skipped[:_SKIPPED_UP_TO]),
        plan=None if plan is None else _plan(report, plan, links, of_plan),
        modules=modules,
        extremes=_extremes(modules, heat),
        glossary=glossary(report),
        links=links,
        width=WIDTH,
        height=HEIGHT,
        provenance=provenance.as_json(report),
        plotly=plotly,
        curves=_json([None if d is None else interactive.curves(d) for d, _ in drawn]) if plotly else "",
    )


def _title(source: Source) -> str:
    """Name a model without the folders above it; a weight file keeps the folder that it lies in."""
    if source.kind not in ("dir", "file"):
        return source.location
    parts = [part for part in Path(source.location).parts if part not in ("/", ".", "..")]
    return "/".join(parts[-2 if source.kind == "file" else -1 :]) or source.location


def _audited_by(audit: AuditReport) -> str:
    """Count the checks of an audit; one of a saved report lacks those that need the checkpoint."""
    covered = audit.coverage
    n = f"{len(covered.checks)} of {len(covered.checks) + len(covered.not_checked)} checks"
    return n if covered.n_others is not None else f"{n}; specdiag audit runs more on the checkpoint itself"


def _drawn(report: SpectralReport, record: ModuleRecord) -> tuple[Spectrum | None, str]:
    try:
        numbers = spectrum(report, record)
    except UsageError as error:
        return None, str(error)
    return numbers, "" if numbers else f"There is no spectrum: {record.status}."


def _verdict(report: SpectralReport) -> list[str]:
    summary, records = report.summary, report.records
    return [
        *sentences.contrast(summary),
        *sentences.few(records),
        *sentences.missing_numbers(records),
        *sentences.tails(records),
        *sentences.laws(summary),
        *sentences.traps(records),
        *sentences.balance(summary),
        *sentences.left_over(summary),
        *report.provenance.notes,
    ]


def _findings(audit: AuditReport, words: Callable[[str], str]) -> list[CheckFindings]:
    return [
        CheckFindings(
            group[0],
            words(wording.explanations([group])[0]),
            len(group),
            [(f.module or "the checkpoint", wording.value(f), wording.expected(f)) for f in group[: wording.FEW]],
        )
        for group in wording.groups(audit)
    ]


def _module(record: ModuleRecord, drawn: Spectrum | None, why_not: str, peers: Peers) -> Module:
    return Module(
        record,
        f"alpha {number(record.alpha, 3)} (null {number(record.alpha_null, 3)}), "
        f"square_alpha {number(record.square_alpha, 3)}",
        facts(record),
        None if drawn is None else chart(drawn),
        why_not,
        [place for metric in METRICS if (place := peers.place(record, metric)) is not None],
    )


def _extremes(modules: Sequence[Module], heat: Heatmap | None) -> list[Module]:
    """Choose the matrices of the smallest and of the largest exponents, by the metric of the heatmap."""
    if heat is None:
        return []
    drawn = [(v, m) for m in modules if m.chart is not None and (v := value(m.record, heat.metric)) is not None]
    ordered = [m for _, m in sorted(drawn, key=lambda pair: pair[0])]
    return ordered if len(ordered) <= 2 * _EXTREMES else [*ordered[:_EXTREMES], *ordered[-_EXTREMES:]]


def _plan(report: SpectralReport, plan: DecayPlan, links: Mapping[str, str], words: Callable[[str], str]) -> Plan:
    beside = [f"{subject}: {fact}." for subject, fact in plan_sentences.instead(plan)]
    sentences = [*beside, *plan_sentences.findings(plan), *plan_sentences.limits(plan)] if plan.entries else []
    if plan.base_weight_decay is None:
        sentences.append("No base decay is known: these are ratios alone.")
    if plan.verdict is not None:
        sentences += [*plan.verdict.reasons, f"Verdict: {plan.verdict.answer}."]
    names = {r.name for r in report}
    foreign = [e.name for e in plan.entries if e.name not in names]
    if foreign:
        sentences.insert(0, f"{len(foreign)} of its Parameters are not in this report, such as {foreign[0]}.")
    return Plan(
        words(plan.headline) if plan.entries else "It has no entries.",
        f"{plan_caption(plan)}.",
        list(map(words, sentences)),
        tables.plan_table(plan, _first_parts(report, links)),
    )


def _first_parts(report: SpectralReport, links: Mapping[str, str]) -> dict[str, str]:
    """Map each Parameter to its panel, or that of its first part where it has several."""
    first: dict[str, str] = {}
    for r in report:
        first.setdefault(r.name, links[r.key])
    return first


def _json(value: object) -> Markup:
    """Write JSON without `<`: nothing in it can end the script element that it lies in."""
    return Markup(msgspec.json.encode(value).decode().replace("<", "\\u003c"))
