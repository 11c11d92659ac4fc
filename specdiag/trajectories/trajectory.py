"""`trajectory`: analyses the checkpoints of a run one at a time, and keeps what is finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from specdiag.analysis import options
from specdiag.analysis.options import RunArguments
from specdiag.errors import ComputationError, UsageError
from specdiag.files import check_writable
from specdiag.resources import may_have_accelerator
from specdiag.text import checks
from specdiag.trajectories.ledger import Ledger, open_ledger
from specdiag.trajectories.metric_log import LOG_NAME
from specdiag.trajectories.recorder import Recorder, analyse_step
from specdiag.trajectories.records import OUT_NAME, DroppedStep, StepResult, Trajectory
from specdiag.trajectories.steps import RunStep, find_steps

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress

_CHANGE_NO_NUMBER = ("jobs", "memory", "cache", "ranks")
"""Arguments that do not affect the results, so that they may differ between two calls."""


class TrajectoryInterrupted(KeyboardInterrupt):
    """Ctrl-C during a trajectory. `trajectory` has the finished steps; the next call continues after them."""

    def __init__(self, trajectory: Trajectory) -> None:
        super().__init__(f"interrupted after {len(trajectory.steps)} steps")
        self.trajectory = trajectory


def trajectory(
    source: str | os.PathLike[str],
    *,
    revisions: str | Sequence[str] = (),
    stream: bool = False,
    out: str | os.PathLike[str] | None = None,
    spectra: bool = False,
    on_step: Callable[[StepResult | DroppedStep], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **analysis: Unpack[RunArguments],
) -> Trajectory:
    """Exponents, norms and ranks over the steps of a run, streamed one checkpoint at a time.

    A step that is finished is not analysed again while its checkpoint, the options and specdiag stay the same.

    Args:
        source: a run directory (`checkpoint-N`, `stepN`), a glob, a file that the run writes again and again, of which
            what it holds now is one step, or a hub repository with `revisions`.
        revisions: such as `("step1000", "step2000")`, the step being the last number of the name.
        stream: read them from the hub by ranges instead of downloading them all.
        out: folder for the reports, the log and the ledger; None for `specdiag_trajectory` in the run, or in the
            working directory where the run cannot be written.
        spectra: keep every eigenvalue too.
        on_step: called after every step, with its result or why there is none.
        progress: as for `analyze`, within each step.
        analysis: further arguments of `analyze`, the same for all steps; of several `ranks` the first one writes.

    Raises:
        UsageError: an option makes no sense, or `out` holds something else.
        SourceError: there are no checkpoints.
        ComputationError: none of them could be analysed.
        TrajectoryInterrupted: Ctrl-C; carries what is finished.

    Example:
        >>> found = specdiag.trajectory("runs/mine")
        >>> [step for step, norm in found.series("frobenius_norm", "up")]
        [1000, 2000]
    """
    check(analysis, out=out, spectra=spectra)
    checks.function("on_step", on_step)
    checks.function("progress", progress)
    stream = checks.flag("stream", stream)
    steps = find_steps(source, checks.texts("revisions", revisions), stream=stream)
    folder, ledger = open_output(source, steps, out, analysis)
    ranks = analysis.get("ranks")
    recorder = Recorder(
        os.fspath(source),
        folder,
        ledger,
        lambda step: analyse_step(step, analysis, progress),
        spectra,
        writes=ranks is None or ranks.rank == 0,
    )
    try:
        if not revisions:
            overwritten = any(step.content is not None for step in steps)
            recorder.keep_deleted({step.step for step in steps}, overwritten=overwritten)
        for step in steps:
            result = recorder.record(step)
            if on_step is not None:
                on_step(result)
    except KeyboardInterrupt as interruption:
        raise TrajectoryInterrupted(recorder.trajectory()) from interruption
    if not recorder.steps:
        first = recorder.dropped[steps[0].step]
        raise ComputationError(f"none of {len(steps)} checkpoints could be analysed; {first.location}: {first.reason}")
    return recorder.trajectory()


def check(analysis: Mapping[str, object], *, out: object, spectra: object) -> None:
    """Check the arguments that `trajectory` and `watch` share.

    Args:
        analysis: further arguments of `analyze`.
        out: output folder; None for the default.
        spectra: True to keep the eigenvalues.

    Raises:
        UsageError: an argument does not exist, makes no sense, or picks one checkpoint of several.
    """
    for name in ("revision", "file"):
        if name in analysis:
            raise UsageError(f"{name} picks one checkpoint: name several with revisions, or by a glob")
    options.check(analysis, options.RUN)
    checks.flag("spectra", spectra)
    if out is not None:
        checks.path("out", out)


def open_output(
    source: str | os.PathLike[str],
    steps: Sequence[RunStep],
    out: str | os.PathLike[str] | None,
    analysis: Mapping[str, object],
) -> tuple[Path, Ledger]:
    """Open the output folder of a run; it is created if it does not exist.

    Args:
        source: path, glob or repository of the run.
        steps: checkpoints of the run.
        out: output folder; None for the default of `trajectory`.
        analysis: arguments of `analyze`, which must be those of the finished steps.

    Returns:
        The folder, and the ledger of its finished steps.

    Raises:
        UsageError: the folder cannot be written, or belongs to another run or to other arguments.
        SourceError: the ledger is damaged.
    """
    folder = _output_folder(steps, out)
    ignored = _CHANGE_NO_NUMBER if may_have_accelerator() else (*_CHANGE_NO_NUMBER, "device")
    kept = {name: value for name, value in analysis.items() if name not in ignored}
    on_hub = any(step.revision is not None for step in steps)
    return folder, open_ledger(folder, os.fspath(source), kept, on_hub=on_hub)


def _output_folder(steps: Sequence[RunStep], out: str | os.PathLike[str] | None) -> Path:
    """Create the output folder: `out`, else a folder in the run, else one in the working directory."""
    if out is not None:
        return _make_folder(Path(out))
    folders = {step.path.resolve().parent for step in steps if step.path is not None}
    if len(folders) == 1:
        try:
            return _make_folder(folders.pop() / OUT_NAME)
        except UsageError:
            pass
    return _make_folder(Path(OUT_NAME))


def _make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}; name another with out=") from error
    check_writable(folder / LOG_NAME)
    return folder
