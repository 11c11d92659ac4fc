"""`specdiag audit`: faults of a checkpoint, and an exit code for pipelines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, output, targets
from .sharing import Given, takes_shared


class FailOn(StrEnum):
    """The least severity that fails."""

    warn = "warn"
    fail = "fail"


class Format(StrEnum):
    """Formats of the audit."""

    table = "table"
    json = "json"
    md = "md"


@takes_shared("audit")
@output.guarded
def audit(
    ctx: typer.Context,
    source: options.SourceArgument,
    *,
    given: Given,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="SOURCE",
            help="Compare with this report or checkpoint.",
            rich_help_panel=options.THRESHOLDS,
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            "--thresholds", metavar="FILE", help="TOML file that changes checks.", rich_help_panel=options.THRESHOLDS
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
        typer.Option("--lr-shape", help="Course of its lr; any where it is not given.", rich_help_panel=options.RUN),
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
    format: Annotated[
        Format, typer.Option("--format", "-f", help="Format of what is printed.", rich_help_panel=options.OUTPUT)
    ] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Save the audit as JSON; with -f md, what that prints.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    all_rows: options.AllOption = False,
) -> None:
    """Check a checkpoint for NaN, broken matrices, config mismatches and unusual spectra.

    A saved report takes milliseconds; the checkpoint itself is also held against its config.json. NaN is a finding.
    Exit codes: 0 passed, 1 findings of --fail-on or worse, 2 usage, 3 source, 130 interrupted
    by Ctrl-C, else 128 and the signal's number.
    """
    from specdiag.auditing.audit import audit as run
    from specdiag.report import is_report

    from . import audit_output as show

    targets.check_file(out, format.value)
    from_report = is_report(Path(source))
    if from_report:
        given.require_checkpoint(source)
    asked: dict[str, Any] = {
        "baseline": baseline, "thresholds": thresholds, "weight_decay": weight_decay, "lr": lr, "steps": steps,
        "lr_shape": None if lr_shape is None else lr_shape.value, "warmup": warmup, "final_lr": final_lr,
        "initial_rms": initial_rms,
    }  # fmt: skip
    if from_report and (baseline is None or is_report(Path(baseline))):
        found = run(source, **asked)
    else:
        from .progress import analysis_bar

        try:
            with analysis_bar() as bar:
                found = run(source, **asked, **given.analysis(), progress=bar)
        except KeyboardInterrupt:
            output.talk("interrupted: nothing was audited", "yellow")
            output.leave()
    show.answer(found, format.value, out, all_rows=all_rows)
    if found.at_least(fail_on.value):
        raise typer.Exit(1)
