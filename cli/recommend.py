"""`specdiag recommend`: from spectra to a weight decay for each module."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from specdiag.errors import SourceError, UsageError

from . import opening, options, output, targets
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.decay.plan import Basis


class Rule(StrEnum):
    """Maps from values to ratios."""

    linear = "linear"
    sqrt = "sqrt"
    log2 = "log2"
    sigmoid = "sigmoid"
    uniform = "uniform"
    none = "none"


class LrSchedule(StrEnum):
    """Courses of the lr over the steps left."""

    to_zero = "to zero"
    constant = "constant"


_DRAWING = ("include", "exclude", "role")
"""Options that choose who takes part, of a report as of a checkpoint."""
_OF_LINEAR = ("s1", "s2")
_OF_SCHEDULE = ("steps_total", "warmup", "lr_shape", "momentum", "target_norm")
_POWER_LINES = ("tokens", "params", "batch_tokens", "context_length")


_RATIOS, _SCHEDULE, _LINES = "Ratios", "Schedule of the decay", "Base decay by Power Lines"


@takes_shared("recommend")
@output.guarded
def recommend(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Saved report, hub id, directory or weight file.",
            show_default="newest report in this directory; none where --tokens ... are given",
        ),
    ] = None,
    *,
    given: Given,
    rule: Annotated[
        Rule,
        typer.Option("--rule", help="Map from values to ratios; linear is AlphaDecay's.", rich_help_panel=_RATIOS),
    ] = Rule.linear,
    basis: Annotated[
        str,
        typer.Option(
            "--basis",
            help="alpha, square (comparable across shapes), farms, frobenius_norm or spectral_norm.",
            rich_help_panel=_RATIOS,
        ),
    ] = "alpha",
    s1: Annotated[
        float, typer.Option("--s1", help="Ratio of the heaviest tail (linear).", rich_help_panel=_RATIOS)
    ] = 0.67,
    s2: Annotated[
        float, typer.Option("--s2", help="Ratio of the lightest tail (linear).", rich_help_panel=_RATIOS)
    ] = 3.0,
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option(
            "--clip",
            metavar="LO HI",
            help="Clip values to these percentiles first, such as 5 95.",
            rich_help_panel=_RATIOS,
        ),
    ] = None,
    preserve_mean: Annotated[
        bool,
        typer.Option(
            "--preserve-mean", help="Scale the ratios to a mean of 1, weighted by parameters.", rich_help_panel=_RATIOS
        ),
    ] = False,
    compat: Annotated[
        str | None,
        typer.Option("--compat", help="reference: exactly as the released AlphaDecay code.", rich_help_panel=_RATIOS),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option("--weight-decay", min=0, help="Base decay that the ratios multiply.", rich_help_panel=options.RUN),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            help="Training run to read the base decay, lr and steps from.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", min=0, help="Peak learning rate of the run.", rich_help_panel=options.RUN)
    ] = None,
    steps_left: Annotated[
        int | None,
        typer.Option(
            "--steps-left",
            min=1,
            help="Optimizer steps to come, to predict if the plan will matter.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    lr_schedule: Annotated[
        LrSchedule,
        typer.Option("--lr-schedule", help="Course of the lr over the steps left.", rich_help_panel=options.RUN),
    ] = LrSchedule.to_zero,
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", help="adamc or scionc: let the decays follow the lr.", rich_help_panel=_SCHEDULE),
    ] = None,
    steps_total: Annotated[
        int | None, typer.Option("--steps-total", min=1, help="Steps of the run.", rich_help_panel=_SCHEDULE)
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Steps of warm-up.", rich_help_panel=_SCHEDULE)] = 0,
    lr_shape: Annotated[
        options.LrShape, typer.Option("--lr-shape", help="Course of the lr.", rich_help_panel=_SCHEDULE)
    ] = options.LrShape.cosine,
    momentum: Annotated[
        float,
        typer.Option(
            "--momentum",
            help="ScionC only: share of the average that a step keeps; alpha is 1 - momentum.",
            rich_help_panel=_SCHEDULE,
        ),
    ] = 0.0,
    target_norm: Annotated[
        float | None,
        typer.Option(
            "--target-norm",
            help="ScionC only: target squared norm.",
            show_default="that of the base decay",
            rich_help_panel=_SCHEDULE,
        ),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option("--tokens", help="Training tokens of the run.", rich_help_panel=_LINES)
    ] = None,
    params: Annotated[
        float | None, typer.Option("--params", help="Parameters of the model.", rich_help_panel=_LINES)
    ] = None,
    batch_tokens: Annotated[
        float | None, typer.Option("--batch-tokens", help="Tokens of one optimizer step.", rich_help_panel=_LINES)
    ] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", help="Tokens of one sequence.", rich_help_panel=_LINES)
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            help="Print as torch or transformers (code), json, toml, csv or md.",
            show_default="table",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Save the plan as JSON; with --export, what that prints.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    all_rows: options.AllOption = False,
) -> None:
    """Recommend a weight decay for each module: why, how sure, and if it will matter.

    SOURCE is best a saved report: that takes milliseconds. Without a SOURCE, --tokens --params --batch-tokens
    --context-length --lr give the base decay alone. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    from specdiag.analysis.options import split
    from specdiag.decay.recommend import recommend as plan_for
    from specdiag.report import is_report

    from . import recommend_output as show

    _check_target(out, export)
    _check_idle(ctx, rule, schedule)
    planned = {name: ctx.params[name] for name in _POWER_LINES}
    if source is None and any(value is not None for value in planned.values()):
        _check_alone(ctx, export)
        show.base_alone(planned, lr, export, out)
        return
    source = _newest_report() if source is None else source
    targets.check_apart(out, source)
    from_report = is_report(Path(source))
    if from_report:
        given.require_checkpoint(source, without=_DRAWING)
    else:
        source = opening.checkpoint_of(source, split(given.arguments())[0])
    base = show.base_decay(weight_decay, run, planned, lr=lr, steps_left=steps_left, beside=_run_beside(source))
    course = None
    if schedule is not None:
        from specdiag.decay.schedule_record import decay_schedule

        course = decay_schedule(
            schedule, peak_lr=lr, steps_total=steps_total, lr_shape=lr_shape.value, warmup=warmup, momentum=momentum,
            target_norm=target_norm,
        )  # fmt: skip
    drawing = given.arguments()
    planned_for = partial(
        plan_for, source, rule=rule.value, basis=cast("Basis", basis), s1=s1, s2=s2, clip=clip,
        preserve_mean=preserve_mean, compat=cast('Literal["reference"] | None', compat), weight_decay=base.weight_decay,
        base_origin=base.origin, lr=base.lr, steps_left=base.steps_left, lr_schedule=lr_schedule.value, schedule=course,
        include=drawing.get("include", ()), exclude=drawing.get("exclude", ()), roles=drawing.get("roles", ()),
    )  # fmt: skip
    if from_report:
        made = planned_for()
    else:
        from .progress import analysis_bar

        with analysis_bar() as bar:
            made = planned_for(**given.analysis(without=_DRAWING), progress=bar)
    show.answer(made, base, export, out, all_rows=all_rows)


