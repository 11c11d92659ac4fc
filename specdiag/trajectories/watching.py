"""`watch`: analyses each new checkpoint of a live run as soon as it is complete. The training script is not touched."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

from specdiag.analysis.options import RunArguments
from specdiag.checkpoint.source import expanded
from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.report import SpectralReport
from specdiag.text import checks
from specdiag.trajectories.alerts import Alert, alerts
from specdiag.trajectories.function_alerts import logged_alerts
from specdiag.trajectories.loss_alerts import loss_alerts
from specdiag.trajectories.metric_log import LOG_NAME, NORMS_NAME, RUN, latest, read_log
from specdiag.trajectories.one_step import analyse_in_subprocess, read_step_in_subprocess
from specdiag.trajectories.recorder import Recorder
from specdiag.trajectories.records import DroppedStep, StepResult, Trajectory
from specdiag.trajectories.rolling import NoStepError, copied, identity, rolling_file, rolling_folder
from specdiag.trajectories.steps import RunStep, find_steps, fingerprint, numbered
from specdiag.trajectories.trajectory import check, open_output

_OF_ONE_PROCESS = ("progress", "partial_reports", "ranks")
_LONGEST = 1e6
"""Longest interval in seconds: twelve days."""


class Observation(NamedTuple):
    """A new step of a watched run.

    Attributes:
        result: result of the step, or why it was dropped.
        alerts: what is wrong with it, and with what a norm watch logged since the step before.
        trajectory: the run so far.
    """

    result: StepResult | DroppedStep
    alerts: tuple[Alert, ...]
    trajectory: Trajectory


def watch(
    run: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    interval: float = 10.0,
    once: bool = False,
    spectra: bool = False,
    **analysis: Unpack[RunArguments],
) -> Iterator[Observation]:
    """Follow a run: yield after every checkpoint, existing ones first. Ends only with `once`.

    A checkpoint is analysed, in a separate process, once its files did not change between two looks. A file that the
    run writes again and again is copied while it is whole, and recorded under the step that it holds itself. Finished
    steps are kept as by `trajectory`, which can read them.

    Args:
        run: a directory or a glob in which checkpoints appear; it may still be empty. Or a file that is written again
            and again, such as `ckpt.pt`; alone in a directory, or called `ckpt`, `last` or `latest` there, it is found.
            So is a folder with `trainer_state.json` or `meta.pt` that is called `last`, `checkpoint-last` or alike.
        out: as for `trajectory`.
        interval: seconds between two looks.
        once: look once, analyse the existing checkpoints, and end.
        spectra: keep every eigenvalue too.
        analysis: further arguments of `analyze`, of plain types.

    Raises:
        UsageError: an option makes no sense, or `out` holds something else.
        SourceError: with `once`, there are no checkpoints; or a file that is written again and again holds no step.
    """
    if unsupported := [name for name in _OF_ONE_PROCESS if name in analysis]:
        raise UsageError(f"{unsupported[0]} cannot be given to another process: leave it out")
    check(analysis, out=out, spectra=spectra)
    interval = checks.number("interval", interval, above=0, most=_LONGEST, hint="in seconds")
    return _observations(_Look(run, out, checks.flag("once", once), spectra, analysis), interval)


def _observations(look: _Look, interval: float) -> Iterator[Observation]:
    while True:
        yield from look.new_steps()
        if look.once:
            return
        time.sleep(interval)


@dataclass
class _Look:
    """A run that is looked at again and again.

    Attributes:
        run: as it was given.
        out: output folder; None for the default.
        once: True to look once, and take what is there.
        spectra: True to keep the eigenvalues.
        analysis: arguments of `analyze`.
        recorder: of its steps; None before there is a first one.
        seen: fingerprints at the last look, by location.
        recorded: fingerprints of what was recorded, by location.
    """

    run: str | os.PathLike[str]
    out: str | os.PathLike[str] | None
    once: bool
    spectra: bool
    analysis: RunArguments
    recorder: Recorder | None = None
    seen: dict[str, str] = field(default_factory=dict[str, str])
    recorded: dict[str, str] = field(default_factory=dict[str, str])

    def new_steps(self) -> Iterator[Observation]:
        """Record what is new and whole."""
        path = expanded(os.fspath(self.run))
        file = None if numbered(path) else rolling_file(path) or rolling_folder(path)
        if file is not None:
            yield from self._new_content(file)
            return
        steps = self._present_steps(path)
        for step in steps:
            recorder = self._opened(steps)
            location, current = str(step), _if_present(partial(fingerprint, step))
            done = self.recorded.get(location) == current
            if current is None or done or not (self.once or self.seen.get(location) == current):
                self.seen[location] = current or ""
                continue
            self.recorded[location] = current
            yield _observation(recorder, recorder.record(step))

    def _new_content(self, file: Path) -> Iterator[Observation]:
        """Record what a file or folder holds that is written again and again, from a copy of it.

        A folder is copied once nothing about its files changed between two looks, as other checkpoints.
        """
        location, current = str(file), _if_present(partial(identity, file))
        if current is None or self.recorded.get(location) == current:
            return
        if file.is_dir() and not self.once and self.seen.get(location) != current:
            self.seen[location] = current
            return
        recorder = self._opened([RunStep(0, location)], overwritten=True)
        try:
            with copied(file, recorder.out) as content:
                if content is None and self.once:
                    raise SourceError(f"'{file}' is being written: try again when that has ended")
                if content is None:
                    return
                self.recorded[location] = content.fingerprint
                step = read_step_in_subprocess(content, file)
                result = recorder.record(RunStep(step, location, content=content))
        except (SourceError, ComputationError) as error:
            if self.once or isinstance(error, NoStepError):
                raise
            result = recorder.drop(None, location, str(error))
        yield _observation(recorder, result)

    def _opened(self, steps: Sequence[RunStep], *, overwritten: bool = False) -> Recorder:
        if self.recorder is None:
            folder, ledger = open_output(self.run, steps, self.out, self.analysis)
            self.recorder = Recorder(os.fspath(self.run), folder, ledger, self._analyse, self.spectra)
            self.recorder.keep_deleted({step.step for step in steps}, overwritten=overwritten)
        return self.recorder

    def _analyse(self, step: RunStep) -> SpectralReport:
        return analyse_in_subprocess(step, self.analysis, spectra=self.spectra)

    def _present_steps(self, path: Path) -> list[RunStep]:
        """List the checkpoints that exist now; none are allowed unless `once`, nor a file that was there before."""
        try:
            return find_steps(self.run, takes_revisions=False)
        except SourceError:
            if self.once or not (path.is_dir() or "*" in str(path) or self.recorder is not None):
                raise
            return []


def _observation(recorder: Recorder, result: StepResult | DroppedStep) -> Observation:
    so_far = recorder.trajectory()
    if not isinstance(result, StepResult):
        return Observation(result, (), so_far)
    return Observation(result, (*alerts(so_far, result.step), *_of_logs(so_far, result.step)), so_far)


def _of_logs(run: Trajectory, step: int) -> list[Alert]:
    """List the alerts of what a norm watch and `specdiag train` logged in the run since the step before."""
    after = max((s.step for s in run.steps if s.step < step), default=None)
    norms, own = Path(run.run) / NORMS_NAME / LOG_NAME, Path(run.run) / LOG_NAME
    found = logged_alerts(latest(read_log(norms)), after, step) if norms.is_file() else []
    if own.is_file():
        rows = [row for row in latest(read_log(own)) if (row.metric, row.module) == ("loss", RUN)]
        losses = [(row.step, math.nan if row.value is None else row.value) for row in rows]
        found += [alert for alert in loss_alerts(losses, after, step) if alert.kind == "spike"]
    return found


def _if_present(identify: Callable[[], str]) -> str | None:
    """Give a fingerprint; None where its checkpoint was deleted meanwhile, as a Trainer deletes its oldest."""
    try:
        return identify()
    except SourceError:
        return None
