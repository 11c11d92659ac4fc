"""The answer of a report: a verdict in words, what stands out, and what was not looked at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from specdiag.architecture.other_config import mismatch
from specdiag.auditing import wording
from specdiag.auditing.audit import audit
from specdiag.auditing.records import AuditReport, Finding
from specdiag.records import ModuleRecord
from specdiag.reference.peers import Peers
from specdiag.reference.ranges import ReferenceLike, ReferenceRanges, the_reference
from specdiag.report import SpectralReport
from specdiag.spectra.square import square_null, square_sd
from specdiag.text.counts import abbreviated, counted
from specdiag.text.places import places
from specdiag.views import form_sentences, sentences

_MOST = 5
"""Points that are shown; the rest is counted."""
_GROUP = 6
"""Matrices of one role that must be there before one of them can stand out."""
_MANY = 12
"""Matrices from which on their own range is a fair measure of how far they spread; fewer must be held to twice that."""
_DEVIATIONS = 5.0
"""Standard deviations over random matrices that a gap must exceed as well."""
_OUTLIERS = 2
_WHOLE = ("incomplete", "untrained")
"""Checks that the verdict itself speaks of."""


@dataclass(frozen=True, slots=True)
class Point:
    """A thing that stands out.

    Attributes:
        module: name of the matrix; None where it is the whole checkpoint.
        others: names of the further matrices that it is true of.
        finding: the number with what it should be, and why it matters.
        advice: what to do.
        severity: `fail`, `warn`, or `info` for what is no fault.
        where: layers and roles that these matrices fill; empty where they fill none.
    """

    module: str | None
    others: tuple[str, ...]
    finding: str
    advice: str
    severity: str
    where: str = ""

    @property
    def more(self) -> str:
        """The further matrices after the first: one by its name, more by their number and place."""
        if len(self.others) == 1:
            return f" and {self.others[0]}"
        where = f" (together {self.where})" if self.where else ""
        return f" and {len(self.others)} more{where}" if self.others else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a report about its model.

    Attributes:
        title: source, architecture and size.
        verdict: one sentence.
        points: what stands out, the worst first.
        n_more: points that are not among them.
        facts: subject and sentence of what else a reader asks first.
    """

    title: str
    verdict: str
    points: tuple[Point, ...]
    n_more: int
    facts: tuple[tuple[str, str], ...]


def answer(report: SpectralReport, reference: ReferenceLike = None) -> Answer:
    """Answer what a person asks first: does it look trained, what stands out, what was not looked at.

    The audit's checks that need no more than the report are made here.

    Args:
        report: of a model, complete or not.
        reference: ranges to hold its matrices against; None for those that come with specdiag.

    Raises:
        SourceError: `reference` is a file that holds no reference.
    """
    reference = the_reference(reference)
    audited = audit(report, reference=reference)
    faults = [point for group in wording.groups(audited) if (point := _of_audit(group, report.records)) is not None]
    points = [*_other_config(report), *faults, *_outliers(report.records)]
    return Answer(
        title=_title(report),
        verdict=_verdict(report, audited, points),
        points=tuple(points[:_MOST]),
        n_more=len(points[_MOST:]),
        facts=tuple(_facts(report, reference)),
    )


def _other_config(report: SpectralReport) -> Iterator[Point]:
    if (told := mismatch(report.provenance.notes)) is not None:
        yield Point(None, (), told, "take config.json and weights from one source, and run specdiag audit", "warn")


def _title(report: SpectralReport) -> str:
    s = report.summary
    parts = [report.provenance.architecture] if report.provenance.architecture else []
    matrices = f"{s.n_matrices} {'matrix' if s.n_matrices == 1 else 'matrices'}"
    return f"{report.source}: {', '.join([*parts, f'{abbreviated(s.n_parameters)} parameters', matrices])}"


