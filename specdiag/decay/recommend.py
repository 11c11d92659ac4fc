"""From spectra to a decay plan: ratios by a rule, and how much of the plan the matrices' shapes explain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from msgspec.structs import replace

from specdiag.analysis import options
from specdiag.analysis.options import UnselectedArguments
from specdiag.decay import assignment, forms
from specdiag.decay.assignment import Rule
from specdiag.decay.effect import LrSchedule, Verdict, verdict
from specdiag.decay.headline import headline
from specdiag.decay.plan import Basis, DecayPlan, PlanEntry
from specdiag.decay.plan_notes import missing_note, plan_notes
from specdiag.decay.plan_source import linear_weights, report_of
from specdiag.decay.robustness import agreement, shape_share, tail_shift
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
from specdiag.report import SpectralReport
from specdiag.text import checks

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress
    from specdiag.analysis.source import AnalysisSource

Values = Sequence[float | None]

_S1, _S2 = 0.67, 3.0
"""Ratios of the heaviest and the lightest tail, the paper's."""


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
    check_basis(basis)
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
        None if value is None else checks.rate(name, value, hint=f"such as {usual}")
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
        else reference_targets(report.records, linear_weights(source))
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
    squares = [p.mean("square_alpha") if basis == "alpha" and compat is None else None for p in targets]
    by_square = [None if square is None else ratio for square, ratio in zip(squares, ratios(squares), strict=True)]
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
            square_ratio=by_square[i],
            rho_ratio=None if by_rho is None else by_rho[i],
            ratio_25=None if low is None else low[i],
            ratio_75=None if high is None else high[i],
            note=None if values[i] is not None else missing_note(p, basis),
        )
        for i, p in enumerate(targets)
    )
    share = shape_share([(e.ratio, e.random_ratio) for e in entries if e.value is not None])
    agreed = agreement(targets)
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
        agreement=agreed,
        tail_shift=tail_shift(low, high),
        schedule=schedule,
        verdict=_verdict(entries, weight_decay, lr, steps_left, lr_schedule, share, agreed, basis == "square"),
        notes=(*forms.notes(basis, targets, ratios, rule), *plan_notes(report, entries, clip)),
        entries=entries,
    )
    return replace(plan, headline=headline(plan))


def _check(rule: str, basis: str, compat: str | None, progress: object) -> None:
    checks.function("progress", progress)
    if compat is not None and not (isinstance(compat, str) and compat == "reference"):  # pyright: ignore[reportUnnecessaryIsInstance]
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


def _defaults(basis: Basis, compat: str | None) -> UnselectedArguments:
    """Options of the analysis that a basis and a mode of compatibility need."""
    defaults: UnselectedArguments = {"tail": _tail(basis)}
    if basis == "function":
        defaults = {**defaults, "function": True}
    return {**defaults, "method": "svd", "dtype": "float32"} if compat == "reference" else defaults


def _tail(basis: Basis) -> TailName:
    """The tail rule of the analysis that a basis needs."""
    return "farms" if basis == "farms" else "hill"


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
