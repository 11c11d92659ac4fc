"""From spectra to a decay plan: ratios by a rule, and how much of the plan the matrices' shapes explain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import correlation, fmean, median
from typing import TYPE_CHECKING, Literal, Unpack, cast, get_args

from msgspec.structs import replace

from specdiag.analysis import options
from specdiag.analysis.options import UnselectedArguments
from specdiag.checkpoint.opening import is_location
from specdiag.decay import assignment, forms
from specdiag.decay.assignment import Rule
from specdiag.decay.effect import LrSchedule, Verdict, verdict
from specdiag.decay.headline import headline
from specdiag.decay.outside import outside_the_plan
from specdiag.decay.plan import Basis, DecayPlan, PlanEntry
from specdiag.decay.schedule_record import DecaySchedule, checked_schedule
from specdiag.decay.targets import (
    DecayTarget,
    check_basis,
    column,
    decay_targets,
    random_value,
    reference_targets,
)
from specdiag.errors import UsageError
from specdiag.records import HILL_TAILS, ROLES, TailName
from specdiag.report import SpectralReport, is_report, load_report
from specdiag.text import checks
from specdiag.text.counts import percent
from specdiag.text.names import listed

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource

Values = Sequence[float | None]

_S1, _S2 = 0.67, 3.0
"""Ratios of the heaviest and the lightest tail, the paper's."""
_OUTLIER = 0.2
"""A smallest or largest value is reported as an outlier if this share of the range or more lies next to it."""
_ENOUGH = 8
"""Outliers are reported for this many values or more."""


