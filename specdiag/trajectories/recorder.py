"""A run as it is gathered: each step from its saved report where that still holds, else analysed, saved and logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import ComputationError, SourceError
from specdiag.report import SpectralReport, load_report
from specdiag.trajectories.entries import step_entries, step_result, tracked
from specdiag.trajectories.ledger import Ledger, report_name, save_step, saved_report
from specdiag.trajectories.losses import Losses, read_losses
from specdiag.trajectories.metric_log import LOG_NAME, LogEntry, append_log, latest, read_log
from specdiag.trajectories.records import DroppedStep, StepResult, TrackedModule, Trajectory
from specdiag.trajectories.steps import RunStep, fingerprint

if TYPE_CHECKING:
    from specdiag.analysis.options import RunArguments
    from specdiag.analysis.run import Progress

Analyse = Callable[[RunStep], SpectralReport]


@dataclass
class Recorder:
    """Finished steps of a run, and the means to finish more.

    Attributes:
        run: what was given.
        out: the folder with ledger, log and reports.
        ledger: what is finished there.
        analyse: gives the report of a step.
        spectra: keep the eigenvalues too.
        writes: save and log what is finished; False where another process does.
    """

    run: str
    out: Path
    ledger: Ledger
    analyse: Analyse
    spectra: bool = False
    writes: bool = True
    steps: dict[int, StepResult] = field(default_factory=dict[int, StepResult])
    dropped: dict[int, DroppedStep] = field(default_factory=dict[int, DroppedStep])
    modules: dict[str, TrackedModule] = field(default_factory=dict[str, TrackedModule])
    rows: dict[int, list[LogEntry]] = field(default_factory=dict[int, list[LogEntry]])
    n_gone: int = 0

    def __post_init__(self) -> None:
        path = self.out / LOG_NAME
        self._logged: dict[int, list[LogEntry]] = {}
        for entry in latest(read_log(path)) if path.exists() else ():
            self._logged.setdefault(entry.step, []).append(entry)

    def take(self, step: RunStep) -> StepResult | DroppedStep:
        """Finish a step, or say why not: a checkpoint that cannot be read, or not now."""
        try:
            result = self._taken(step)
        except (SourceError, ComputationError, OSError) as error:
            return self.drop(step, str(error))
        self.dropped.pop(step.step, None)
        return result

    def drop(self, step: RunStep, reason: str) -> DroppedStep:
        """Leave a step out."""
        self.dropped[step.step] = DroppedStep(step=step.step, location=str(step), reason=reason)
        return self.dropped[step.step]

    def keep_the_gone(self, there: set[int]) -> None:
        """Take finished steps whose checkpoints were deleted since, as a Trainer does that keeps only the last few."""
        for name, finished in self.ledger.steps.items():
            step = int(name)
            if step in there or Path(finished.location).exists():
                continue
            try:
                report = load_report(self.out / finished.report)
            except SourceError as error:
                self.dropped[step] = DroppedStep(step=step, location=finished.location, reason=str(error))
                continue
            known = {e.metric: e.value for e in self._logged.get(step, ()) if not e.module}
            losses = Losses(loss=known.get("loss"), eval_loss=known.get("eval_loss"))
            self._add(step_result(step, report, finished.report, losses, resumed=True), report)
            self.n_gone += 1

    def trajectory(self) -> Trajectory:
        """Return the trajectory as far as it is finished."""
        order = sorted(self.steps)
        return Trajectory(
            run=self.run,
            out=str(self.out),
            steps=tuple(self.steps[s] for s in order),
            dropped=tuple(self.dropped[s] for s in sorted(self.dropped)),
            modules=tuple(self.modules.values()),
            rows=tuple(row for s in order for row in self.rows[s]),
            notes=tuple(self._notes()),
        )

    def _taken(self, step: RunStep) -> StepResult:
        mark = fingerprint(step)
        report = saved_report(self.out, self.ledger, step.step, mark)
        resumed = report is not None
        if report is None:
            report = self.analyse(step)
            if fingerprint(step) != mark:
                raise SourceError("it changed while it was read: it is being written")
            if self.writes:
                self.ledger = save_step(self.out, self.ledger, step.step, str(step), mark, report, spectra=self.spectra)
        losses = Losses() if step.path is None else read_losses(step.path, step.step)
        return self._add(step_result(step.step, report, report_name(step.step), losses, resumed=resumed), report)

    def _add(self, result: StepResult, report: SpectralReport) -> StepResult:
        """Keep a step, and write to the log what is not there yet."""
        entries = step_entries(result, report)
        if self.writes and not set(entries) <= set(self._logged.get(result.step, ())):
            append_log(self.out / LOG_NAME, entries)
        self.steps[result.step] = result
        self.modules |= {r.key: tracked(r) for r in report if r.key not in self.modules}
        self.rows[result.step] = entries
        return result

    def _notes(self) -> list[str]:
        notes: list[str] = []
        partial = sorted({s.n_matrices for s in self.steps.values()})
        if len(partial) > 1:
            notes.append(
                f"The checkpoints hold {partial[0]} to {partial[-1]} matrices: medians are over those of each step."
            )
        if self.n_gone:
            notes.append(f"{self.n_gone} checkpoints are gone by now; what was found in them is kept.")
        return notes


def analyse_step(
    step: RunStep, options: RunArguments, progress: Callable[[Progress], None] | None = None
) -> SpectralReport:
    """Analyse the checkpoint of a step.

    Args:
        step: the checkpoint.
        options: further arguments of `analyze`.
        progress: as for `analyze`.

    Raises:
        SourceError: the checkpoint, or some of its matrices, cannot be read.
    """
    from specdiag.analysis.analyze import analyze

    report = analyze(step.location, revision=step.revision, stream=step.stream, progress=progress, **options)
    failed = [r.key for r in report if r.status == "failed"]
    if failed:
        raise SourceError(f"{len(failed)} of {len(report)} matrices could not be read or solved, such as {failed[0]}")
    return report
