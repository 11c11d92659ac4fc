"""Checks of `specdiag recommend` before its work, and what it takes where no source is named."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from specdiag.errors import SourceError, UsageError

from . import options, output

POWER_LINES = ("tokens", "params", "batch_tokens", "context_length")
"""Options that give a base decay by Power Lines."""
_OF_LINEAR = ("s1", "s2")
_OF_VALUES = ("basis", "clip", "preserve_mean", "compat")
_OF_SCHEDULE = ("steps_total", "warmup", "lr_shape", "momentum", "target_norm")


def idle(ctx: typer.Context, rule: str, schedule: object) -> None:
    """Raise UsageError for options of a rule or a schedule that was not chosen."""
    if rule != "linear" and (idle := options.given(ctx, _OF_LINEAR)):
        raise UsageError(f"{options.listed(idle)} belongs to --rule linear, not to {rule}")
    if rule in ("uniform", "none") and (idle := options.given(ctx, _OF_VALUES)):
        raise UsageError(f"--rule {rule} looks at no values: leave out {options.listed(idle)}")
    if schedule is None and (idle := options.given(ctx, _OF_SCHEDULE)):
        raise UsageError(f"{options.listed(idle)} belongs to --schedule: add --schedule adamc or scionc")


def alone(ctx: typer.Context, export: str | None) -> None:
    """Raise UsageError for whatever a base decay without a checkpoint has no use for."""
    if idle := options.given(ctx, [name for name in ctx.params if name not in (*POWER_LINES, "lr", "export", "out")]):
        raise UsageError(
            f"{options.listed(idle)} needs a checkpoint or a saved report: name it as SOURCE; without one only the "
            "base decay by Power Lines is given"
        )
    if export not in (None, "json"):
        raise UsageError(f"--export {export} needs a plan: name a SOURCE, or choose --export json for the base decay")


def run_beside(source: str) -> Path | None:
    """The folder of a local checkpoint, which may hold the optimizer's state too."""
    path = Path(source)
    return path if path.is_dir() else None


_REPORT = re.compile(rb'\{"schema":\d+,"source":')
"""The beginning of a report, and not of a comparison."""


def newest_report() -> str:
    """The newest saved report of this directory."""
    from specdiag.files import read_start

    found = [path for path in Path().glob("*.json") if _REPORT.match(read_start(path, 64))]
    if not found:
        raise SourceError("there is no saved report in this directory: name a SOURCE, or run 'specdiag analyze' first")
    newest = max(found, key=lambda path: path.stat().st_mtime)
    output.talk(f"taking the newest report here, {newest}", "dim")
    return str(newest)
