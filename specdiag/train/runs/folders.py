"""Where a new run may be written."""

from __future__ import annotations

import re
from pathlib import Path

from specdiag.errors import UsageError
from specdiag.system.folder_lock import LOCK
from specdiag.train.data.tokens import CACHE
from specdiag.train.runs.config import CONFIG

_CHECKPOINT = re.compile(r"checkpoint-\d+")


def new_folder(out: Path, source: Path | None = None) -> Path:
    """The folder of a new run, which need not exist.

    Args:
        out: what was named.
        source: a checkpoint that the run starts from, which is never written to.

    Raises:
        UsageError: it is taken.
    """
    out = out.resolve()
    if source is not None and (out in (run_of(source), source) or out.is_relative_to(run_of(source))):
        raise UsageError(f"out={out} is where the source lies, which is never written to: name another folder")
    within = next((path for path in (out, *out.parents) if _CHECKPOINT.fullmatch(path.name) and path.is_dir()), None)
    if within is not None:
        raise UsageError(
            f"out={out} is inside of the checkpoint {within}, which is never written to: name another folder"
        )
    if (out / CONFIG).exists():
        raise UsageError(f"{out} is a run already: go on with resume={str(out)!r}, or name another out=")
    if out.exists() and (not out.is_dir() or any(not path.name.startswith((CACHE, LOCK)) for path in out.iterdir())):
        raise UsageError(f"{out} is not empty: name another out=")
    return out


def run_of(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to; bare weights are their own."""
    return checkpoint.parent if checkpoint.name.startswith("checkpoint-") else checkpoint