def recommend(
    source: AnalysisSource | SpectralReport,
    *,
    rule: Rule = "linear",
    basis: Basis = "alpha",
    s1: float = _S1,
    s2: float = _S2,
    clip: tuple[float, float] | None = None,
    preserve_mean: bool = False,
    compat: Literal["reference"] | None = None,
    weight_decay: float | None = None,
    base_origin: str = "given",
    lr: float | None = None,
    steps_left: int | None = None,
    lr_schedule: LrSchedule = "to zero",
    schedule: DecaySchedule | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    roles: str | Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[UnselectedArguments],
) -> DecayPlan:
    """Recommend a weight decay for each attention and MLP projection, from how heavy-tailed its spectrum is.

    Args:
        source: a report, saved or not, or anything that `analyze` takes.
        rule: `linear` (AlphaDecay, arXiv 2506.14562, equation 3), `sqrt`, `log2`, `sigmoid` (per layer), `uniform`,
            `none`.
        basis: value that the rule reads: `alpha` (the paper), `square` (square_alpha, which shape does not move),
            `farms`, `function` (square_alpha of the balanced form, which no change of form moves; untested),
            `frobenius_norm`, `spectral_norm` (the norms themselves; the released code takes their squares).
        s1: ratio of the heaviest tail, for the linear rule alone.
        s2: ratio of the lightest tail, for the linear rule alone.
        clip: percentiles to which values are clipped first, such as (5, 95). Not for `uniform` and
            `none`, whose ratios no value moves.
        preserve_mean: scale the ratios so that their mean, weighted by parameters, is 1. Not for `uniform` and `none`.
        compat: `reference` reproduces the released code: its choice of Parameters, s2 where all values are equal,
            and squared norms.
        weight_decay: the base; None gives ratios only.
        base_origin: origin of the base, for the record; nothing is recorded without a base.
        lr: learning rate of the next step, for the verdict alone.
        steps_left: optimizer steps to come, for the verdict alone. The plan carries one where it has a base decay, an
            lr and the steps left.
        lr_schedule: course of the lr over the steps left, for the verdict; it needs `steps_left`.
        schedule: course of the decays with the lr (AdamC, ScionC); None for constant decays.
        include: globs on names; only these take part.
        exclude: globs on names; these do not.
        roles: roles that take part, instead of the projections of attention and MLP.
        progress: as for `analyze`.
        analysis: further arguments of `analyze`, where the source is a checkpoint.

    Raises:
        UsageError: an argument is out of range, makes no sense for this source or belongs to another rule, no Parameter
            takes part, or `basis` is `function` and the wiring is unknown.
        SourceError: the source cannot be read.

    Example:
        >>> plan = specdiag.recommend("org/name", weight_decay=0.1)
        >>> plan["model.layers.0.self_attn.q_proj.weight"].ratio <= 3.0
        True
    """
    options.check({"tail": _tail(basis), **analysis}, options.UNSELECTED)
    include, exclude, roles = (
        checks.texts("include", include),
        checks.texts("exclude", exclude),
        checks.each_of("roles", roles, ROLES),
    )
    (s1, s2), clip = assignment.check_rule(rule, s1, s2), _percentiles(clip)
    preserve_mean = checks.flag("preserve_mean", preserve_mean)
    base_origin = checks.text("base_origin", base_origin)
    weight_decay, lr = (
        None if value is None else checks.number(name, value, least=0, most=checks.MOST_RATE, hint=f"such as {usual}")
        for name, value, usual in (("weight_decay", weight_decay, 0.1), ("lr", lr, 0.001))
    )
    steps_left = None if steps_left is None else checks.whole("steps_left", steps_left, least=0)
    checks.one_of("lr_schedule", lr_schedule, get_args(LrSchedule))
    schedule = None if schedule is None else checked_schedule(schedule)
    _check(rule, basis, compat, progress)
    _refuse_idle(rule, {"s1": s1 != _S1, "s2": s2 != _S2}, {"clip": clip is not None, "preserve_mean": preserve_mean})
    if lr_schedule != "to zero" and steps_left is None:
        raise UsageError(f"lr_schedule='{lr_schedule}' is of the steps left, for the verdict: give steps_left= too")
    if compat is not None and (include or exclude or roles):
        raise UsageError("compat='reference' decides itself who takes part: leave out include=, exclude= and roles=")
    report = report_of(source, progress, analysis, _defaults(basis, compat))
    value_column = column(basis, report.settings)
    targets = (
        decay_targets(report.records, include=include, exclude=exclude, roles=roles)
        if compat is None
        else reference_targets(report.records, _linears(source))
    )
    values = [_value(p, value_column, compat) for p in targets]
    blocks = [p.block for p in targets]
    if basis == "function":
        forms.require_balanced(report, values)

    def ratios(column_values: Values) -> list[float]:
        kept = column_values if clip is None else assignment.clipped(column_values, *clip)
        unscaled = _ratios(rule, kept, blocks, s1, s2, compat)
        return _scale_to_mean_one(unscaled, [p.n_parameters for p in targets]) if preserve_mean else unscaled

    planned = ratios(values)
    random_values = [random_value(p, basis) if v is not None else None for p, v in zip(targets, values, strict=True)]
    has_random = any(value is not None for value in random_values) and rule not in ("uniform", "none")
    random = ratios(random_values) if has_random else [None] * len(targets)
    by_hill = basis == "alpha" and report.settings.tail in HILL_TAILS and compat is None
    low, high = (ratios([p.mean(c) for p in targets]) if by_hill else None for c in ("alpha_25", "alpha_75"))
    by_rho = ratios([p.mean("rho") for p in targets]) if basis == "square" else None
    entries = tuple(
        PlanEntry(
            name=p.name,
            role=p.role,
            family=p.family,
            layer=p.layer,
            component=p.component,
            n_parameters=p.n_parameters,
            value=values[i],
            part_values={r.part: getattr(r, value_column) for r in p.records if r.part is not None},
            ratio=planned[i],
            weight_decay=None if weight_decay is None else planned[i] * weight_decay,
            random_ratio=random[i],
            rho_ratio=None if by_rho is None else by_rho[i],
            ratio_25=None if low is None else low[i],
            ratio_75=None if high is None else high[i],
            note=None if values[i] is not None else _missing_note(p, basis),
        )
        for i, p in enumerate(targets)
    )
    share = shape_share([(e.ratio, e.random_ratio) for e in entries if e.value is not None])
    agreement = _agreement(targets)
    plan = DecayPlan(
        source=report.source,
        report_digest=hashlib.sha256(report.to_json()).hexdigest(),
        rule=rule,
        basis=basis,
        tail=report.settings.tail,
        s1=s1,
        s2=s2,
        clip=clip,
        preserve_mean=preserve_mean,
        compat=compat,
        include=include,
        exclude=exclude,
        roles=roles,
        base_weight_decay=weight_decay,
        base_origin=None if weight_decay is None else base_origin,
        mean_ratio=fmean(planned),
        mean_ratio_weighted=fmean(planned, [p.n_parameters for p in targets]),
        shape_share=share,
        agreement=agreement,
        tail_shift=_tail_shift(low, high),
        schedule=schedule,
        verdict=_verdict(entries, weight_decay, lr, steps_left, lr_schedule, share, agreement, basis == "square"),
        notes=(*forms.notes(basis, targets, ratios, rule), *_notes(report, entries, clip)),
        entries=entries,
    )
    return replace(plan, headline=headline(plan))


