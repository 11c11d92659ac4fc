"""`compare`: the differences between two checkpoints or reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from specdiag.analysis import options
from specdiag.analysis.options import ComparedArguments
from specdiag.checkpoint.opening import Opening
from specdiag.comparison.changes import make_change
from specdiag.comparison.function import function_changes, function_roles, sentences
from specdiag.comparison.identities import match_by_role, reordered
from specdiag.comparison.matching import Matching, match
from specdiag.comparison.records import METRICS, TAIL_METRICS, Comparison, Delta, ModuleChange, Reshaped, Unmatched
from specdiag.comparison.sides import Entry, Selection, Side, load_if_saved, open_side, require_stream, shape
from specdiag.comparison.statistics import balance, role_changes, totals
from specdiag.errors import SourceError, UsageError
from specdiag.records import ROLES, ModuleRecord, Settings, key
from specdiag.report import SpectralReport
from specdiag.spectra.farms import described
from specdiag.text import checks

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource
    from specdiag.checkpoint.tensors import Checkpoint
    from specdiag.comparison.difference import Pair

_SHARED = ("tail", "tail_fraction", "function", "experts", "seed")
"""Settings of a report that the other side is opened and analysed with."""
_CHANGE_NOTHING = ("cache", "ranks")
"""Options that come with two reports as well."""


def compare(
    before: AnalysisSource | SpectralReport,
    after: AnalysisSource | SpectralReport,
    *,
    weights: bool | None = None,
    subspace: int = 10,
    base: str | os.PathLike[str] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    roles: str | Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[ComparedArguments],
) -> Comparison:
    """Compare two checkpoints, matrix by matrix.

    Names are matched as they are, or after one common prefix (`bert.`, `model.`) is taken off one side or replaced by
    another (`model.language_model.`); else by layer, role and shape, as between the names of Meta, GGUF and Hugging
    Face. Whatever has no counterpart, or another shape, is listed.

    Args:
        before: a report, saved or not, anything that `analyze` takes, or a run
            directory, of which the newest checkpoint is taken.
        after: likewise.
        weights: also compare the weights themselves, which needs two checkpoints; None compares them where both are.
        subspace: how many leading singular directions before and after are compared; 0 for none, which saves about a
            quarter of the time.
        base: the model that a side which is an adapter changes; without it its updates are compared.
        include: globs on names of either side; only these.
        exclude: globs on names of either side; not these.
        roles: only these roles.
        progress: as for `analyze`; called over the weights before, those after, the differences, and the
            subspaces.
        analysis: further arguments of `analyze`, for both sides alike.

    Returns:
        The comparison: changes by matrix, by role and in total, and what only one side has.

    Raises:
        UsageError: an option makes no sense for these sources.
        SourceError: a source cannot be read, or no matrix before has its name after.

    Example:
        >>> found = specdiag.compare("org/base", "org/fine-tune")
        >>> [(role.role, round(role.relative_change, 3)) for role in found.roles][:2]
        [('q', 0.1), ('k', 0.1)]
    """
    options.check(analysis, options.COMPARED)
    Opening.of({"base": base})
    selection = Selection(
        checks.texts("include", include), checks.texts("exclude", exclude), checks.each_of("roles", roles, ROLES)
    )
    subspace = checks.whole("subspace", subspace, least=0, hint="0 leaves the angles out")
    weights = None if weights is None else checks.flag("weights", weights)
    checks.function("progress", progress)
    a, b = load_if_saved(before), load_if_saved(after)
    arguments = _same_settings([side.settings for side in (a, b) if isinstance(side, SpectralReport)], analysis)
    opening, computing = options.split(arguments)
    require_stream(opening, (a, b))
    side_a, side_b = (open_side(source, base, opening, analysis) for source in (a, b))
    has_weights = side_a.checkpoint is not None and side_b.checkpoint is not None
    if weights and not has_weights:
        raise UsageError("a saved report holds no weights: give both checkpoints, or leave the weights out")
    matched = _Matched.of(side_a, side_b, selection)
    matched.require_pairs()

    report_a = side_a.analyse((p[0] for p in matched.pairs), computing, progress)
    report_b = side_b.analyse((p[1] for p in matched.pairs), computing, progress)
    of_a, of_b = ({r.key: r for r in report} for report in (report_a, report_b))
    modules, only_before, only_after, reshaped = matched.sort_out(report_a, report_b)

    deltas: dict[str, Delta] = {}
    if has_weights and weights is not False:
        assert side_a.checkpoint is not None
        assert side_b.checkpoint is not None
        from specdiag.comparison.deltas import measure_deltas

        as_stored = [names for names in modules if names[0] not in reordered(matched.by_role, matched.a)]
        pairs = _pairs(as_stored, side_a.checkpoint, side_b.checkpoint)
        of_names = {name: (of_a[ka], of_b[kb]) for ka, kb, name in modules}
        deltas = measure_deltas(
            pairs,
            of_names,
            side_a.checkpoint,
            side_b.checkpoint,
            subspace=subspace,
            options=computing,
            progress=progress,
        )
    compared = _compared_metrics(report_a, report_b)
    changes = tuple(make_change(name, of_a[ka], of_b[kb], compared, deltas.get(name)) for ka, kb, name in modules)
    relative_change, cosine = totals(changes)
    function = [
        [r for r in report.function if selection.wants((r.key, r.name), r.role)] for report in (report_a, report_b)
    ]
    of_function = function_changes(function[0], function[1], compared)
    by_role = function_roles(of_function)
    return Comparison(
        before=report_a.source,
        after=report_b.source,
        settings_before=report_a.settings,
        settings_after=report_b.settings,
        architecture_before=report_a.provenance.architecture,
        architecture_after=report_b.provenance.architecture,
        prefix_before=matched.matching.prefix_before,
        prefix_after=matched.matching.prefix_after,
        relative_change=relative_change,
        cosine=cosine,
        balance=balance(changes),
        roles=role_changes(changes),
        modules=changes,
        only_before=only_before,
        only_after=only_after,
        reshaped=reshaped,
        function=of_function,
        function_roles=by_role,
        notes=(
            *_notes(report_a, report_b, matched, changes, weights_wanted=weights is not False),
            *sentences(by_role, len(function[0]), len(function[1])),
        ),
    )


Names = tuple[str, str, str]
"""Key before, key after, common name."""


@dataclass(frozen=True, slots=True)
class _Matched:
    """Both listings, and the names that were selected of them."""

    matching: Matching
    by_role: dict[str, str]
    a: dict[str, Entry]
    b: dict[str, Entry]
    pairs: tuple[Names, ...]
    alone_a: tuple[str, ...]
    alone_b: tuple[str, ...]

    @classmethod
    def of(cls, side_a: Side, side_b: Side, selection: Selection) -> _Matched:
        a, b = side_a.listing(), side_b.listing()
        matching = match(a, b, lambda before, after: a[before].shape == b[after].shape)
        by_role = _by_role(matching, a, b)
        selection.check([n for side in (a, b) for k, e in side.items() if e.role is not None for n in (k, e.name)])

        def alone(side: dict[str, Entry], paired: set[str]) -> tuple[str, ...]:
            return tuple(k for k, e in side.items() if k not in paired and selection.wants((k, e.name), e.role))

        pairs = tuple(
            (ka, kb, name)
            for ka, kb, name in (*matching.pairs, *((ka, kb, ka) for ka, kb in by_role.items()))
            if selection.wants((ka, kb, a[ka].name, b[kb].name), a[ka].role or b[kb].role)
        )
        left, right = ({p[side] for p in matching.pairs} for side in (0, 1))
        left, right = left | by_role.keys(), right | set(by_role.values())
        return cls(matching, by_role, a, b, pairs, alone(a, left), alone(b, right))

    def require_pairs(self) -> None:
        """Raise SourceError where no matrix has a counterpart."""
        if any(self.a[ka].role is not None and self.b[kb].role is not None for ka, kb, _ in self.pairs):
            return
        looks = " and ".join(
            f"'{next((k for k, e in side.items() if e.role is not None), '')}'" for side in (self.a, self.b)
        )
        hint = f"; without {_joined(self.matching.ambiguous)} alike they would" if self.matching.ambiguous else ""
        raise SourceError(
            f"no matrix of BEFORE has its name in AFTER, names look like {looks}{hint}: are these one model?"
        )

    def sort_out(
        self, report_a: SpectralReport, report_b: SpectralReport
    ) -> tuple[list[Names], tuple[Unmatched, ...], tuple[Unmatched, ...], tuple[Reshaped, ...]]:
        """List what is compared, what only A and only B have, and what has two shapes."""
        rows_a, rows_b = ({r.key: r for r in report} for report in (report_a, report_b))
        left_a, left_b = ({key(s.name, s.part): s.reason for s in report.skipped} for report in (report_a, report_b))
        compared: list[Names] = []
        only: tuple[list[Unmatched], list[Unmatched]] = ([], [])
        reshaped: list[Reshaped] = []
        for ka, kb, name in self.pairs:
            in_a, in_b = rows_a.get(ka), rows_b.get(kb)
            shapes = self.a[ka].shape, self.b[kb].shape
            if in_a is not None and in_b is not None and shape(in_a) == shape(in_b):
                compared.append((ka, kb, name))
            elif (in_a is None) == (in_b is None):
                if shapes[0] != shapes[1]:
                    reshaped.append(
                        Reshaped(name=name, role=self.a[ka].role, shape_before=shapes[0], shape_after=shapes[1])
                    )
            elif in_a is not None:
                only[0].append(_unmatched(ka, self.a[ka], f"after: {left_b.get(kb, 'not analysed')}"))
            else:
                only[1].append(_unmatched(kb, self.b[kb], f"before: {left_a.get(ka, 'not analysed')}"))
        for side, entries, alone, other in ((0, self.a, self.alone_a, "after"), (1, self.b, self.alone_b, "before")):
            only[side].extend(_unmatched(k, entries[k], f"no such name {other}") for k in alone)
        return compared, tuple(only[0]), tuple(only[1]), tuple(reshaped)


def _by_role(matching: Matching, a: Mapping[str, Entry], b: Mapping[str, Entry]) -> dict[str, str]:
    """Pair what names leave over by what it is, unless two prefixes tie: then nothing is guessed."""
    if matching.ambiguous:
        return {}
    left, right = ({pair[side] for pair in matching.pairs} for side in (0, 1))
    rest_a, rest_b = {k: e for k, e in a.items() if k not in left}, {k: e for k, e in b.items() if k not in right}
    return match_by_role(rest_a, rest_b)


def _unmatched(name: str, entry: Entry, reason: str) -> Unmatched:
    why = f"{reason} ({entry.reason})" if entry.reason else reason
    return Unmatched(name=name, role=entry.role, shape=entry.shape, reason=why)


def _joined(prefixes: Sequence[str]) -> str:
    return " and ".join(f"'{prefix}'" for prefix in prefixes)


def _same_settings(settings: Sequence[Settings], analysis: Mapping[str, object]) -> dict[str, object]:
    """Give the options for a side that is analysed now: those of the other side's report, unless others are given."""
    if len(settings) == 2 and (refused := analysis.keys() - set(_CHANGE_NOTHING)):
        raise UsageError(
            f"reports are compared as they are: {', '.join(sorted(refused))} needs the checkpoints themselves"
        )
    return options.like(settings[0], _SHARED, analysis) if settings else dict(analysis)


