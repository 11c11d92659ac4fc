"""`watch`: a live run, each new checkpoint analysed as soon as it is whole. The training script knows nothing of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Unpack

from specdiag.analysis.options import RunArguments
from specdiag.errors import SourceError, UsageError
from specdiag.text import checks
from specdiag.trajectories.alerts import Alert, alerts
from specdiag.trajectories.one_step import analyse_in_subprocess
from specdiag.trajectories.recorder import Recorder
from specdiag.trajectories.records import DroppedStep, StepResult, Trajectory
from specdiag.trajectories.steps import RunStep, find_steps, fingerprint
from specdiag.trajectories.trajectory import check, open_output

_OF_ONE_PROCESS = ("progress", "partial_reports", "ranks")
_LONGEST = 1e6
"""Seconds: twelve days."""


class Observation(NamedTuple):
    """A step that is finished or dropped, what is wrong with it, and the run so far."""

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
    """Follow a run: yields after every checkpoint, those that are there first; ends only with `once`.

    A checkpoint is taken when nothing about its files changed between two looks, and analysed in a separate process.
    What is finished is kept as by `trajectory`, which reads it too.

    Args:
        run: a directory, or a glob, that checkpoints appear in; it may be empty still.
        out: as for `trajectory`.
        interval: seconds between two looks.
        once: look once, take what is there, and end.
        spectra: keep every eigenvalue too.
        analysis: further arguments of `analyze`, of plain types.

    Raises:
        UsageError: an option makes no sense, or `out` holds something else.
        SourceError: with `once`, there are no checkpoints.
    """
    if refused := [name for name in _OF_ONE_PROCESS if name in analysis]:
        raise UsageError(f"{refused[0]} cannot be given to another process: leave it out")
    check(analysis, out=out, spectra=spectra)
    interval = checks.number("interval", interval, above=0, most=_LONGEST, hint="in seconds")
    return _observations(run, out, interval, checks.flag("once", once), spectra, analysis)


def _observations(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    interval: float,
    once: bool,
    spectra: bool,
    analysis: RunArguments,
) -> Iterator[Observation]:
    recorder: Recorder | None = None
    seen: dict[int, str] = {}
    taken: dict[int, str] = {}
    while True:
        steps = _there(run, once=once)
        if steps and recorder is None:
            folder, ledger = open_output(run, steps, out, analysis)
            recorder = Recorder(
                os.fspath(run), folder, ledger, lambda s: analyse_in_subprocess(s, analysis, spectra=spectra), spectra
            )
            recorder.keep_the_gone({step.step for step in steps})
        for step in steps:
            assert recorder is not None
            mark = _mark(step)
            if mark is None or taken.get(step.step) == mark or not (once or seen.get(step.step) == mark):
                seen[step.step] = mark or ""
                continue
            taken[step.step] = mark
            result = recorder.take(step)
            whole = recorder.trajectory()
            yield Observation(
                result, tuple(alerts(whole, result.step)) if isinstance(result, StepResult) else (), whole
            )
        if once:
            return
        time.sleep(interval)


def _there(run: str | os.PathLike[str], *, once: bool) -> list[RunStep]:
    """The checkpoints by now; a live run may have none yet."""
    try:
        return find_steps(run)
    except SourceError:
        if once or not (Path(run).is_dir() or "*" in os.fspath(run)):
            raise
        return []


def _mark(step: RunStep) -> str | None:
    """Identify the checkpoint as it is now; None where it is gone, as a Trainer's oldest."""
    try:
        return fingerprint(step)
    except SourceError:
        return None
