"""Turns the report of a step into entries of the log."""

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
        step: number of the step.
        report: report of its checkpoint.
        file: name of the saved report.
        losses: last losses at or before the step.
        resumed: True if the report had been saved before.
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
    """List the log entries of a step.

    Args:
        result: summary of the step, with the metrics of the whole network.
        report: report of the step's checkpoint.

    Returns:
        Entries of the whole network, then those of each matrix in stored order. A missing value has no entry.
    """
    run_metrics = {
        "loss": result.loss,
        "eval_loss": result.eval_loss,
        "balance_sd": result.balance_sd,
        "balance_range": result.balance_range,
    }
    run_entries = [entry(result.step, RUN, metric, value) for metric, value in run_metrics.items() if value is not None]
    return [*run_entries, *(e for record in followed(report) for e in _matrix_entries(result.step, record))]


def followed(report: SpectralReport) -> tuple[ModuleRecord, ...]:
    """List the rows that are followed over the steps: stored matrices, and those of the function.

    Args:
        report: of a step.
    """
    return (*report.records, *report.function)


def tracked(record: ModuleRecord | TrackedModule) -> TrackedModule:
    """Copy the fields that group the log entries of a matrix."""
    return TrackedModule(
        key=record.key,
        role=record.role,
        family=record.family,
        layer=record.layer,
        component=record.component,
        form=record.form,
        rows=record.rows,
        cols=record.cols,
    )


def _matrix_entries(step: int, record: ModuleRecord) -> Iterator[LogEntry]:
    for metric in TRACKED:
        value: float | None = getattr(record, metric)
        if value is not None:
            yield entry(step, record.key, metric, value)
    if record.n_nonfinite:
        yield entry(step, record.key, "n_nonfinite", record.n_nonfinite)