def _pairs(modules: Sequence[Names], a: Checkpoint, b: Checkpoint) -> list[Pair]:
    """Pair the matrices behind the rows. Updates of low rank are left out, for their full matrix is never formed."""
    of_a, of_b = ({m.key: m for m in side.matrices} for side in (a, b))
    matrices = ((name, of_a[ka], of_b[kb]) for ka, kb, name in modules)
    return [(name, left, right) for name, left, right in matrices if left.rank is None and right.rank is None]


def _compared_metrics(a: SpectralReport, b: SpectralReport) -> tuple[str, ...]:
    """List the metrics that mean the same in both reports."""
    rules = [[getattr(s, name) for name in ("tail", "tail_fraction", *options.FARMS)] for s in (a.settings, b.settings)]
    return METRICS if rules[0] == rules[1] else tuple(m for m in METRICS if m not in TAIL_METRICS)


def _notes(
    a: SpectralReport, b: SpectralReport, matched: _Matched, changes: Sequence[ModuleChange], *, weights_wanted: bool
) -> Iterator[str]:
    matching = matched.matching
    for side, report in (("BEFORE", a), ("AFTER", b)):
        yield from (f"{side}: {note}" for note in report.provenance.notes if note != report.source.unread)
        if not report.complete:
            yield f"{side}: the report is incomplete (interrupted)."
    if matching.ambiguous:
        yield f"More names would match without {_joined(matching.ambiguous)} alike: no prefix was taken off."
    if matching.replaced is not None:
        before, after = (f"'{path}.'" if path else "no prefix" for path in matching.replaced)
        yield f"Names with {before} BEFORE have {after} AFTER."
    if matched.by_role:
        yield f"{len(matched.by_role)} matrices have other names AFTER and are matched by layer, role and shape."
    if weights_wanted and reordered(matched.by_role, matched.a):
        yield (
            "q and k of these matrices are compared by their spectra alone: formats store their rows in different "
            "orders (rotary embedding)."
        )
    if _compared_metrics(a, b) is not METRICS:
        rules = " and ".join(_tail_rule(r.settings) for r in (a, b))
        yield f"The tail rules differ ({rules}): {', '.join(sorted(TAIL_METRICS))} are not compared."
    if weights_wanted and changes and all(change.delta is None for change in changes):
        yield "Compared by spectra alone: the weights themselves take two checkpoints, adapters with their base."


def _tail_rule(settings: Settings) -> str:
    rule = f"{settings.tail} at {settings.tail_fraction:g}"
    return f"{rule}, {described(settings)}" if settings.tail == "farms" else rule


def failures(comparison: Comparison) -> list[ModuleRecord]:
    """Find the rows of either side without numbers: NaN, infinite values, unreadable.

    Args:
        comparison: as `compare` returned it.
    """
    rows = [row for module in comparison.modules for row in (module.before, module.after)]
    return [row for row in rows if row.status in ("nonfinite", "failed")]
