"""`specdiag recommend`: from spectra to a weight decay for each module."""

from __future__ import annotations

import shlex
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from specdiag.errors import UsageError
from specdiag.text.counts import parse_count

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


class What(StrEnum):
    """Settings that are recommended."""

    decay = "decay"
    lr = "lr"


class Per(StrEnum):
    """Units that have one learning rate."""

    module = "module"
    layer = "layer"


class Compat(StrEnum):
    """Other code whose plans are made."""

    reference = "reference"


class Schedule(StrEnum):
    """Decays that follow the lr."""

    adamc = "adamc"
    scionc = "scionc"


class Export(StrEnum):
    """Formats of a plan for other tools."""

    torch = "torch"
    transformers = "transformers"
    json = "json"
    toml = "toml"
    csv = "csv"
    md = "md"


class LrSchedule(StrEnum):
    """Courses of the lr over the steps left."""

    to_zero = "to zero"
    constant = "constant"


_DRAWING = ("include", "exclude", "role")
"""Options that choose who takes part, of a report as of a checkpoint."""
_RATIOS, _SCHEDULE, _LINES = "Ratios", "Schedule of the decay", "Base decay by Power Lines"


@takes_shared("recommend")
@output.guarded
def recommend(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="Saved report, hub id, directory or weight file.",
            show_default="newest report in this directory; none where --tokens ... are given",
        ),
    ] = None,
    *,
    given: Given,
    what: Annotated[
        What,
        typer.Option(
            "--what", help="Recommend the weight decay, or the learning rate (LLR; untested).", rich_help_panel=_RATIOS
        ),
    ] = What.decay,
    rule: Annotated[
        Rule,
        typer.Option("--rule", help="Map from values to ratios; linear is AlphaDecay's.", rich_help_panel=_RATIOS),
    ] = Rule.linear,
    basis: Annotated[
        str,
        typer.Option(
            "--basis",
            help="alpha, square (comparable across shapes), function (square of the balanced form; untested), farms, "
            "frobenius_norm or spectral_norm.",
            rich_help_panel=_RATIOS,
        ),
    ] = "alpha",
    s1: Annotated[
        float,
        typer.Option(
            "--s1",
            help="Ratio of the heaviest tail (linear).",
            show_default="0.67, 1 for --what lr",
            rich_help_panel=_RATIOS,
        ),
    ] = 0.67,
    s2: Annotated[
        float,
        typer.Option(
            "--s2",
            help="Ratio of the lightest tail (linear).",
            show_default="3, 5 for --what lr",
            rich_help_panel=_RATIOS,
        ),
    ] = 3.0,
    per: Annotated[
        Per,
        typer.Option(
            "--per", help="Learning rates only: one for each module, or for each layer.", rich_help_panel=_RATIOS
        ),
    ] = Per.module,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings/--no-embeddings",
            help="Learning rates only: embedding and head get the largest.",
            rich_help_panel=_RATIOS,
        ),
    ] = True,
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
        Compat | None,
        typer.Option("--compat", help="Reproduce the released AlphaDecay code exactly.", rich_help_panel=_RATIOS),
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
            help="Remaining optimizer steps, to predict whether the plan will matter.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    lr_schedule: Annotated[
        LrSchedule,
        typer.Option("--lr-schedule", help="Schedule of the lr over the remaining steps.", rich_help_panel=options.RUN),
    ] = LrSchedule.to_zero,
    schedule: Annotated[
        Schedule | None,
        typer.Option(
            "--schedule", help="Let the decays follow the lr, as AdamC or ScionC do.", rich_help_panel=_SCHEDULE
        ),
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
        float | None,
        typer.Option(
            "--tokens",
            parser=parse_count,
            metavar="N",
            help="Training tokens of the run, as 20B or 2e10.",
            rich_help_panel=_LINES,
        ),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(
            "--params",
            parser=parse_count,
            metavar="N",
            help="Parameters of the model, as 7B or 135m.",
            rich_help_panel=_LINES,
        ),
    ] = None,
    batch_tokens: Annotated[
        float | None,
        typer.Option(
            "--batch-tokens",
            parser=parse_count,
            metavar="N",
            help="Tokens of one optimizer step, as 512k.",
            rich_help_panel=_LINES,
        ),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", help="Tokens of one sequence.", rich_help_panel=_LINES)
    ] = None,
    export: Annotated[
        Export | None,
        typer.Option(
            "--export",
            help="Print the plan for another tool (torch, transformers: code).",
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
    top: options.TopOption = None,
) -> None:
    """Recommend a weight decay for each module: why, how sure, and whether it will matter.

    A saved report takes milliseconds. Without a SOURCE, --tokens --params --batch-tokens
    --context-length --lr give only the base decay. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    from specdiag.analysis.options import split
    from specdiag.decay.recommend import recommend as plan_for
    from specdiag.report import is_report

    from . import recommend_checks as checks
    from . import recommend_output as show

    exported = None if export is None else export.value
    targets.check_file(out, exported or "json", "choose another --export" if exported else "add --export")
    if what is What.lr:
        from .recommend_rates import recommend_rates

        recommend_rates(ctx, source, given, exported, out)
        return
    if idle := options.given(ctx, ("per", "embeddings")):
        raise UsageError(f"{options.listed(idle)} belongs to --what lr")
    options.check_rows(all_rows=all_rows, top=top, format=exported or "table")
    checks.idle(ctx, rule.value, schedule)
    planned = {name: ctx.params[name] for name in checks.POWER_LINES}
    if source is None and any(value is not None for value in planned.values()):
        checks.alone(ctx, exported)
        show.base_alone(planned, lr, exported, out)
        return
    source = checks.newest_report() if source is None else source
    targets.check_apart(out, source)
    from_report = is_report(Path(source))
    if from_report:
        given.require_checkpoint(source, without=_DRAWING)
    else:
        source = opening.checkpoint_of(source, split(given.arguments())[0])
    base = show.base_decay(weight_decay, run, planned, lr=lr, steps_left=steps_left, beside=checks.run_beside(source))
    if base.steps_left is None and options.is_given(ctx, "lr_schedule"):
        raise UsageError(f"--lr-schedule '{lr_schedule.value}' is of the steps left: add --steps-left")
    course = None
    if schedule is not None:
        from specdiag.decay.schedule_record import decay_schedule

        course = decay_schedule(
            schedule.value, peak_lr=lr, steps_total=steps_total, lr_shape=lr_shape.value, warmup=warmup,
            momentum=momentum, target_norm=target_norm,
        )  # fmt: skip
    drawing = given.arguments()
    planned_for = partial(
        plan_for, source, rule=rule.value, basis=cast("Basis", basis), s1=s1, s2=s2, clip=clip,
        preserve_mean=preserve_mean, compat=None if compat is None else compat.value, weight_decay=base.weight_decay,
        base_origin=base.origin, lr=base.lr, steps_left=base.steps_left, lr_schedule=lr_schedule.value, schedule=course,
        include=drawing.get("include", ()), exclude=drawing.get("exclude", ()), roles=drawing.get("roles", ()),
    )  # fmt: skip
    if from_report:
        made = planned_for()
    else:
        from .progress import analysis_bar

        with analysis_bar() as bar:
            made = planned_for(**given.analysis(without=_DRAWING), progress=bar)
    again = None if given.names else f"specdiag recommend {shlex.quote(str(source))}"
    show.answer(made, base, exported, out, len(made.entries) if all_rows else top, again)
