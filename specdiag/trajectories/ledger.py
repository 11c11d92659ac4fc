"""The ledger of a trajectory: a file in the output folder that lists the finished steps, to continue from them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec

from specdiag.errors import SourceError, UsageError
from specdiag.files import json_decoder, read_whole, write_atomically
from specdiag.records import Record
from specdiag.report import SpectralReport, load_report
from specdiag.storage.kinds import LEDGER, LIMIT, read_record
from specdiag.system.distributions import version
from specdiag.system.folder_lock import exclusive_access

_HUB = "hf://"
LEDGER_NAME = "ledger.json"
_STEP = re.compile("0|[1-9][0-9]{0,17}")


class Finished(Record, frozen=True, kw_only=True):
    """A step whose report is saved."""

    location: str
    fingerprint: str
    """Fingerprint of the checkpoint that was read."""
    report: str
    """File name of the report."""
    digest: str
    """SHA-256 of the report's file."""
    specdiag: str
    """Version of specdiag that made the report."""


class Ledger(Record, frozen=True, kw_only=True):
    """Content of the ledger's file."""

    schema: int = LEDGER.schema
    run: str
    """Path of the run relative to the output folder, so that both can be moved together, or `hf://org/name`."""
    options: dict[str, str]
    """Arguments of `analyze` that were set, the same for all steps."""
    steps: dict[str, Finished] = msgspec.field(default_factory=dict[str, Finished])


_decode = json_decoder(Ledger)


def open_ledger(out: Path, run: str, options: Mapping[str, object], *, on_hub: bool) -> Ledger:
    """Open the ledger of an output folder, or begin a new one.

    Args:
        out: output folder.
        run: path, glob or repository of the run.
        options: arguments of `analyze` that were set.
        on_hub: True if the run is a repository of the hub.

    Raises:
        UsageError: the folder belongs to another run or to other options.
        SourceError: the file is damaged.
    """
    path = out / LEDGER_NAME
    arguments = {name: _spelled(value) for name, value in sorted(options.items())}
    run = f"{_HUB}{run}" if on_hub else os.path.relpath(Path(run).expanduser().absolute(), out.absolute())
    if not path.exists():
        return Ledger(run=run, options=arguments)
    ledger = read_ledger(path)
    if ledger.run != run:
        raise UsageError(f"{out} holds the trajectory of '{run_of(out, ledger)}': name another folder with out=")
    if ledger.options != arguments:
        before, now = (", ".join(f"{k}={v}" for k, v in o.items()) or "defaults" for o in (ledger.options, arguments))
        raise UsageError(f"{out} was made with {before}, not with {now}: name another folder with out=, or delete it")
    return ledger


def read_ledger(path: Path) -> Ledger:
    """Read and check the file of a ledger.

    Raises:
        SourceError: the file is damaged, or names steps or reports that no trajectory writes.
    """
    ledger = read_record(path, _decode, LEDGER)
    for step, finished in ledger.steps.items():
        if not _STEP.fullmatch(step) or finished.report != report_name(int(step)):
            raise SourceError(f"{path} is damaged (step {step!r:.40} in {finished.report!r:.80}); {LEDGER.remedy}")
    return ledger


def run_of(out: Path, ledger: Ledger) -> str:
    """Name the run of a ledger: a repository, or an absolute path.

    Args:
        out: folder of the ledger.
        ledger: its content.
    """
    if ledger.run.startswith(_HUB):
        return ledger.run.removeprefix(_HUB)
    return os.path.normpath(out.absolute() / ledger.run)


def saved_report(out: Path, ledger: Ledger, step: int, fingerprint: str) -> SpectralReport | None:
    """Load the saved report of a step if it is still valid.

    Args:
        out: output folder.
        ledger: ledger of that folder.
        step: number of the step.
        fingerprint: fingerprint of the checkpoint as it is now.

    Returns:
        None if the step is new, its checkpoint or the version of specdiag changed, or the report's file was altered.

    Raises:
        SourceError: the report matches its digest and still cannot be read.
    """
    finished = ledger.steps.get(str(step))
    if finished is None or finished.fingerprint != fingerprint or finished.specdiag != version("specdiag"):
        return None
    path = out / finished.report
    try:
        if hashlib.sha256(read_whole(path, LIMIT)).hexdigest() != finished.digest:
            return None
    except OSError:
        return None
    return load_report(path)


def save_step(
    out: Path, ledger: Ledger, step: int, location: str, fingerprint: str, report: SpectralReport, *, spectra: bool
) -> Ledger:
    """Save the report of a step, then the ledger with this step and those that other processes added meanwhile.

    Args:
        out: output folder.
        ledger: ledger as this process last saw it.
        step: number of the step.
        location: path of the checkpoint, or repository and revision.
        fingerprint: fingerprint of the checkpoint.
        report: report of the checkpoint.
        spectra: True to save the eigenvalues too.

    Returns:
        The ledger as it was saved.
    """
    with exclusive_access(out):
        path = report.save(out / report_name(step), spectra=spectra)
        finished = Finished(
            location=location,
            fingerprint=fingerprint,
            report=path.name,
            digest=hashlib.sha256(path.read_bytes()).hexdigest(),
            specdiag=version("specdiag"),
        )
        saved = read_ledger(out / LEDGER_NAME) if (out / LEDGER_NAME).exists() else ledger
        other_steps = saved.steps if (saved.run, saved.options) == (ledger.run, ledger.options) else {}
        ledger = msgspec.structs.replace(ledger, steps={**ledger.steps, **other_steps, str(step): finished})
        write_atomically(out / LEDGER_NAME, msgspec.json.encode(ledger))
    return ledger


def report_name(step: int) -> str:
    """File name of the report of step number `step`."""
    return f"step{step}.specdiag.json"


def _spelled(value: object) -> str:
    """Spell an option. A list of one value is spelled as the value alone."""
    if isinstance(value, (list, tuple)):
        texts = [str(v) for v in cast("Sequence[object]", value)]
        return repr(texts[0] if len(texts) == 1 else texts)
    return repr(os.fspath(cast("os.PathLike[str]", value)) if isinstance(value, os.PathLike) else value)
