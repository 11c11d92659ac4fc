"""`specdiag audit`: faults of a checkpoint, and an exit code for pipelines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdiag.errors import UsageError

from . import annotations, audit_fleet, audit_sources, options, output, source_list, targets, workflow
from . import audit_output as show
from .audit_verdict import End, exit_code, reason
from .sharing import Given, takes_shared

if TYPE_CHECKING:
    from specdiag.auditing.outcomes import Outcome


class FailOn(StrEnum):
    """The least severity that fails."""

    warn = "warn"
    fail = "fail"


class Format(StrEnum):
    """Formats of the audit."""

    table = "table"
    json = "json"
    md = "md"
    sarif = "sarif"
    junit = "junit"
    parquet = "parquet"


@takes_shared("audit")
@output.guarded
def audit(
    ctx: typer.Context,
    sources: options.SourcesArgument = None,
    *,
    given: Given,
    models: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Audit the sources listed in this file, one per line (- for stdin); hub models are streamed.",
            rich_help_panel=options.SOURCE,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="SOURCE",
            help="Compare with this report or checkpoint; --part applies to both.",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            "--thresholds",
            metavar="FILE",
            help="TOML file that changes checks: limits, severities, modules to ignore (with a reason).",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on", help="Exit with 1 if a finding is at least this severe.", rich_help_panel=options.THRESHOLDS
        ),
    ] = FailOn.fail,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            help="Check the weight norms against this AdamW decay (needs --lr).",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Peak learning rate of that run.", rich_help_panel=options.RUN)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Optimizer steps of that run.", rich_help_panel=options.RUN)
    ] = None,
    lr_shape: Annotated[
        options.LrShape | None,
        typer.Option(
            "--lr-shape",
            help="Schedule of its lr; without it, any schedule counts as possible.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Its steps from 0 to the peak lr.", rich_help_panel=options.RUN)
    ] = 0,
    final_lr: Annotated[
        float | None,
        typer.Option(
            "--final-lr",
            help="Last lr of linear and cosine.",
            show_default="0 to a tenth of the peak",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    initial_rms: Annotated[
        float | None,
        typer.Option(
            "--initial-rms", help="RMS of its first weights.", show_default="any", rich_help_panel=options.RUN
        ),
    ] = None,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="CHECK",
            help="Say what a check measures, why, and what to do; audit nothing.",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = None,
    reference_model: Annotated[
        bool,
        typer.Option(
            "--reference-model/--no-reference-model",
            help="Compare names and shapes with transformers' own model of config.json (about 4 s).",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = True,
    reference: options.ReferenceOption = None,
    tokens: Annotated[
        int,
        typer.Option(
            "--tokens",
            metavar="N",
            min=0,
            help="Find tokens that training hardly met, and list N of them.",
            rich_help_panel=options.CONTENT,
        ),
    ] = 0,
    alarms: Annotated[
        bool,
        typer.Option(
            "--alarms",
            help="Find removed directions, and bound outputs and scores (reads the weights again).",
            rich_help_panel=options.CONTENT,
        ),
    ] = False,
    save_directions: Annotated[
        Path | None,
        typer.Option(
            "--save-directions",
            metavar="FILE",
            help="Save the removed directions that --alarms found, as safetensors.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=options.OUTPUT)
    ] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Save the audit as JSON, or what -f prints. Parquet keeps the rows of unchanged models.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    sarif_location: Annotated[
        str | None,
        typer.Option(
            "--sarif-location",
            metavar="FILE",
            help="File in the repository to which -f sarif attaches findings of models outside of it.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    all_rows: options.AllOption = False,
) -> None:
    """Check checkpoints for NaN, broken matrices, config mismatches and unusual spectra.

    A saved report takes milliseconds. A checkpoint is also compared with its config.json. NaN is a finding.
    Exit codes: 0 passed, 1 a source has findings of --fail-on or worse, 2 usage, else 3 source, 4 computation,
    130 stopped by Ctrl-C, or 128 plus the number of another signal.
    """
    from specdiag.auditing.thresholds import load_checks
    from specdiag.reference.ranges import the_reference

    checks = load_checks(thresholds)
    if explain is not None:
        audit_sources.require_alone(ctx, sources or [])
        show.explain(explain, checks)
        return
    targets.check_file(out, format.value)
    the_reference(reference)
    options.check_rows(all_rows=all_rows, format="table" if format is Format.md else format.value)
    if format is Format.parquet:
        out = audit_fleet.target(out)
    listed = [] if models is None else source_list.read(models)
    named = list(dict.fromkeys((*(sources or ()), *listed)))
    targets.check_apart(out, *named, *([] if models is None else [str(models)]))
    audit_sources.check(named, baseline, given, tokens=tokens, alarms=alarms)
    if save_directions is not None:
        audit_sources.check_directions(save_directions, named, alarms=alarms)
    if format is not Format.sarif and sarif_location is not None:
        raise UsageError("--sarif-location goes with -f sarif")
    if format is Format.sarif and sarif_location is None:
        audit_sources.require_location(named)
    asked: options.Arguments = {
        "baseline": baseline, "thresholds": thresholds, "weight_decay": weight_decay, "lr": lr, "steps": steps,
        "lr_shape": None if lr_shape is None else lr_shape.value, "warmup": warmup, "final_lr": final_lr,
        "initial_rms": initial_rms,
        "reference_model": reference_model, "reference": reference, "tokens": tokens, "alarms": alarms,
        "save_directions": save_directions,
    }  # fmt: skip
    severity = fail_on.value
    streamed = set(listed) - set(sources or ())
    if format is Format.parquet and out is not None:
        ends = audit_fleet.audit_fleet(named, asked, given, streamed, out)
        code = exit_code(ends, severity)
        show.reason(reason(ends, severity), code, below=False)
        raise typer.Exit(code)
    outcomes: list[Outcome] = []
    for outcome in audit_sources.audit_each(named, asked, given, streamed):
        outcomes.append(outcome)
        if outcome.audit is not None:
            show.tell(outcome.audit, format.value, all_rows=all_rows)
    ends = [End.of(outcome) for outcome in outcomes]
    code = exit_code(ends, severity)
    encode = {
        Format.md: lambda: show.to_markdown(outcomes, all_rows=all_rows),
        Format.junit: lambda: show.to_junit(outcomes, severity),
        Format.sarif: lambda: show.to_sarif(outcomes, checks, sarif_location, code),
    }.get(format, lambda: show.to_json(outcomes))
    # A log of code scanning or a test report says what could not be read; else only a list of several sources can.
    has_data = format in (Format.sarif, Format.junit) or len(named) > 1 or outcomes[0].audit is not None
    if has_data and (out is not None or format is not Format.table):
        output.deliver(encode(), out)
    if workflow.is_on():
        annotations.annotate(list(map(show.in_options, outcomes)))
    show.reason(reason(ends, severity), code, below=has_data and format is Format.table)
    if format is Format.table and len(named) == 1 and outcomes[0].audit is not None:
        show.show_next(outcomes[0].audit, named[0], reopens=not given.names)
    if code:
        raise typer.Exit(code)