def shape_share(pairs: Sequence[tuple[float, float | None]]) -> float | None:
    """Compute the share of a plan that shapes explain: R^2 between its ratios and those of random weights.

    Args:
        pairs: for each Parameter its ratio, and the ratio of random weights of its shape, None where it has none.

    Returns:
        0 to 1. 0 where all random weights have the same ratio. None with fewer than two pairs, or where the plan's
        ratios are all equal.
    """
    known = [(ratio, random) for ratio, random in pairs if random is not None]
    if len(known) < 2 or len({ratio for ratio, _ in known}) == 1:
        return None
    if len({random for _, random in known}) == 1:
        return 0.0
    ours, theirs = zip(*known, strict=True)
    return correlation(ours, theirs) ** 2


def _agreement(targets: Sequence[DecayTarget]) -> float | None:
    """Correlate square_alpha with rho; None where fewer than three have both, or one of them is the same for all."""
    pairs = [(target.mean("square_alpha"), target.mean("rho")) for target in targets]
    known = [(square, rho) for square, rho in pairs if square is not None and rho is not None]
    if len(known) < 3 or any(len(set(values)) == 1 for values in zip(*known, strict=True)):
        return None
    return correlation(*zip(*known, strict=True))


def _check(rule: str, basis: str, compat: str | None, progress: object) -> None:
    check_basis(basis)
    checks.function("progress", progress)
    if compat not in (None, "reference"):
        raise UsageError(f"unknown compat={checks.shown(compat)}; there is 'reference'")
    if rule == "log2" and basis in ("frobenius_norm", "spectral_norm"):
        raise UsageError(f"rule log2 needs values above 1, which {basis} need not be; choose linear or sqrt")


def _refuse_idle(rule: str, sides: Mapping[str, bool], moving: Mapping[str, bool]) -> None:
    """Raise UsageError for arguments that were given and that the rule does not read."""
    if rule != "linear" and (idle := [f"{name}=" for name, is_given in sides.items() if is_given]):
        verb, them = ("belongs", "it") if len(idle) == 1 else ("belong", "them")
        raise UsageError(f"{' and '.join(idle)} {verb} to rule='linear', not to '{rule}': leave {them} out")
    if rule in ("uniform", "none") and (idle := [f"{name}=" for name, is_given in moving.items() if is_given]):
        raise UsageError(f"rule='{rule}' gives all one ratio: leave out {' and '.join(idle)}")


def _percentiles(clip: object) -> tuple[float, float] | None:
    if clip is None:
        return None
    low, high = checks.pair("clip", clip)
    if not 0 <= low < high <= 100:
        raise UsageError(f"clip=({low:g}, {high:g}) must be percentiles with 0 <= LO < HI <= 100, such as 5 95")
    return low, high


def report_of(
    source: AnalysisSource | SpectralReport,
    progress: Callable[[Progress], None] | None,
    analysis: UnselectedArguments,
    defaults: UnselectedArguments,
) -> SpectralReport:
    """Take a report as it is, saved or not, and analyse anything else.

    Args:
        source: a report, its file, or what `analyze` takes.
        progress: called while the source is analysed.
        analysis: options of `analyze` that were given.
        defaults: options of `analyze` where none was given.

    Raises:
        UsageError: options were given for a report.
        SourceError: the source cannot be read.
    """
    if is_location(source) and is_report(Path(source)):
        source = load_report(source)
    if isinstance(source, SpectralReport):
        if analysis:
            raise UsageError(f"a report is taken as it is: {', '.join(analysis)} needs the checkpoint itself")
        return source
    from specdiag.analysis.analyze import analyze

    arguments: UnselectedArguments = {**defaults, **analysis}
    return analyze(source, progress=progress, **arguments)


def _defaults(basis: Basis, compat: str | None) -> UnselectedArguments:
    """Options of the analysis that a basis and a mode of compatibility need."""
    defaults: UnselectedArguments = {"tail": _tail(basis)}
    if basis == "function":
        defaults = {**defaults, "function": True}
    return {**defaults, "method": "svd", "dtype": "float32"} if compat == "reference" else defaults


def _tail(basis: Basis) -> TailName:
    """The tail rule of the analysis that a basis needs."""
    return "farms" if basis == "farms" else "hill"


def _linears(source: object) -> list[str] | None:
    """Name the Linear and Conv2d weights of a live model, in definition order; None for other sources."""
    named_modules = getattr(source, "named_modules", None)
    if named_modules is None:
        return None
    from torch import nn

    modules = cast("Iterable[tuple[str, object]]", named_modules())
    return [f"{name}.weight" for name, module in modules if isinstance(module, (nn.Linear, nn.Conv2d))]


