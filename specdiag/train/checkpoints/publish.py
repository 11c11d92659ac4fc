"""Publishes checkpoints atomically: they are written into a staging folder, synced, and renamed."""

from __future__ import annotations

import shutil
from pathlib import Path

from specdiag.train.checkpoints.inspect import checkpoints_of, defect
from specdiag.train.checkpoints.manifest import MANIFEST, sync, write_manifest

STAGING = ".saving"
_OLD = ".old-"
_GONE = ".gone-"


def publish(run: Path, step: int) -> Path:
    """Move a staged checkpoint from `run/.saving` to its place. An existing one is replaced.

    Args:
        run: folder of the run.
        step: step of the checkpoint.

    Returns:
        Its folder.
    """
    staged, final = run / STAGING / f"checkpoint-{step}", run / f"checkpoint-{step}"
    write_manifest(staged)
    old = run / f"{_OLD}{final.name}"
    if final.exists():
        final.rename(old)
    staged.rename(final)
    sync(run)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(staged.parent, ignore_errors=True)
    return final


def recover(run: Path) -> list[str]:
    """Remove what a killed process left in a run of ours. Complete checkpoints are kept.

    Args:
        run: folder of the run.

    Returns:
        A sentence on each checkpoint that was restored or skipped.
    """
    notes: list[str] = []
    for staged in sorted((run / STAGING).glob("checkpoint-*")):
        final = run / staged.name
        if not final.exists() and (staged / MANIFEST).exists() and defect(staged) is None:
            staged.rename(final)
            notes.append(f"{final.name} was saved whole when the run was killed: it is put in its place")
        else:
            notes.append(f"{final.name} was passed over: the run was killed while it was being saved")
    for old in sorted(run.glob(f"{_OLD}checkpoint-*")):
        final = run / old.name.removeprefix(_OLD)
        if not final.exists():
            old.rename(final)
            notes.append(f"{final.name} was to be replaced when the run was killed: the former one is back")
    for leftover in (run / STAGING, *run.glob(f"{_OLD}checkpoint-*"), *run.glob(f"{_GONE}checkpoint-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    sync(run)
    return notes


def rotate(run: Path, keep: int | None) -> None:
    """Delete all but the newest checkpoints. Each is renamed first, so that no half-deleted one is ever seen.

    Args:
        run: folder of the run.
        keep: number of checkpoints to keep; None or 0 for all.
    """
    for path in checkpoints_of(run)[keep:] if keep else ():
        doomed = path.rename(run / f"{_GONE}{path.name}")
        shutil.rmtree(doomed)