def _verdict(report: SpectralReport, audited: AuditReport, points: Sequence[Point]) -> str:
    n_failed = sum(1 + len(point.others) for point in points if point.severity == "fail")
    stands_out = (
        "Nothing stands out"
        if not points
        else f"{len(points)} {'thing stands' if len(points) == 1 else 'things stand'} out"
    )
    if not report.complete:
        return f"Interrupted: only {len(report)} matrices were measured. {stands_out} in them."
    if n_failed:
        return f"Damaged: {counted(n_failed, 'fault')} that no working model has."
    untrained = next((f for f in audited.findings if f.check == "untrained"), None)
    if untrained is not None:
        share = f"{100 * float(untrained.value):.0f} % of its attention and MLP spectra"
        return f"Looks untrained: {share} cannot be told from random weights."
    if _are_updates(report.records):
        return f"These are the updates of an adapter: whether they are trained is not judged. {stands_out}."
    if (reason := audited.coverage.not_checked.get("random")) is not None:
        return f"Its spectra do not show whether it was trained: {reason}. {stands_out}."
    if wording.is_selection(audited.coverage):
        return f"The {counted(len(report), 'selected matrix', 'selected matrices')} look trained. {stands_out}."
    in_blocks = {r.key for r in report.records if r.family in ("attention", "mlp")}
    n_random = len(in_blocks & {f.module for f in audited.findings if f.check == "random"})
    if n_random > 1:
        return f"Looks trained but for {n_random} of {len(in_blocks)} attention and MLP matrices. {stands_out}."
    return f"Looks like a trained model. {stands_out}."


def _are_updates(records: Iterable[ModuleRecord]) -> bool:
    return all(r.n_eigenvalues < min(r.rows, r.cols) * r.n_slices for r in records)


def _of_audit(group: Sequence[Finding], records: Sequence[ModuleRecord]) -> Point | None:
    """Make one point of all findings of a check, the worst of them named."""
    first = group[0]
    if first.severity == "info" or first.check in _WHOLE:
        return None
    limit = f", expected {wording.expected(first)}" if wording.expected(first) else ""
    differ = len({wording.value(finding) for finding in group}) > 1
    value = wording.value(first) + (" in the first" if differ else "")
    finding = f"{value}{limit}. {wording.capitalised(first.why)}"
    others = tuple(finding.module or "the checkpoint" for finding in group[1:])
    one_stack = len({r.component for r in records if r.layer is not None}) == 1
    model = [(r.key, r.layer, r.role) for r in records] if one_stack else []
    where = places({finding.module for finding in group if finding.module is not None}, model)
    return Point(first.module, others, finding, first.advice, first.severity, where)


def _outliers(records: Sequence[ModuleRecord]) -> Iterator[Point]:
    """Find matrices whose square_alpha lies farther from all others of their role than these lie from one another."""
    roles: dict[tuple[object, ...], list[tuple[float, ModuleRecord]]] = defaultdict(list)
    for r in records:
        if r.layer is not None and r.square_alpha is not None:
            roles[r.component, r.family, r.role, r.cross_attention].append((r.square_alpha, r))
    found: list[tuple[float, Point]] = []
    for values in (sorted(role, key=lambda pair: pair[0]) for role in roles.values() if len(role) >= _GROUP):
        for (value, r), others, how in ((values[-1], values[:-1], "lighter"), (values[0], values[1:], "heavier")):
            low, high = others[0][0], others[-1][0]
            gap = max(value - high, low - value)
            least = (1 if len(values) >= _MANY else 2) * (high - low)
            if gap > max(least, _DEVIATIONS * square_sd(r.living_shape)):
                finding = (
                    f"{how}-tailed than every other {r.role}: square_alpha {value:.2f}, the others {low:.2f} to "
                    f"{high:.2f}, random matrices {square_null(r.living_shape):.2f}"
                )
                found.append(
                    (gap, Point(r.key, (), finding, "see whether other checkpoints of the run have it", "info"))
                )
    yield from (point for _, point in sorted(found, key=lambda pair: -pair[0])[:_OUTLIERS])


def _facts(report: SpectralReport, reference: ReferenceRanges) -> Iterator[tuple[str, str]]:
    if verdict := sentences.contrast_answer(report.summary):
        yield "Attention and MLP", verdict
    if balanced := form_sentences.contrast_answer(report.records):
        yield "Balanced form", balanced
    distances = [r.ks for r in report.records if r.ks is not None]
    if distances:
        near = sum(d <= sentences.KS_LIMIT for d in distances)
        follow = f"{near} of {len(distances)} tails follow one"
        yield "Power laws", f"{follow}; elsewhere alpha measures how far the upper eigenvalues spread"
    yield "Reference", Peers.of(report, reference).standing(report.records)
    yield "Not checked", "config.json, values of norms and biases (specdiag audit does)"
