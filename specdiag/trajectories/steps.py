"""Finds the checkpoints of a run in order: in a directory, by a glob, or as revisions of a hub repository."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from specdiag.checkpoint.formats import WEIGHT_SUFFIXES
from specdiag.checkpoint.opening import location
from specdiag.checkpoint.parts import PART
from specdiag.checkpoint.source import expanded
from specdiag.errors import SourceError, UsageError
from specdiag.trajectories.rolling import SUFFIXES, Content, identity, rolling_file, rolling_folder

_SUFFIX = "|".join(map(re.escape, {*WEIGHT_SUFFIXES, *SUFFIXES}))
_STEPS = tuple(
    re.compile(pattern + rf"(?P<suffix>{_SUFFIX})?")
    for pattern in (
        r"(checkpoint|global_?step|step|iter|state_step)[-_]?(?P<step>\d{1,18})",
        r"epoch=\d+-step=(?P<step>\d{1,18})(-v\d+)?",
        r"(model|ckpt)_(?P<step>\d{1,18})",
        r"epoch[-_](?P<step>\d{1,18})",
    )
)
"""Names of checkpoints. The first pattern that fits any decides: beside `checkpoint-500`, `model_1` may be anything."""
_BELOW = "checkpoints"
"""The folder of accelerate's project_dir that holds its checkpoints."""
_LAST_NUMBER = re.compile(r"(\d+)(?!.*\d)")
_SAVED = (*WEIGHT_SUFFIXES, PART, ".json", ".tar", ".th", ".model", ".npz")


@dataclass(frozen=True, slots=True)
class RunStep:
    """A checkpoint of a run.

    Attributes:
        step: number in its name, or in a file that is written again and again.
        location: path or repository, as `analyze` takes it.
        revision: branch, tag or commit on the hub; None for a local path.
        stream: True to read it by ranges instead of downloading it.
        content: of a file that is written again and again, when its step was read; None for all others.
    """

    step: int
    location: str
    revision: str | None = None
    stream: bool = False
    content: Content | None = None

    @property
    def path(self) -> Path | None:
        """Path of a local checkpoint; None on the hub."""
        return None if self.revision is not None else Path(self.location)

    def __str__(self) -> str:
        return self.location if self.revision is None else f"{self.location}@{self.revision}"


def find_steps(
    source: str | os.PathLike[str],
    revisions: str | Sequence[str] = (),
    *,
    stream: bool = False,
    takes_revisions: bool = True,
) -> list[RunStep]:
    """Find the checkpoints of a run, in the order of their steps.

    Args:
        source: a directory with `checkpoint-N`, `stepN`, `global_stepN`, `iter_N`, `epoch=E-step=N.ckpt`, `model_N` or
            `epoch_N` in it (folders, or files of weights), a glob whose matches end in different numbers, a file or
            folder that the run writes again and again, or the directory of one, which is one step, or, with
            `revisions`, a hub repository.
        revisions: branches, tags or commits whose names hold the step.
        stream: True to read them by ranges instead of downloading them.
        takes_revisions: False where the caller follows no run on the hub, so that no message offers it.

    Raises:
        UsageError: two checkpoints have the same step, a name has no number, or there is nothing to stream.
        SourceError: there are no checkpoints, or a file that is written again and again does not hold its step.
    """
    text = location(source)
    revisions = (revisions,) if isinstance(revisions, str) else tuple(revisions)
    if revisions:
        if expanded(text).exists():
            raise UsageError(f"revisions are those of a hub repository, and '{text}' is a local path")
        return _in_order(RunStep(_number(name), text, name, stream) for name in revisions)
    if stream:
        raise UsageError(f"stream=True is for hub repositories, and '{text}' comes without revisions=")
    if glob.has_magic(text) and not Path(text).exists():
        matches = sorted(glob.glob(str(expanded(text))))  # noqa: PTH207 - absolute patterns too
        if not matches:
            raise SourceError(f"nothing matches '{text}'")
        return _in_order(RunStep(_number(_stem(Path(path))), path) for path in matches)
    path = expanded(text)
    if not path.exists():
        on_hub = "; for a run on the hub give revisions=" if takes_revisions else ": the run must be on this machine"
        raise SourceError(f"no such directory: '{text}'{on_hub}")
    steps = numbered(path)
    if steps:
        return _in_order(steps)
    file = rolling_file(path) or rolling_folder(path)
    if file is not None:
        return [_present_step(file)]
    if numbered(path / _BELOW):
        raise SourceError(f"'{text}' keeps its checkpoints in '{_BELOW}': give '{path / _BELOW}'")
    if path.is_dir():
        raise SourceError(
            f"'{text}' holds no checkpoint-N and no stepN: give a glob of its checkpoints, in quotes, or the one file "
            "that the run writes again and again"
        )
    on_hub = ", or a hub repository with revisions=" if takes_revisions else ""
    raise SourceError(
        f"'{text}' is no run: give a directory with checkpoint-N or stepN in it, or a glob in quotes{on_hub}"
    )


def numbered(folder: Path) -> list[RunStep]:
    """List the checkpoints of a run that have their steps in their names, in no order.

    Args:
        folder: of the run; anything else holds none.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return next((found for pattern in _STEPS if (found := _named(paths, pattern))), [])


def _present_step(file: Path) -> RunStep:
    from specdiag.trajectories.saved_step import saved_step  # torch takes a second to import

    before = identity(file)
    return RunStep(saved_step(file), str(file), content=Content(before))


def _named(paths: Iterable[Path], pattern: re.Pattern[str]) -> list[RunStep]:
    return [
        RunStep(int(match["step"]), str(path))
        for path in paths
        if (match := pattern.fullmatch(path.name)) is not None and (path.is_dir() or match["suffix"])
    ]


def fingerprint(step: RunStep) -> str:
    """Identify a checkpoint without reading it: by its commit, or by the sizes and times of its files.

    Raises:
        SourceError: the checkpoint does not exist, or the hub does not answer.
    """
    if step.content is not None and step.content.copy is not None:
        return step.content.fingerprint
    path = step.path
    if path is None:
        from specdiag.checkpoint.source import locate

        repo = locate(step.location).repo
        if repo is None:
            raise SourceError(f"'{step.location}' is no hub repository")
        if step.stream:
            from specdiag.checkpoint.stream import list_repository

            return list_repository(repo, step.revision).commit
        from specdiag.checkpoint import hub

        return hub.resolve(repo, step.revision).commit
    return identity(path)


def _in_order(unsorted: Iterable[RunStep]) -> list[RunStep]:
    steps = sorted(unsorted, key=lambda s: (s.step, str(s)))
    for one, other in pairwise(steps):
        if one.step == other.step:
            raise UsageError(f"{one} and {other} are both step {one.step}: give a glob that takes one of them")
    return steps


def _number(name: str) -> int:
    match = _LAST_NUMBER.search(name)
    if match is None:
        raise UsageError(f"'{name}' has no number in its name that could be its step: name the others alone")
    return int(match[0])


def _stem(path: Path) -> str:
    return path.stem if path.suffix in _SAVED else path.name