def _value(target: DecayTarget, value_column: str, compat: str | None) -> float | None:
    value = target.mean(value_column)
    if compat == "reference" and value is not None and value_column.endswith("_norm"):
        return value**2
    return value


def _ratios(
    rule: Rule, values: Values, blocks: Sequence[Hashable], s1: float, s2: float, compat: str | None
) -> list[float]:
    if compat == "reference" and rule == "linear":
        return assignment.linear_reference([float("nan") if v is None else v for v in values], s1, s2)
    return assignment.assign(rule, values, blocks, s1, s2)


def _scale_to_mean_one(ratios: list[float], weights: list[int]) -> list[float]:
    mean = fmean(ratios, weights)
    return [ratio / mean for ratio in ratios] if mean > 0 else ratios


def _tail_shift(low: Sequence[float] | None, high: Sequence[float] | None) -> float | None:
    return None if low is None or high is None else median(abs(a - b) for a, b in zip(low, high, strict=True))


def _verdict(
    entries: Sequence[PlanEntry],
    base: float | None,
    lr: float | None,
    steps_left: int | None,
    lr_schedule: LrSchedule,
    share: float | None,
    agreement: float | None,
    needs_agreement: bool,
) -> Verdict | None:
    if base is None or lr is None or steps_left is None:
        return None
    return verdict(
        [entry.ratio for entry in entries],
        [entry.n_parameters for entry in entries],
        base_weight_decay=base,
        lr=lr,
        steps_left=steps_left,
        shape_share=share,
        agreement=agreement,
        needs_agreement=needs_agreement,
        schedule=lr_schedule,
    )


def _missing_note(target: DecayTarget, basis: Basis) -> str:
    statuses = sorted({record.status for record in target.records if record.status != "ok"})
    if basis == "function" and not statuses:
        return "no balanced form (its wiring is unknown): ratio 1"
    return f"no {basis} ({', '.join(statuses) or 'not computed'}): ratio 1"


def _notes(report: SpectralReport, entries: Sequence[PlanEntry], clip: tuple[float, float] | None) -> list[str]:
    notes: list[str] = []
    if not report.complete:
        notes.append("The report is incomplete (interrupted): matrices that it lacks are not in the plan.")
    missing = [entry for entry in entries if entry.value is None]
    if len(missing) == len(entries):
        notes.append(
            f"No ratio could be derived: none of {len(entries)} Parameters has a value ({entries[0].note}). For an "
            "adapter analyse W + delta with base=."
        )
    elif missing:
        notes.append(
            f"{len(missing)} of {len(entries)} stay at ratio 1: {listed((f'{e.name} ({e.note})' for e in missing), 3)}."
        )
    if any(file.endswith(".gguf") for file in report.source.files):
        notes.append("Names are those of GGUF: to apply the plan to a model, make it from the original checkpoint.")
    computed = [record.name for record in report.records if record.parametrized]
    if computed:
        notes.append(
            f"No decay is planned for {len(set(computed))} weights that are computed from other Parameters (weight "
            f"norm, spectral norm, pruning), such as {computed[0]}: shrinking those does not shrink them alike."
        )
    if any(record.dequantized for record in report.records):
        notes.append("Exponents are those of dequantised weights: rounding makes heavy-tailed modules look lighter.")
    outlier = _outlier(entries) if clip is None else None
    if outlier is not None:
        entry, share = outlier
        notes.append(
            f"{entry.name} alone sets the range: its value {entry.value:.3f} lies {percent(share)} of it from the "
            "next. clip=(5, 95) tames it."
        )
    unnamed = [r.name for r in report.records if r.family in ("attention", "mlp") and r.role == "other"]
    if unnamed:
        notes.append(f"{len(unnamed)} matrices of attention or MLP have no role that takes part: {listed(unnamed, 3)}.")
    return [*notes, *outside_the_plan(report.records, planned={entry.name for entry in entries})]


def _outlier(entries: Sequence[PlanEntry]) -> tuple[PlanEntry, float] | None:
    """Find the entry whose value alone stretches the range, and by which share of it."""
    known = sorted((e for e in entries if e.value is not None), key=lambda e: e.value or 0.0)
    if len(known) < _ENOUGH:
        return None
    values = [entry.value or 0.0 for entry in known]
    span = values[-1] - values[0]
    if span == 0:
        return None
    gaps = (((values[1] - values[0]) / span, known[0]), ((values[-1] - values[-2]) / span, known[-1]))
    share, entry = max(gaps, key=lambda gap: gap[0])
    return (entry, share) if share >= _OUTLIER else None
