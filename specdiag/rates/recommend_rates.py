"""From spectra to learning rates: LLR's ratios, and how much of them the matrices' shapes explain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Unpack, get_args

from specdiag.analysis import options
from specdiag.analysis.options import UnselectedArguments
from specdiag.decay.assignment import check_rule
from specdiag.decay.outside import outside_the_plan
from specdiag.decay.plan_source import report_of
from specdiag.decay.robustness import shape_share
from specdiag.decay.targets import DecayTarget, column, decay_targets, random_value
from specdiag.rates.plan import Per, RateBasis, RateEntry, RatePlan
from specdiag.rates.rule import ENDS, rate_ratios
from specdiag.records import ROLES, ModuleRecord
from specdiag.report import SpectralReport
from specdiag.text import checks
from specdiag.text.counts import percent

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource

_MOSTLY_GEOMETRY = 0.5


def recommend_rates(
    source: AnalysisSource | SpectralReport,
    *,
    per: Per = "module",
    s1: float = 1.0,
    s2: float = 5.0,
    preserve_mean: bool = False,
    embeddings: bool = True,
    basis: RateBasis = "alpha",
    lr: float | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    roles: str | Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[UnselectedArguments],
) -> RatePlan:
    """Recommend a learning rate for each module (LLR, arXiv 2605.22297, by its released code).

    Args:
        source: a report or what `analyze` takes.
        per: `module` gives each Parameter its ratio; `layer` all of a block the one of their mean exponent, which
            cancels what shapes alone do.
        s1: ratio of the heaviest tail. Released code: 1.
        s2: ratio of the lightest tail. Released code: 5, 3 in one of its configurations.
        preserve_mean: divide all ratios by their mean, weighted by parameters, so that the mean rate stays.
        embeddings: give embedding and head the largest ratio, as the released code does.
        basis: `alpha` (the released code's), or `square`: square_alpha, which shape does not move.
        lr: base learning rate; None gives ratios alone.
        include: globs on names; only these take part.
        exclude: globs on names; these do not.
        roles: roles that take part, instead of the projections of attention and MLP.
        progress: called while the source is analysed.
        **analysis: options of `analyze`, for a source that is no report.

    Raises:
        UsageError: an option makes no sense, or nothing takes part.
        SourceError: the source cannot be read.

    Example:
        >>> plan = specdiag.recommend_rates("org/name", lr=3e-4, per="layer")
        >>> plan["model.layers.0.self_attn.q_proj.weight"].ratio <= 5.0
        True
    """
    options.check(analysis, options.UNSELECTED)
    include, exclude, roles = (
        checks.texts("include", include),
        checks.texts("exclude", exclude),
        checks.each_of("roles", roles, ROLES),
    )
    s1, s2 = check_rule("linear", s1, s2)
    checks.one_of("per", per, get_args(Per))
    checks.one_of("basis", basis, get_args(RateBasis))
    preserve_mean, embeddings = checks.flag("preserve_mean", preserve_mean), checks.flag("embeddings", embeddings)
    lr = None if lr is None else checks.rate("lr", lr, hint="such as 0.001")
    checks.function("progress", progress)
    report = report_of(source, progress, analysis, {})
    targets = decay_targets(report.records, include=include, exclude=exclude, roles=roles)
    ends = _ends(report.records, {t.name for t in targets}) if embeddings else []
    value_column = column(basis, report.settings)
    values = [target.mean(value_column) for target in targets]
    counts = [target.n_parameters for target in (*targets, *ends)]

    def ratios(of: Sequence[float | None]) -> list[float]:
        return rate_ratios(
            of, [t.block for t in targets], counts, s1=s1, s2=s2, per=per, preserve_mean=preserve_mean,
            unmeasured=len(ends),
        )  # fmt: skip

    planned = ratios(values)
    random_values = [random_value(t, basis) if v is not None else None for t, v in zip(targets, values, strict=True)]
    random = ratios(random_values) if any(v is not None for v in random_values) else [None] * len(counts)
    entries = tuple(
        RateEntry(
            name=t.name, role=t.role, family=t.family, layer=t.layer, component=t.component, n_parameters=counts[i],
            value=values[i] if i < len(targets) else None, ratio=planned[i], lr=None if lr is None else planned[i] * lr,
            random_ratio=random[i], note=_note(t, values[i] if i < len(targets) else None, i >= len(targets), basis),
        )
        for i, t in enumerate((*targets, *ends))
    )  # fmt: skip
    pairs = [(e.ratio, e.random_ratio) for e in entries if e.value is not None]
    share = shape_share(pairs)
    mean = sum(e.n_parameters * e.ratio for e in entries) / sum(counts)
    return RatePlan(
        headline=_headline(share, per, mean, all(v is None for v in values)),
        source=report.source, report_digest=hashlib.sha256(report.to_json()).hexdigest(), per=per, basis=basis, s1=s1,
        s2=s2, preserve_mean=preserve_mean, embeddings=embeddings, include=include, exclude=exclude, roles=roles,
        base_lr=lr, mean_ratio=mean, shape_share=share, rate_entries=entries,
        notes=tuple(_notes(report, entries, mean, preserve_mean)),
    )  # fmt: skip


def _ends(records: Sequence[ModuleRecord], taken: set[str]) -> list[DecayTarget]:
    """Return embedding and head; of a tied pair a report has one row."""
    return [DecayTarget(r.name, (r,)) for r in records if r.role in ENDS and r.name not in taken]


def _note(target: DecayTarget, value: float | None, is_end: bool, basis: str) -> str | None:
    if is_end:
        return "the largest ratio, as the released code gives embedding and head"
    if value is not None:
        return None
    statuses = sorted({record.status for record in target.records if record.status != "ok"})
    return f"no {basis} ({', '.join(statuses) or 'not computed'})"


def _headline(share: float | None, per: Per, mean: float, is_empty: bool) -> str:
    if is_empty:
        return "Do not use this plan: no module has a number that it could rest on."
    if share is not None and share >= _MOSTLY_GEOMETRY:
        other = " Shapes cancel with per=layer." if per == "module" else ""
        return f"Do not use this plan: {percent(share)} of it is explained by shape.{other}"
    return (
        f"Untested: keep one learning rate for all modules, or hold this plan against one rate of {mean:.2f} times the "
        "base, from the same start."
    )


def _notes(report: SpectralReport, entries: Sequence[RateEntry], mean: float, preserve_mean: bool) -> list[str]:
    notes = [] if report.complete else ["The report is incomplete (interrupted): matrices that it lacks are left out."]
    if not preserve_mean:
        notes.append(f"The mean rate becomes {mean:.2f} times the base, weighted by parameters.")
    notes.append("Decoupled weight decay acts as lr x decay, so these ratios multiply it too.")
    notes.append("The authors change ratios in the first fifth of pre-training alone; a finished model tells less.")
    return [*notes, *outside_the_plan(report.records, planned={entry.name for entry in entries})]
