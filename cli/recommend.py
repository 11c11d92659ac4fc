"""`specdiag recommend`: from spectra to a weight decay for each module."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from specdiag.errors import SourceError, UsageError

from . import options, output


class Rule(StrEnum):
    """How values become ratios."""

    linear = "linear"
    sqrt = "sqrt"
    log2 = "log2"
    sigmoid = "sigmoid"
    uniform = "uniform"
    none = "none"


class LrSchedule(StrEnum):
    """What the lr does over the steps left."""

    to_zero = "to zero"
    constant = "constant"


_ANALYSIS = ("revision", "file", "role_map", "experts", "device", "dtype", "jobs", "memory")
_OF_LINEAR = ("s1", "s2")
_OF_SCHEDULE = ("steps_total", "warmup", "lr_shape", "momentum", "target_norm")
_POWER_LINES = ("tokens", "params", "batch_tokens", "context_length")


@output.guarded
def recommend(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Saved report, hub id, directory or weight file.",
            show_default="newest report in this directory",
        ),
    ] = None,
    rule: Annotated[
        Rule, typer.Option("--rule", help="How values become ratios; linear is AlphaDecay's.")
    ] = Rule.linear,
    basis: Annotated[
        str, typer.Option("--basis", help="alpha, square (shape-free), farms, frobenius_norm or spectral_norm.")
    ] = "alpha",
    s1: Annotated[float, typer.Option("--s1", help="Ratio of the heaviest tail (linear).")] = 0.67,
    s2: Annotated[float, typer.Option("--s2", help="Ratio of the lightest tail (linear).")] = 3.0,
    clip: Annotated[
        tuple[float, float] | None,
        typer.Option("--clip", metavar="LO HI", help="Clip values to these percentiles first, such as 5 95."),
    ] = None,
    preserve_mean: Annotated[
        bool, typer.Option("--preserve-mean", help="Scale the ratios to a mean of 1, weighted by parameters.")
    ] = False,
    compat: Annotated[
        str | None, typer.Option("--compat", help="reference: exactly as the released AlphaDecay code.")
    ] = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    role: options.RoleOption = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", min=0, help="Base decay that the ratios multiply.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Training run to read the base decay, lr and steps from.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", min=0, help="Peak learning rate of the run.")] = None,
    steps_left: Annotated[
        int | None, typer.Option("--steps-left", min=1, help="Optimizer steps to come: will the plan matter?")
    ] = None,
    lr_schedule: Annotated[
        LrSchedule, typer.Option("--lr-schedule", help="Of the lr over the steps left.")
    ] = LrSchedule.to_zero,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="adamc or scionc: let the decays follow the lr.")
    ] = None,
    steps_total: Annotated[
        int | None, typer.Option("--steps-total", min=1, help="--schedule: steps of the run.")
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="--schedule: steps of warm-up.")] = 0,
    lr_shape: Annotated[
        options.LrShape, typer.Option("--lr-shape", help="--schedule: of the lr.")
    ] = options.LrShape.cosine,
    momentum: Annotated[
        float, typer.Option("--momentum", help="scionc: weight of the new gradient, 0.1 for 'momentum 0.9'.")
    ] = 1.0,
    target_norm: Annotated[
        float | None, typer.Option("--target-norm", help="scionc: C^2.", show_default="that of the base decay")
    ] = None,
    tokens: Annotated[float | None, typer.Option("--tokens", help="Power Lines: training tokens of the run.")] = None,
    params: Annotated[float | None, typer.Option("--params", help="Power Lines: parameters of the model.")] = None,
    batch_tokens: Annotated[
        float | None, typer.Option("--batch-tokens", help="Power Lines: tokens of one optimizer step.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option("--context-length", help="Power Lines: tokens of one sequence.")
    ] = None,
    revision: options.RevisionOption = None,
    file: options.FileOption = None,
    role_map: options.RoleMapOption = None,
    experts: options.ExpertsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export", help="Print as torch or transformers (code), json, toml, csv or md.", show_default="table"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the plan as JSON; with --export, what that prints.")
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Every Parameter in the table.")] = False,
) -> None:
    """Which weight decay for which module, why, how sure, and whether it will matter.

    SOURCE is best a saved report: that takes milliseconds. Exit codes: 0 done, 2 usage, 3 source, 4 computation.
    """
    from specdiag.decay.recommend import recommend as plan_for
    from specdiag.files import check_writable
    from specdiag.report import is_report

    from . import recommend_output as show

    if out is not None:
        check_writable(out)
    _check_idle(ctx, rule, schedule)
    source = source or _newest_report()
    from_report = is_report(Path(source))
    given = {name: value for name in _ANALYSIS if (value := options.plain(ctx.params[name])) not in (None, "auto")}
    if from_report:
        options.require_checkpoint(source, given)
    planned = {name: ctx.params[name] for name in _POWER_LINES}
    base = show.base_decay(weight_decay, run, planned, lr=lr, steps_left=steps_left, beside=_run_beside(source))
    course = None
    if schedule is not None:
        from specdiag.decay.schedule_record import decay_schedule

        course = decay_schedule(
            schedule, peak_lr=lr, steps_total=steps_total, lr_shape=lr_shape.value, warmup=warmup, momentum=momentum,
            target_norm=target_norm,
        )  # fmt: skip
    choices: dict[str, Any] = {
        "rule": rule.value, "basis": basis, "s1": s1, "s2": s2, "clip": clip, "preserve_mean": preserve_mean,
        "compat": compat, "weight_decay": base.weight_decay, "base_origin": base.origin, "lr": base.lr,
        "steps_left": base.steps_left, "lr_schedule": lr_schedule.value, "schedule": course,
        "include": include or [], "exclude": exclude or [], "roles": role or [],
    }  # fmt: skip
    if from_report:
        made = plan_for(source, **choices)
    else:
        from .progress import analysis_bar

        with analysis_bar() as bar:
            made = plan_for(source, **choices, **given, cache=options.cache_folder(), progress=bar)
    show.answer(made, base, export, out, all_rows=all_rows)


def _check_idle(ctx: typer.Context, rule: Rule, schedule: str | None) -> None:
    """Raise UsageError for options of a rule or a schedule that was not chosen."""
    if rule is not Rule.linear and (idle := options.given(ctx, _OF_LINEAR)):
        raise UsageError(f"{options.listed(idle)} belongs to --rule linear, not to {rule.value}")
    if schedule is None and (idle := options.given(ctx, _OF_SCHEDULE)):
        raise UsageError(f"{options.listed(idle)} belongs to --schedule: add --schedule adamc or scionc")


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
