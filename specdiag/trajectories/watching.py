"""`watch`: analyses each new checkpoint of a live run as soon as it is complete. The training script is not touched."""

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
"""Longest interval in seconds: twelve days."""


class Observation(NamedTuple):
    """A new step of a watched run.

    Attributes:
        result: result of the step, or why it was dropped.
        alerts: what is wrong with it.
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

    A checkpoint is analysed, in a separate process, once its files did not change between two looks. Finished steps are
    kept as by `trajectory`, which can read them.

    Args:
        run: a directory or a glob in which checkpoints appear; it may still be empty.
        out: as for `trajectory`.
        interval: seconds between two looks.
        once: look once, analyse the existing checkpoints, and end.
        spectra: keep every eigenvalue too.
        analysis: further arguments of `analyze`, of plain types.

    Raises:
        UsageError: an option makes no sense, or `out` holds something else.
        SourceError: with `once`, there are no checkpoints.
    """
    if unsupported := [name for name in _OF_ONE_PROCESS if name in analysis]:
        raise UsageError(f"{unsupported[0]} cannot be given to another process: leave it out")
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
    recorded: dict[int, str] = {}
    while True:
        steps = _present_steps(run, once=once)
        if steps and recorder is None:
            folder, ledger = open_output(run, steps, out, analysis)
            recorder = Recorder(
                os.fspath(run), folder, ledger, lambda s: analyse_in_subprocess(s, analysis, spectra=spectra), spectra
            )
            recorder.keep_deleted({step.step for step in steps})
        for step in steps:
            assert recorder is not None
            current = _fingerprint_if_present(step)
            if current is None or recorded.get(step.step) == current or not (once or seen.get(step.step) == current):
                seen[step.step] = current or ""
                continue
            recorded[step.step] = current
            result = recorder.record(step)
            so_far = recorder.trajectory()
            yield Observation(
                result, tuple(alerts(so_far, result.step)) if isinstance(result, StepResult) else (), so_far
            )
        if once:
            return
        time.sleep(interval)


def _present_steps(run: str | os.PathLike[str], *, once: bool) -> list[RunStep]:
    """List the checkpoints that exist now; none are allowed unless `once`."""
    try:
        return find_steps(run)
    except SourceError:
        if once or not (Path(run).is_dir() or "*" in os.fspath(run)):
            raise
        return []


def _fingerprint_if_present(step: RunStep) -> str | None:
    """Return the fingerprint of a checkpoint; None if it was deleted meanwhile, as a Trainer deletes its oldest."""
    try:
        return fingerprint(step)
    except SourceError:
        return None