def _check_target(out: Path | None, export: str | None) -> None:
    from specdiag.views.plan_export import FORMATS

    if export is not None and export not in FORMATS:
        raise UsageError(f"unknown export={export!r}; choose from {', '.join(FORMATS)}")
    targets.check_file(out, export or "json", "choose another --export" if export else "add --export")


def _check_idle(ctx: typer.Context, rule: Rule, schedule: str | None) -> None:
    """Raise UsageError for options of a rule or a schedule that was not chosen."""
    if rule is not Rule.linear and (idle := options.given(ctx, _OF_LINEAR)):
        raise UsageError(f"{options.listed(idle)} belongs to --rule linear, not to {rule.value}")
    if schedule is None and (idle := options.given(ctx, _OF_SCHEDULE)):
        raise UsageError(f"{options.listed(idle)} belongs to --schedule: add --schedule adamc or scionc")


def _check_alone(ctx: typer.Context, export: str | None) -> None:
    """Raise UsageError for whatever a base decay without a checkpoint has no use for."""
    if idle := options.given(ctx, [name for name in ctx.params if name not in (*_POWER_LINES, "lr", "export", "out")]):
        raise UsageError(
            f"{options.listed(idle)} needs a checkpoint or a saved report: name it as SOURCE; without one only the "
            "base decay by Power Lines is given"
        )
    if export not in (None, "json"):
        raise UsageError(f"--export {export} needs a plan: name a SOURCE, or choose --export json for the base decay")


def _run_beside(source: str) -> Path | None:
    """The folder of a local checkpoint, which may hold the optimizer's state too."""
    path = Path(source)
    return path if path.is_dir() else None


def _newest_report() -> str:
    from specdiag.report import is_report

    found = [path for path in Path().glob("*.json") if is_report(path)]
    if not found:
        raise SourceError("there is no saved report in this directory: name a SOURCE, or run 'specdiag analyze' first")
    newest = max(found, key=lambda path: path.stat().st_mtime)
    output.talk(f"taking the newest report here, {newest}", "dim")
    return str(newest)
