"""Runs side by side: what came of each, and how much better than the first that was named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.records import Record
from specdiag.train.runs.config import RunConfig, load_config
from specdiag.train.runs.outcome import LOSS, OUTCOME, Outcome, load_outcome


class Ranked(Record, frozen=True, kw_only=True):
    """One run of a ranking."""

    run: str
    task: str
    decay: str
    weight_decay: float | None
    optimizer: str
    seed: int
    step: int
    loss: float
    """Held out, in nats; NaN of a run that diverged."""
    improvement: float
    """Loss of the baseline less this one."""
    merits: dict[str, float]
    """The task's other figures of merit."""
    hours: float
    decay_share: float
    """Of the time, what the decay rule took."""
    tokens: int
    diverged_at: int | None = None
    """Steps after which the loss was not finite, where that ended the run."""


def is_finished(run: Path, steps: int = 0) -> bool:
    """Whether a run of ours has come to its end, of so many steps at least, and been evaluated there; or diverged."""
    outcome = load_outcome(run)
    if outcome is None or outcome.held_out is None:
        return False
    return outcome.diverged_at is not None or outcome.step >= steps


def rank(runs: Sequence[Path]) -> tuple[list[Ranked], list[str]]:
    """Finished runs of ours, the best first and those without a finite loss last, and what makes them hard to
    compare.

    Args:
        runs: folders; the first is the baseline.

    Raises:
        SourceError: one is no run of ours, or has not come to its end.
    """
    held = [(path, *_held(path)) for path in runs]
    base, said = held[0], list[str]()
    for path, config, outcome in held[1:]:
        said += [
            f"{path.name} has {what} {base[0].name}{end}." for what, end in _differences(base[1:], (config, outcome))
        ]
    baseline = base[2].after or {}
    rows = [_row(path, config, outcome, baseline) for path, config, outcome in held]
    return sorted(rows, key=lambda row: (not math.isfinite(row.loss), row.loss)), said


def divergences(rows: Sequence[Ranked]) -> list[str]:
    """A sentence for each run without a finite loss."""
    return [
        f"{row.run} diverged: "
        + ("its held-out loss at the end is not finite." if row.diverged_at is None
           else f"after {row.diverged_at} steps its loss was not finite.")
        for row in rows
        if not math.isfinite(row.loss)
    ]  # fmt: skip


def _held(run: Path) -> tuple[RunConfig, Outcome]:
    config = load_config(run)
    if config is None:
        raise SourceError(f"'{run}' is no run of specdiag train: it has no specdiag_train.toml")
    outcome = load_outcome(run)
    if outcome is None or outcome.held_out is None:
        raise SourceError(f"'{run}' has not come to its end ({OUTCOME}): go on with 'specdiag train --resume {run}'")
    return config, outcome


def _row(run: Path, config: RunConfig, outcome: Outcome, baseline: Mapping[str, float]) -> Ranked:
    recipe, held = config.recipe, outcome.after or {}
    return Ranked(
        run=run.name,
        task=recipe.task,
        decay=recipe.decay,
        weight_decay=recipe.settings.get("weight_decay"),
        optimizer=recipe.optimizer or str(recipe.settings.get("optim", "")),
        seed=int(recipe.settings.get("seed", 0)),
        step=outcome.step,
        loss=held[LOSS],
        improvement=baseline[LOSS] - held[LOSS],
        merits={name: value for name, value in held.items() if name != LOSS},
        hours=outcome.seconds / 3600,
        decay_share=outcome.decay_seconds / outcome.seconds if outcome.seconds else 0.0,
        tokens=outcome.tokens,
        diverged_at=outcome.diverged_at,
    )


def _differences(base: tuple[RunConfig, Outcome], other: tuple[RunConfig, Outcome]) -> list[tuple[str, str]]:
    """What has to be equal for a difference of losses to say something of the decay: words before and after a name."""
    (ours, our_end), (theirs, their_end) = base, other
    found: list[tuple[str, str]] = []
    if ours.fingerprint.differences(theirs.fingerprint):
        found.append(("other data or another seed than", ""))
    if ours.recipe.task != theirs.recipe.task:
        found.append((f"the task {theirs.recipe.task} and", f" {ours.recipe.task}"))
    if ours.source != theirs.source:
        found.append(("another beginning than", ""))
    if our_end.step != their_end.step and our_end.diverged_at is None and their_end.diverged_at is None:
        found.append((f"{their_end.step} steps and", f" {our_end.step}"))
    return found
