"""Finds the checkpoint that a run continues."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from specdiag.errors import SourceError, UsageError
from specdiag.system.folder_lock import FolderLock, refuse_locked
from specdiag.train.checkpoints.inspect import (
    OPTIMIZER,
    STATE,
    check_weights,
    checkpoints_of,
    chunks_in,
    damage,
    find_complete,
    has_weights,
    read_state,
    refuse_adapter,
)
from specdiag.train.checkpoints.publish import recover
from specdiag.train.checkpoints.unread_optimizer import optimizer_file, refuse_unread
from specdiag.train.ranks import lock_run
from specdiag.train.runs.config import RunConfig, load_config


@dataclass(frozen=True)
class Start:
    """The point at which a run continues.

    Attributes:
        checkpoint: folder with the weights; None for a run of ours that began with its recipe and has no checkpoint.
        own: configuration of the run, if specdiag made it.
        in_place: folder of a run of ours that continues there; None if a new folder is begun.
        step: optimizer steps done; 0 with a fresh optimizer.
        fresh: True if the optimizer starts anew.
        notes: sentences on checkpoints that were skipped and on leftovers of a killed process.
        lock: lock of a run that continues in its folder; None on all processes but the first.
    """

    checkpoint: Path | None
    own: RunConfig | None
    in_place: Path | None
    step: int
    fresh: bool
    notes: list[str] = field(default_factory=list[str])
    lock: FolderLock | None = None


def find_start(source: Path, *, fresh: bool, branch: bool, dry: bool = False) -> Start:
    """Find the checkpoint to continue.

    Args:
        source: a run, one of its checkpoints, or a folder of bare weights.
        fresh: True to start the optimizer anew.
        branch: True to leave the run as it is and begin a new folder.
        dry: True to neither lock the run nor remove what a killed process left in it.

    Raises:
        SourceError: there is no complete checkpoint.
        UsageError: there are weights without an optimizer, and `fresh` is False.
    """
    source = source.resolve()
    if not source.is_dir():
        raise SourceError(
            f"'{source}' is no folder: name a run, a checkpoint-N of a Trainer, or a folder of weights; a recipe "
            "begins without resume="
        )
    refuse_adapter(source)
    own = load_config(source)
    if own is not None:
        return _own_run(source, own, fresh=fresh, branch=branch, dry=dry)
    if checkpoints_of(source):
        checkpoint, notes = _newest(source)
        return _start_at(checkpoint, None, None, fresh, notes, whole=True)
    if not has_weights(source):
        raise SourceError(f"'{source}' holds no checkpoint-N and no weights")
    parent = load_config(source.parent)
    if parent is not None and find_complete(source.parent)[0] == source and not (branch or fresh):
        return _own_run(source.parent, parent, fresh=False, branch=False, dry=dry)
    return _start_at(source, parent, None, fresh, [])


def newest_run(folder: Path) -> Path:
    """Find the run with the newest complete checkpoint.

    Args:
        folder: a run, or a folder with runs in it.

    Raises:
        SourceError: there is none.
    """
    candidates: list[tuple[float, Path]] = []
    for run in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        checkpoint = find_complete(run)[0]
        if checkpoint is not None:
            candidates.append(((checkpoint / STATE).stat().st_mtime, run))
    if not candidates:
        raise SourceError(f"there is no run with a complete checkpoint in {folder.resolve()}: name one")
    return max(candidates)[1]


def _own_run(run: Path, own: RunConfig, *, fresh: bool, branch: bool, dry: bool) -> Start:
    if fresh:
        raise UsageError(f"{run} has its own optimizer: name one of its checkpoints with fresh_optimizer=True")
    if branch:
        return _own_start(run, own, None, [])
    if dry:
        refuse_locked(run)
        return _own_start(run, own, run, [])
    lock = lock_run(run)
    recovered = [lock.note] if lock is not None and lock.note else []
    start = _own_start(run, own, run, [*recovered, *recover(run)])
    return replace(start, lock=lock)


def _own_start(run: Path, own: RunConfig, in_place: Path | None, recovered: list[str]) -> Start:
    if not checkpoints_of(run) and not own.source:
        notes = [*recovered, f"{run} has no checkpoint yet: it starts over"]
        return Start(None, own, in_place, 0, True, notes)
    if not checkpoints_of(run):
        from specdiag.train.foreign.reading import is_foreign  # torch and transformers take seconds to import

        if is_foreign(Path(own.source)):
            raise SourceError(
                f"{run} has no checkpoint yet, and {own.source} is another program's: remove {run}, which holds no "
                "trained weights, and give the first command again"
            )
        start = find_start(Path(own.source), fresh=own.fresh_optimizer, branch=True)
        notes = [*recovered, f"{run} has no checkpoint yet: it starts over from {own.source}"]
        return Start(start.checkpoint, own, in_place, start.step, start.fresh, notes)
    checkpoint, notes = _newest(run)
    return _start_at(checkpoint, own, in_place, False, [*recovered, *notes], whole=True)


def _newest(run: Path) -> tuple[Path, list[str]]:
    checkpoint, passed_over = find_complete(run, why_not=damage)
    if checkpoint is None:
        newest, _ = passed_over[0]
        place = None if (newest / OPTIMIZER).exists() else optimizer_file(newest)
        if place is not None:
            folder = newest if has_weights(newest) else newest / (chunks_in(newest) or "")
            refuse_unread(f"'{folder}'", place)
        listed = "; ".join(f"{path.name}: {why}" for path, why in passed_over)
        raise SourceError(f"'{run}' has no complete checkpoint ({listed})")
    return checkpoint, [
        f"{path.name} is incomplete or damaged ({why}) and passed over: {checkpoint.name} is taken"
        for path, why in passed_over
    ]


def _start_at(
    checkpoint: Path,
    own: RunConfig | None,
    in_place: Path | None,
    fresh: bool,
    notes: list[str],
    *,
    whole: bool = False,
) -> Start:
    if fresh:
        check_weights(checkpoint)
        return Start(checkpoint, own, in_place, 0, True, notes)
    if not (checkpoint / OPTIMIZER).exists() and not (checkpoint / STATE).exists():
        place = optimizer_file(checkpoint)
        if place is not None:
            refuse_unread(f"'{checkpoint}'", place)
        raise UsageError(
            f"'{checkpoint}' holds weights and no optimizer, so there is no run to resume: fresh_optimizer=True "
            "starts one from these weights, with lr=, weight_decay= and steps_total="
        )
    place = None if (checkpoint / OPTIMIZER).exists() else optimizer_file(checkpoint)
    if place is not None:
        refuse_unread(f"'{checkpoint}'", place)
    why = None if whole else damage(checkpoint)
    if why is not None:
        raise SourceError(f"'{checkpoint}' is incomplete or damaged: {why}; name another checkpoint")
    return Start(checkpoint, own, in_place, int(read_state(checkpoint)["global_step"]), False, notes)
