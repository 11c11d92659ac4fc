"""Analyses a checkpoint in another process, whose memory is free again for the training run when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

import msgspec

from specdiag.analysis.options import RunArguments
from specdiag.errors import ComputationError, SourceError, SpecdiagError, UsageError
from specdiag.files import Table, json_decoder
from specdiag.records import Record
from specdiag.report import SpectralReport, load_report
from specdiag.trajectories.recorder import analyse_step
from specdiag.trajectories.steps import RunStep

_ERRORS: dict[int, type[SpecdiagError]] = {2: UsageError, 3: SourceError, 4: ComputationError}
"""Errors of the child process by its exit code."""


class _Order(Record, frozen=True, kw_only=True):
    step: int
    location: str
    options: Table
    report: str
    spectra: bool


_decode = json_decoder(_Order)


def analyse_in_subprocess(step: RunStep, options: RunArguments, *, spectra: bool) -> SpectralReport:
    """Analyse a step in another process.

    Args:
        step: local checkpoint.
        options: arguments of `analyze`, of types that JSON has, or paths.
        spectra: True to keep the eigenvalues.

    Raises:
        UsageError: an option cannot be given to another process.
        SourceError: the checkpoint cannot be read.
        ComputationError: the process died, for instance because memory ran out.
    """
    with tempfile.TemporaryDirectory(prefix="specdiag-") as scratch:
        report = Path(scratch) / "report.json"
        order = _Order(
            step=step.step, location=step.location, options=dict(options), report=str(report), spectra=spectra
        )
        data = msgspec.json.encode(order, enc_hook=_plain)
        child = subprocess.Popen(
            [sys.executable, "-m", "specdiag.trajectories.one_step"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches only the watching process
        )
        try:
            message, _ = child.communicate(data)
        except BaseException:
            child.kill()
            child.wait()
            raise
        if child.returncode:
            reason = (
                f"the process that analysed it ended with {child.returncode}: is memory short? See jobs= and memory="
            )
            raise _ERRORS.get(child.returncode, ComputationError)(message.decode(errors="replace").strip() or reason)
        saved = load_report(report)
        return saved.in_memory() if spectra else saved


def _plain(value: object) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    raise UsageError(f"a {type(value).__name__} cannot be given to another process: {value!r:.60}")


def _main() -> int:
    order = _decode(sys.stdin.buffer.read())
    try:
        report = analyse_step(RunStep(order.step, order.location), cast("RunArguments", order.options))
        report.save(order.report, spectra=order.spectra)
    except SpecdiagError as error:
        sys.stdout.write(str(error))
        return next(code for code, kind in _ERRORS.items() if isinstance(error, kind))
    except OSError as error:
        sys.stdout.write(f"{error.strerror}: {error.filename}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main())
