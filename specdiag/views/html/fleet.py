"""The page of a fleet: its models, the one with the most findings first, and what was found in each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from specdiag.auditing import wording
from specdiag.auditing.fleets.models import FleetModel
from specdiag.auditing.fleets.rows import FleetRow
from specdiag.auditing.records import SEVERITIES, Coverage
from specdiag.errors import SourceError
from specdiag.files import json_decoder
from specdiag.system.distributions import version
from specdiag.text.names import listed
from specdiag.text.printable import printable
from specdiag.views.cells import NOTHING, number
from specdiag.views.columns import Column
from specdiag.views.html import tables
from specdiag.views.html.rendering import as_text, render

_ENDS = {"pass": "passed", "warn": "with warnings", "fail": "failed", "error": "not audited"}

_RANKS = {severity: rank for rank, severity in enumerate(SEVERITIES)}


class CheckCount(NamedTuple):
    """A check, and how much it found in all models."""

    first: FleetRow
    n_models: int
    n_findings: int


class Audited(NamedTuple):
    """A model that was audited."""

    row: FleetRow
    groups: list[tuple[FleetRow, ...]]
    """Its findings by check."""


class Panel(NamedTuple):
    """A model in full."""

    row: FleetRow
    groups: list[tuple[FleetRow, ...]]
    extent: list[str]


def fleet_page(models: Sequence[FleetModel], title: str) -> str:
    """Draw the audits of many models as one HTML page that needs no network.

    Args:
        models: in the order in which they are listed.
        title: the name of the table.

    Returns:
        The page. Equal input gives an equal page.

    Raises:
        SourceError: the coverage of a model is damaged.
    """
    audited = [Audited(model.row, _by_check(model.findings)) for model in models if model.row.verdict != "error"]
    links = {model.row.source: f"m{place}" for place, model in enumerate(audited)}
    return render(
        "fleet.html.j2",
        title=title,
        generator=version("specdiag"),
        made=_made(models),
        ends=_ends(models),
        models=tables.table(audited, _model_columns(), lambda model: links[model.row.source]),
        checks=tables.table(_checks(audited), _check_columns()),
        errors=tables.table([model.row for model in models if model.row.verdict == "error"], _error_columns()),
        panels=[Panel(model.row, model.groups, _extent(model.row)) for model in audited],
        words=_words,
        explanation=_explanation,
        few=wording.FEW,
        provenance=_provenance(models),
    )


def _made(models: Sequence[FleetModel]) -> str:
    """Say when the models were audited, and by which specdiag."""
    times = sorted(model.row.audited for model in models if model.row.audited)
    versions = sorted({model.row.specdiag for model in models if model.row.specdiag})
    span = " to ".join(dict.fromkeys((*times[:1], *times[-1:])))
    return f"{span}, specdiag {listed(versions)}"


def _ends(models: Sequence[FleetModel]) -> str:
    counts = Counter(model.row.verdict for model in models)
    ends = [f"{counts[verdict]} {end}" for verdict, end in _ENDS.items() if counts[verdict]]
    return f"{len(models)} models: {', '.join(ends) or 'none'}."


def _checks(models: Iterable[Audited]) -> list[CheckCount]:
    """Count what each check found: the worst severity first, then the check that most models fail."""
    groups = [group for model in models for group in model.groups]
    first = {_kind(group[0]): group[0] for group in groups}
    n_models = Counter(_kind(group[0]) for group in groups)
    n_findings = Counter[tuple[str, int]]()
    for group in groups:
        n_findings[_kind(group[0])] += len(group)
    found = [CheckCount(row, n_models[kind], n_findings[kind]) for kind, row in first.items()]
    return sorted(found, key=lambda c: (_rank(c.first), -c.n_models, c.first.check or ""))


def _by_check(findings: Sequence[FleetRow]) -> list[tuple[FleetRow, ...]]:
    """Group the findings of a model by check, the worst first."""
    groups: dict[tuple[str, int], list[FleetRow]] = defaultdict(list)
    for finding in findings:
        groups[_kind(finding)].append(finding)
    return sorted(map(tuple, groups.values()), key=lambda group: _rank(group[0]))


def _kind(finding: FleetRow) -> tuple[str, int]:
    """Give check and severity, which thresholds may change from model to model."""
    return finding.check or "", _rank(finding)


def _rank(finding: FleetRow) -> int:
    return _RANKS[finding.severity or "info"]


def _words(finding: FleetRow) -> str:
    """Write a finding on a line: where, and what."""
    return f"{finding.module or 'the checkpoint'}: {finding.words or ''}"


def _explanation(finding: FleetRow) -> str:
    return f"{wording.capitalised(finding.why or '')}. What to do: {finding.advice or ''}."


def _extent(row: FleetRow) -> list[str]:
    try:
        return wording.extent(_decode((row.coverage or "").encode()))
    except msgspec.DecodeError as error:
        raise SourceError(f"the coverage of '{printable(row.source)}' is damaged ({error}): audit it again") from error


def _provenance(models: Iterable[FleetModel]) -> object:
    """Write how many models were audited with which settings as JSON."""
    settings = Counter(model.row.settings or "" for model in models)
    made_with = [{"settings": text, "models": n} for text, n in settings.most_common()]
    return as_text(msgspec.json.format(msgspec.json.encode(made_with), indent=2).decode())


def _model_columns() -> list[Column[Audited]]:
    return [
        Column("model", lambda m: m.row.source, right=False),
        Column("verdict", lambda m: m.row.verdict or NOTHING, right=False),
        Column("fail", lambda m: str(m.row.counts["fail"]), help="findings that no working checkpoint has"),
        Column("warn", lambda m: str(m.row.counts["warn"]), help="findings that are worth a look"),
        Column("info", lambda m: str(m.row.counts["info"]), help="facts that are no fault"),
        Column("checks that fail or warn", _failing, right=False),
        Column("matrices", lambda m: number(m.row.n_matrices)),
        Column("checks made", lambda m: number(m.row.n_checks)),
        Column("decay", lambda m: m.row.decay or NOTHING, right=False, help="answer on the stated weight decay"),
    ]


def _failing(model: Audited) -> str:
    names = dict.fromkeys(group[0].check for group in model.groups if group[0].severity != "info")
    return listed(names) or NOTHING


def _check_columns() -> list[Column[CheckCount]]:
    return [
        Column("check", lambda c: c.first.check or "", right=False),
        Column("severity", lambda c: c.first.severity or "", right=False),
        Column("models", lambda c: str(c.n_models)),
        Column("findings", lambda c: str(c.n_findings)),
        Column("why it matters", lambda c: c.first.why or "", right=False, wraps=True),
    ]


def _error_columns() -> list[Column[FleetRow]]:
    return [
        Column("model", lambda row: row.source, right=False),
        Column("why it was not audited", lambda row: row.error or "", right=False, wraps=True),
    ]


_decode = json_decoder(Coverage)
