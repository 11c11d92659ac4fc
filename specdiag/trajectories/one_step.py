"""Reads a checkpoint in another process, whose memory is free again for the training run when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec.structs import replace as replace_record

from specdiag.analysis.options import RunArguments
from specdiag.errors import ComputationError, SourceError, SpecdiagError, UsageError
from specdiag.files import Table, json_decoder
from specdiag.records import Record
from specdiag.report import SpectralReport, load_report
from specdiag.trajectories.recorder import analyse_step
from specdiag.trajectories.rolling import Content, NoStepError
from specdiag.trajectories.steps import RunStep

_ERRORS: dict[int, type[SpecdiagError]] = {2: UsageError, 3: SourceError, 4: ComputationError, 5: NoStepError}
"""Errors of the child process by its exit code."""


class _Order(Record, frozen=True, kw_only=True):
    location: str
    """The file or folder to read."""
    options: Table = msgspec.field(default_factory=dict[str, Any])
    report: str | None = None
    """File of the report; None to read nothing but the step."""
    spectra: bool = False


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
    copy = None if step.content is None else step.content.copy
    with tempfile.TemporaryDirectory(prefix="specdiag-") as scratch:
        file = Path(scratch) / "report.json"
        location = copy or step.location
        _run(_Order(location=location, options=dict(options), report=str(file), spectra=spectra), step.location)
        report = load_report(file)
        report = report.in_memory() if spectra else report
    return report if copy is None else _renamed(report, copy, step.location)


def read_step_in_subprocess(content: Content, file: Path) -> int:
    """Read the step that a file holds in another process.

    Args:
        content: what it held at one moment.
        file: its name in messages.

    Raises:
        NoStepError: it holds no step.
        SourceError: it cannot be read.
        ComputationError: the process died.
    """
    return int(_run(_Order(location=content.copy or str(file)), str(file)))


def _run(order: _Order, name: str) -> str:
    """Run a process and return what it wrote. A copy is called by the name of its file in messages."""
    data = msgspec.json.encode(order, enc_hook=_plain)
    child = subprocess.Popen(
        [sys.executable, "-m", "specdiag.trajectories.one_step"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches only the watching process
    )
    try:
        answer, _ = child.communicate(data)
    except BaseException:
        child.kill()
        child.wait()
        raise
    message = answer.decode(errors="replace").strip().replace(order.location, name)
    if child.returncode:
        reason = f"the process that analysed it ended with {child.returncode}: is memory short? See jobs= and memory="
        raise _ERRORS.get(child.returncode, ComputationError)(message or reason)
    return message


def _renamed(report: SpectralReport, copy: str, name: str) -> SpectralReport:
    """Call a copy by the name of its file."""
    notes = tuple(note.replace(copy, name) for note in report.provenance.notes)
    return replace(
        report,
        source=replace_record(report.source, location=name),
        provenance=replace_record(report.provenance, notes=notes),
    )


def _plain(value: object) -> str:
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    raise UsageError(f"a {type(value).__name__} cannot be given to another process: {value!r:.60}")


def _main() -> int:
    order = _decode(sys.stdin.buffer.read())
    try:
        if order.report is None:
            from specdiag.trajectories.saved_step import saved_step  # torch takes a second to import

            sys.stdout.write(str(saved_step(Path(order.location))))
            return 0
        report = analyse_step(RunStep(0, order.location), cast("RunArguments", order.options))
        report.save(order.report, spectra=order.spectra)
    except SpecdiagError as error:
        sys.stdout.write(str(error))
        return max(code for code, kind in _ERRORS.items() if isinstance(error, kind))
    except OSError as error:
        sys.stdout.write(f"{error.strerror}: {error.filename}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(_main())
