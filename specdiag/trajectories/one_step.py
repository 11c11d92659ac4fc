"""Analysis of a checkpoint in a process of its own, whose memory returns to the training run that is watched."""

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

_REFUSED: dict[int, type[SpecdiagError]] = {2: UsageError, 3: SourceError, 4: ComputationError}


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
        step: on this machine.
        options: of `analyze`, of types that JSON has.
        spectra: keep the eigenvalues.

    Raises:
        SourceError: the checkpoint cannot be read.
        ComputationError: the process died, as where memory ran out.
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
            start_new_session=True,  # Ctrl-C is for the one who watches
        )
        try:
            message, _ = child.communicate(data)
        except BaseException:
            child.kill()
            child.wait()
            raise
        if child.returncode:
            died = f"the process that analysed it ended with {child.returncode}: is memory short? See jobs= and memory="
            raise _REFUSED.get(child.returncode, ComputationError)(message.decode(errors="replace").strip() or died)
        loaded = load_report(report)
        return loaded.in_memory() if spectra else loaded


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
        return next(code for code, kind in _REFUSED.items() if isinstance(error, kind))
    except OSError as error:
        sys.stdout.write(f"{error.strerror}: {error.filename}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main())
