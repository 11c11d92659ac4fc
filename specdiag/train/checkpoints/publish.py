"""A checkpoint appears whole or not at all: it is written aside, synced, and renamed into place."""

from __future__ import annotations

import shutil
from pathlib import Path

from specdiag.train.checkpoints.inspect import checkpoints_of, defect
from specdiag.train.checkpoints.manifest import MANIFEST, sync, write_manifest

STAGING = ".saving"
_OLD = ".old-"
_GONE = ".gone-"


def publish(run: Path, step: int) -> Path:
    """Put the checkpoint that was staged in `run/.saving` in its place; one that is there is replaced."""
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
    """Clear away what a killed process left in a run of ours, and say what that was. Nothing that is whole is lost."""
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
    for left in (run / STAGING, *run.glob(f"{_OLD}checkpoint-*"), *run.glob(f"{_GONE}checkpoint-*")):
        shutil.rmtree(left, ignore_errors=True)
    sync(run)
    return notes


def rotate(run: Path, keep: int | None) -> None:
    """Delete all but the newest checkpoints; each is renamed first, so that none is seen half deleted."""
    for path in checkpoints_of(run)[keep:] if keep else ():
        gone = path.rename(run / f"{_GONE}{path.name}")
        shutil.rmtree(gone)
