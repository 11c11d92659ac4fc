"""`specdiag audit`: what is wrong with a checkpoint, and an exit code for pipelines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, output

_ANALYSIS = (
    "revision", "file", "base", "role_map", "include", "exclude", "role", "experts", "device", "dtype", "randomize",
    "jobs", "memory",
)  # fmt: skip


class FailOn(StrEnum):
    """From which severity on the exit code is 1."""

    warn = "warn"
    fail = "fail"


class Format(StrEnum):
    """What is printed."""

    table = "table"
    json = "json"
    md = "md"


@output.guarded
def audit(
    ctx: typer.Context,
    source: options.SourceArgument,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="SOURCE", help="Report or checkpoint to compare with.")
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option("--thresholds", metavar="FILE", help="TOML file that changes checks.")
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Severity from which on the exit code is 1.")
    ] = FailOn.fail,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", help="AdamW's, of the run: do the weights fit it? With --lr.")
    ] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate of that run.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Its optimizer steps.")] = None,
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Look for correlation traps too (twice the work).")
    ] = False,
    revision: options.RevisionOption = None,
    file: options.FileOption = None,
    base: options.BaseOption = None,
    role_map: options.RoleMapOption = None,
    include: options.IncludeOption = None,
    exclude: options.ExcludeOption = None,
    role: options.RoleOption = None,
    experts: options.ExpertsOption = None,
    device: options.DeviceOption = "auto",
    dtype: options.DTypeOption = options.DType.auto,
    jobs: options.JobsOption = None,
    memory: options.MemoryOption = None,
    cache: options.CacheOption = True,
    format: Annotated[Format, typer.Option("--format", "-f", help="What is printed.")] = Format.table,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Save the audit as JSON; with -f md, what that prints.")
    ] = None,
    all_rows: Annotated[bool, typer.Option("--all", help="Every finding in table and markdown.")] = False,
) -> None:
    """What is wrong with a checkpoint: bad values, broken matrices, broken promises of config.json, odd spectra.

    A saved report takes milliseconds; the checkpoint itself is also held against its config.json. NaN is a finding.
    Exit codes: 0 passed, 1 findings of --fail-on or worse, 2 usage, 3 source, 130 interrupted
    by Ctrl-C, else 128 and the signal's number.
    """
    from specdiag.auditing.audit import audit as run
    from specdiag.files import check_writable
    from specdiag.report import is_report

    from . import audit_output as show

    if out is not None:
        check_writable(out)
    from_report = is_report(Path(source))
    given = options.given(ctx, _ANALYSIS)
    if from_report:
        options.require_checkpoint(source, given)
    if "role" in given:
        given["roles"] = given.pop("role")
    asked: dict[str, Any] = {
        "baseline": baseline, "thresholds": thresholds, "weight_decay": weight_decay, "lr": lr, "steps": steps,
    }  # fmt: skip
    if from_report and (baseline is None or is_report(Path(baseline))):
        found = run(source, **asked)
    else:
        from .progress import analysis_bar

        given["cache"] = options.cache_folder(wanted=cache)
        try:
            with analysis_bar() as bar:
                found = run(source, **asked, **given, progress=bar)
        except KeyboardInterrupt:
            output.talk("interrupted: nothing was audited", "yellow")
            output.leave()
    show.answer(found, format.value, out, all_rows=all_rows)
    if found.at_least(fail_on.value):
        raise typer.Exit(1)
