"""Checks the folder of a new run."""

from __future__ import annotations

import re
from pathlib import Path

from specdiag.errors import UsageError
from specdiag.system.folder_lock import LOCK
from specdiag.train.data.token_cache import CACHE
from specdiag.train.runs.config import CONFIG

_CHECKPOINT = re.compile(r"checkpoint-\d+")


def new_folder(out: Path, source: Path | None = None) -> Path:
    """Check the folder of a new run, which need not exist.

    Args:
        out: the folder.
        source: checkpoint that the run starts from, which is never written to; None for none.

    Returns:
        The absolute path.

    Raises:
        UsageError: the folder is in use, or belongs to a source or a checkpoint.
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
    """Return the folder of the run that a checkpoint belongs to; a folder of bare weights is returned as it is."""
    return checkpoint.parent if checkpoint.name.startswith("checkpoint-") else checkpoint
