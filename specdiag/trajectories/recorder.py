"""Gathers the steps of a run: a valid saved report is loaded, any other step is analysed, saved and logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import ComputationError, SourceError
from specdiag.report import SpectralReport, load_report
from specdiag.trajectories.entries import followed, step_entries, step_result, tracked
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
        run: path, glob or repository of the run.
        out: output folder with ledger, log and reports.
        ledger: finished steps in that folder.
        analyse: makes the report of a step.
        spectra: True to save the eigenvalues too.
        writes: True to save and log finished steps; False if another process does.
        steps: results of the finished steps by number.
        dropped: steps without a result by number; None stands for a file whose step cannot be read.
        modules: matrices by key.
        rows: log entries of the finished steps by number.
        deleted: finished steps whose checkpoints no longer exist.
    """

    run: str
    out: Path
    ledger: Ledger
    analyse: Analyse
    spectra: bool = False
    writes: bool = True
    steps: dict[int, StepResult] = field(default_factory=dict[int, StepResult])
    dropped: dict[int | None, DroppedStep] = field(default_factory=dict[int | None, DroppedStep])
    modules: dict[str, TrackedModule] = field(default_factory=dict[str, TrackedModule])
    rows: dict[int, list[LogEntry]] = field(default_factory=dict[int, list[LogEntry]])
    deleted: set[int] = field(default_factory=set[int])

    def __post_init__(self) -> None:
        path = self.out / LOG_NAME
        self._logged: dict[int, list[LogEntry]] = {}
        for entry in latest(read_log(path)) if path.exists() else ():
            self._logged.setdefault(entry.step, []).append(entry)

    def record(self, step: RunStep) -> StepResult | DroppedStep:
        """Finish a step, or drop it with the reason if its checkpoint cannot be read or analysed now."""
        try:
            result = self._record(step)
        except (SourceError, ComputationError, OSError) as error:
            return self.drop(step.step, str(step), str(error))
        for outdated in (step.step, None):
            self.dropped.pop(outdated, None)
        self.deleted.discard(step.step)
        return result

    def drop(self, step: int | None, location: str, reason: str) -> DroppedStep:
        """Leave a step out, for the given reason."""
        self.dropped[step] = DroppedStep(step=step, location=location, reason=reason)
        return self.dropped[step]

    def keep_deleted(self, present: set[int], *, overwritten: bool = False) -> None:
        """Keep finished steps whose checkpoints were deleted later, for instance by a Trainer that keeps only a few.

        Args:
            present: numbers of the steps whose checkpoints exist.
            overwritten: True if all steps lay in one file, which holds the last of them.
        """
        for name, finished in self.ledger.steps.items():
            step = int(name)
            if not overwritten and (step in present or Path(finished.location).exists()):
                continue
            try:
                report = load_report(self.out / finished.report)
            except SourceError as error:
                self.dropped[step] = DroppedStep(step=step, location=finished.location, reason=str(error))
                continue
            run_metrics = {e.metric: e.value for e in self._logged.get(step, ()) if not e.module}
            losses = Losses(loss=run_metrics.get("loss"), eval_loss=run_metrics.get("eval_loss"))
            self._add(step_result(step, report, finished.report, losses, resumed=True), report)
            self.deleted.add(step)

    def trajectory(self) -> Trajectory:
        """Return the trajectory of the steps so far."""
        order = sorted(self.steps)
        return Trajectory(
            run=self.run,
            out=str(self.out),
            steps=tuple(self.steps[s] for s in order),
            dropped=tuple(self.dropped[s] for s in sorted(self.dropped, key=lambda s: -1 if s is None else s)),
            modules=tuple(self.modules.values()),
            rows=tuple(row for s in order for row in self.rows[s]),
            notes=tuple(self._notes()),
        )

    def _record(self, step: RunStep) -> StepResult:
        identity = fingerprint(step) if step.content is None else step.content.fingerprint
        if step.content is not None:
            self._require_progress(step)
        report = saved_report(self.out, self.ledger, step.step, identity)
        resumed = report is not None
        if report is None:
            report = self.analyse(step)
            if fingerprint(step) != identity:
                raise SourceError("it changed while it was read: it is being written")
            if self.writes:
                self.ledger = save_step(
                    self.out, self.ledger, step.step, str(step), identity, report, spectra=self.spectra
                )
        losses = Losses() if step.path is None else read_losses(step.path, step.step)
        return self._add(step_result(step.step, report, report_name(step.step), losses, resumed=resumed), report)

    def _require_progress(self, step: RunStep) -> None:
        """Refuse what a file holds if it held a later step before: two runs make no course."""
        last = max(map(int, self.ledger.steps), default=0)
        if step.step < last:
            raise SourceError(
                f"it went back from step {last}, as where a run begins anew or is taken up from an old copy: record it "
                "in another folder with out="
            )

    def _add(self, result: StepResult, report: SpectralReport) -> StepResult:
        """Keep a step, and log its entries unless they have been logged before."""
        entries = step_entries(result, report)
        if self.writes and not set(entries) <= set(self._logged.get(result.step, ())):
            append_log(self.out / LOG_NAME, entries)
        self.steps[result.step] = result
        self.modules |= {r.key: tracked(r) for r in followed(report) if r.key not in self.modules}
        self.rows[result.step] = entries
        return result

    def _notes(self) -> list[str]:
        notes: list[str] = []
        partial = sorted({s.n_matrices for s in self.steps.values()})
        if len(partial) > 1:
            notes.append(
                f"The checkpoints hold {partial[0]} to {partial[-1]} matrices: medians are over those of each step."
            )
        if self.deleted:
            notes.append(f"{len(self.deleted)} checkpoints are gone by now; what was found in them is kept.")
        return notes


def analyse_step(
    step: RunStep, options: RunArguments, progress: Callable[[Progress], None] | None = None
) -> SpectralReport:
    """Analyse the checkpoint of a step.

    Args:
        step: step of a run, with the location of its checkpoint.
        options: further arguments of `analyze`.
        progress: as for `analyze`.

    Raises:
        SourceError: the checkpoint, or some of its matrices, cannot be read.
    """
    from specdiag.analysis.analyze import analyze

    copy = None if step.content is None else step.content.copy
    report = analyze(copy or step.location, revision=step.revision, stream=step.stream, progress=progress, **options)
    failed = [r.key for r in report if r.status == "failed"]
    if failed:
        raise SourceError(f"{len(failed)} of {len(report)} matrices could not be read or solved, such as {failed[0]}")
    return report
