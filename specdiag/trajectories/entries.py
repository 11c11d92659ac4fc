"""From the report of a step to lines of the log."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.trajectories.losses import Losses
from specdiag.trajectories.metric_log import RUN, LogEntry, entry
from specdiag.trajectories.records import TRACKED, StepResult, TrackedModule


def step_result(step: int, report: SpectralReport, file: str, losses: Losses, *, resumed: bool) -> StepResult:
    """Summarise a step.

    Args:
        step: its number.
        report: what was found.
        file: name of the saved report.
        losses: logged at or before the step.
        resumed: whether the report was there already.
    """
    return StepResult(
        step=step,
        source=report.source,
        report=file,
        n_matrices=len(report),
        statuses=report.summary.statuses,
        loss=losses.loss,
        loss_step=losses.loss_step,
        eval_loss=losses.eval_loss,
        balance_sd=report.summary.balance_sd,
        balance_range=report.summary.balance_range,
        resumed=resumed,
    )


def step_entries(result: StepResult, report: SpectralReport) -> list[LogEntry]:
    """The whole network first, then every matrix in stored order; values that do not exist have no line."""
    of_run = {
        "loss": result.loss,
        "eval_loss": result.eval_loss,
        "balance_sd": result.balance_sd,
        "balance_range": result.balance_range,
    }
    run_entries = [entry(result.step, RUN, metric, value) for metric, value in of_run.items() if value is not None]
    return [*run_entries, *(e for record in report for e in _of(result.step, record))]


def tracked(record: ModuleRecord | TrackedModule) -> TrackedModule:
    """Describe a matrix, to group its lines."""
    return TrackedModule(
        key=record.key,
        role=record.role,
        family=record.family,
        layer=record.layer,
        component=record.component,
        rows=record.rows,
        cols=record.cols,
    )


def _of(step: int, record: ModuleRecord) -> Iterator[LogEntry]:
    for metric in TRACKED:
        value: float | None = getattr(record, metric)
        if value is not None:
            yield entry(step, record.key, metric, value)
    if record.n_nonfinite:
        yield entry(step, record.key, "n_nonfinite", record.n_nonfinite)
