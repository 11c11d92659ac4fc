"""`trajectory`: every checkpoint of a run, one at a time, each finished one for good."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.metric_log import LOG_NAME, LogEntry, append_log, latest, read_log
from specdiag.report import SpectralReport
from specdiag.trajectories.entries import step_entries, step_result, tracked
from specdiag.trajectories.ledger import Ledger, open_ledger, report_name, save_step, saved_report
from specdiag.trajectories.losses import Losses, read_losses
from specdiag.trajectories.records import OUT_NAME, DroppedStep, StepResult, TrackedModule, Trajectory
from specdiag.trajectories.steps import RunStep, find_steps, fingerprint

if TYPE_CHECKING:
    from specdiag.analysis import Progress

_NOT_IN_LEDGER = ("jobs", "memory")
"""Options that change no number."""


class TrajectoryInterrupted(KeyboardInterrupt):
    """Ctrl-C during a trajectory. `trajectory` holds the steps that are finished; the next call goes on from them."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(f"interrupted after {len(trajectory.steps)} steps")
        self.trajectory = trajectory


def trajectory(
    source: str | os.PathLike[str],
    *,
    revisions: str | Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    spectra: bool = False,
    on_step: Callable[[StepResult | DroppedStep], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **analysis: Any,
) -> Trajectory:
    """Exponents, norms and ranks over the steps of a run, streamed one checkpoint at a time.

    A step that is finished is not analysed again while its checkpoint, the options and specdiag stay the same.

    Args:
        source: a run directory (`checkpoint-N`, `stepN`), a glob, or a hub repository with `revisions`.
        revisions: such as `("step1000", "step2000")`, the step being the last number of the name.
        out: folder for the reports, the log and the ledger; None for `specdiag_trajectory` in the run, or in the
            working directory where the run cannot be written.
        spectra: keep every eigenvalue too.
        on_step: called after every step, with its result or why there is none.
        progress: as for `analyze`, within each step.
        analysis: further arguments of `analyze`, the same for all steps.

    Raises:
        UsageError: an option makes no sense, or `out` holds something else.
        SourceError: there are no checkpoints.
        ComputationError: none of them could be analysed.
        TrajectoryInterrupted: Ctrl-C; carries what is finished.

    Example:
        >>> found = specdiag.trajectory("runs/mine")  # doctest: +SKIP
        >>> found.series("frobenius_norm", "up")  # doctest: +SKIP
    """
    for name in ("revision", "file"):
        if name in analysis:
            raise UsageError(f"{name} picks one checkpoint: name several with revisions, or by a glob")
    steps = find_steps(source, revisions)
    folder = _output_folder(source, steps, out)
    options = {name: value for name, value in analysis.items() if name not in _NOT_IN_LEDGER}
    ledger = open_ledger(folder, os.fspath(source), options)
    gathered = _Gathered(os.fspath(source), folder, _logged(folder))
    try:
        for step in steps:
            try:
                ledger = _take(step, gathered, ledger, analysis, progress, spectra=spectra)
            except (SourceError, ComputationError, OSError) as error:
                gathered.dropped.append(DroppedStep(step=step.step, location=str(step), reason=str(error)))
            if on_step is not None:
                on_step(gathered.last(step.step))
    except KeyboardInterrupt as interruption:
        raise TrajectoryInterrupted(gathered.trajectory()) from interruption
    if not gathered.steps:
        first = gathered.dropped[0]
        raise ComputationError(f"none of {len(steps)} checkpoints could be analysed; {first.location}: {first.reason}")
    return gathered.trajectory()


@dataclass
class _Gathered:
    """What is finished so far."""

    run: str
    out: Path
    logged: dict[int, list[LogEntry]]
    steps: list[StepResult] = field(default_factory=list[StepResult])
    dropped: list[DroppedStep] = field(default_factory=list[DroppedStep])
    modules: dict[str, TrackedModule] = field(default_factory=dict[str, TrackedModule])
    rows: list[LogEntry] = field(default_factory=list[LogEntry])

    def add(self, result: StepResult, report: SpectralReport) -> None:
        """Keep a step, and write to the log what is not there yet."""
        entries = step_entries(result, report)
        if not set(entries) <= set(self.logged.get(result.step, ())):
            append_log(self.out / LOG_NAME, entries)
        self.steps.append(result)
        self.modules |= {r.key: tracked(r) for r in report if r.key not in self.modules}
        self.rows += entries

    def last(self, step: int) -> StepResult | DroppedStep:
        return next(found for found in (*self.steps[-1:], *self.dropped[-1:]) if found.step == step)

    def trajectory(self) -> Trajectory:
        return Trajectory(
            run=self.run,
            out=str(self.out),
            steps=tuple(self.steps),
            dropped=tuple(self.dropped),
            modules=tuple(self.modules.values()),
            rows=tuple(self.rows),
            notes=tuple(self._notes()),
        )

    def _notes(self) -> list[str]:
        partial = sorted({s.n_matrices for s in self.steps})
        if len(partial) < 2:
            return []
        return [
            f"The checkpoints hold from {partial[0]} to {partial[-1]} matrices: medians are over those at each step."
        ]


def _take(
    step: RunStep,
    gathered: _Gathered,
    ledger: Ledger,
    analysis: dict[str, Any],
    progress: Callable[[Progress], None] | None,
    *,
    spectra: bool,
) -> Ledger:
    """One step: from its saved report where that still holds, else analysed, saved, and entered."""
    mark = fingerprint(step)
    report = saved_report(gathered.out, ledger, step.step, mark)
    resumed = report is not None
    if report is None:
        report = _analysed(step, analysis, progress)
        if fingerprint(step) != mark:
            raise SourceError("it changed while it was read: it is being written")
        ledger = save_step(gathered.out, ledger, step.step, str(step), mark, report, spectra=spectra)
    losses = Losses() if step.path is None else read_losses(step.path, step.step)
    gathered.add(step_result(step.step, report, report_name(step.step), losses, resumed=resumed), report)
    return ledger


def _analysed(step: RunStep, analysis: dict[str, Any], progress: Callable[[Progress], None] | None) -> SpectralReport:
    from specdiag.analysis import analyze

    report = analyze(step.location, revision=step.revision, progress=progress, **analysis)
    failed = [r.key for r in report if r.status == "failed"]
    if failed:
        raise SourceError(f"{len(failed)} of {len(report)} matrices could not be read or solved, such as {failed[0]}")
    return report


def _logged(out: Path) -> dict[int, list[LogEntry]]:
    """What the log has of each step."""
    path = out / LOG_NAME
    found: dict[int, list[LogEntry]] = {}
    for entry in latest(read_log(path)) if path.exists() else ():
        found.setdefault(entry.step, []).append(entry)
    return found


def _output_folder(
    source: str | os.PathLike[str], steps: Sequence[RunStep], out: str | os.PathLike[str] | None
) -> Path:
    """The folder, made; in the run where that can be written."""
    if out is not None:
        return _made(Path(out))
    folders = {step.path.resolve().parent for step in steps if step.path is not None}
    if len(folders) == 1:
        try:
            return _made(folders.pop() / OUT_NAME)
        except UsageError:
            pass
    return _made(Path(OUT_NAME))


def _made(folder: Path) -> Path:
    from specdiag.report import check_writable

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; name another with --out") from error
    check_writable(folder / LOG_NAME)
    return folder
