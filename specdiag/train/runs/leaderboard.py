"""Ranks finished runs by their held-out loss, and compares them with the first one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.records import Record
from specdiag.train.recipe import Recipe
from specdiag.train.runs.config import RunConfig, load_config
from specdiag.train.runs.outcome import LOSS, OUTCOME, Outcome, load_outcome
from specdiag.train.runs.overrides import CHANGEABLE_ON_RESUME
from specdiag.train.runs.schedule import describe_schedule

_FIELDS = {"model": "model", "optimizer": "optimizer", "optimizer_options": "set of optimizer options"}
"""Fields of a recipe that must be equal in a comparison of decays, and their names in notes."""


class Ranked(Record, frozen=True, kw_only=True):
    """A run in a ranking."""

    run: str
    task: str
    decay: str
    weight_decay: float | None
    optimizer: str
    seed: int
    step: int
    loss: float
    """Loss in nats on examples that the run did not train on; NaN for a run that diverged."""
    improvement: float
    """Loss of the baseline minus this loss."""
    merits: dict[str, float]
    """Other metrics of the task."""
    hours: float
    decay_share: float
    """Fraction of `hours` that the decay rule took."""
    tokens: int
    kept_apart: bool = False
    """True if the weights may have been trained on the examples of that loss before the run began."""
    diverged_at: int | None = None
    """Steps after which the loss was not finite; None if the run did not end for that."""


def is_finished(run: Path, steps: int = 0) -> bool:
    """True if a run has diverged, or has ended with an evaluation after enough steps.

    Args:
        run: folder of the run.
        steps: smallest number of steps.

    Raises:
        SourceError: its outcome is damaged.
    """
    outcome = load_outcome(run)
    if outcome is None or outcome.held_out is None:
        return False
    return outcome.diverged_at is not None or outcome.step >= steps


def rank(runs: Sequence[Path]) -> tuple[list[Ranked], list[str]]:
    """Rank finished runs.

    Args:
        runs: folders of the runs; the first is the baseline.

    Returns:
        Rows, best first and those without a finite loss last; and sentences on what makes the runs hard to compare.

    Raises:
        SourceError: a folder is no run of specdiag, or a run has not ended.
    """
    finished = [(path, *_load_finished(path)) for path in runs]
    base, notes = finished[0], list[str]()
    for path, config, outcome in finished[1:]:
        notes += [f"{path.name} has {difference}." for difference in _differences(base, (path, config, outcome))]
    baseline = base[2].after or {}
    rows = [_row(path, config, outcome, baseline) for path, config, outcome in finished]
    return sorted(rows, key=lambda row: (not math.isfinite(row.loss), row.loss)), notes


def divergences(rows: Sequence[Ranked]) -> list[str]:
    """Write a sentence for each run without a finite loss."""
    return [
        f"'{row.run}' diverged: "
        + ("its last evaluation is not finite." if row.diverged_at is None
           else f"after {row.diverged_at} steps its loss was not finite.")
        for row in rows
        if not math.isfinite(row.loss)
    ]  # fmt: skip


def _load_finished(run: Path) -> tuple[RunConfig, Outcome]:
    config = load_config(run)
    if config is None:
        raise SourceError(f"'{run}' is no run of specdiag train: it has no specdiag_train.toml")
    outcome = load_outcome(run)
    if outcome is None or outcome.held_out is None:
        raise SourceError(f"'{run}' has not come to its end ({OUTCOME}): go on with resume={str(run)!r}")
    return config, outcome


def _row(run: Path, config: RunConfig, outcome: Outcome, baseline: Mapping[str, float]) -> Ranked:
    recipe, figures = config.recipe, outcome.after or {}
    return Ranked(
        run=run.name,
        task=recipe.task,
        decay=recipe.decay,
        weight_decay=recipe.settings.get("weight_decay"),
        optimizer=recipe.optimizer or str(recipe.settings.get("optim", "")),
        seed=int(recipe.settings.get("seed", 0)),
        step=outcome.step,
        loss=figures[LOSS],
        improvement=baseline[LOSS] - figures[LOSS],
        merits={name: value for name, value in figures.items() if name != LOSS},
        hours=outcome.seconds / 3600,
        decay_share=outcome.decay_seconds / outcome.seconds if outcome.seconds else 0.0,
        tokens=outcome.tokens,
        kept_apart=config.kept_apart,
        diverged_at=outcome.diverged_at,
    )


def _differences(base: tuple[Path, RunConfig, Outcome], other: tuple[Path, RunConfig, Outcome]) -> list[str]:
    """Describe differences that keep the losses from showing the effect of the decay."""
    (run, ours, our_end), (path, theirs, their_end) = base, other
    differences: list[str] = []
    if ours.fingerprint.differences(theirs.fingerprint):
        differences.append(f"other data or another seed than {run.name}")
    if ours.recipe.task != theirs.recipe.task:
        differences.append(f"the task {theirs.recipe.task} and {run.name} {ours.recipe.task}")
    if not (_started_alike(ours, theirs) or _branches(theirs, run) or _branches(ours, path)):
        differences.append(f"another beginning than {run.name}")
    if our_end.step != their_end.step and our_end.diverged_at is None and their_end.diverged_at is None:
        differences.append(f"{their_end.step} steps and {run.name} {our_end.step}")
    if ours.schedule != theirs.schedule and not _has_constant_lr(ours, theirs):
        schedules = describe_schedule(theirs.schedule), describe_schedule(ours.schedule)
        differences.append(f"an lr schedule over {schedules[0]} and {run.name} one over {schedules[1]}")
    for field, words in _FIELDS.items():
        a, b = getattr(ours.recipe, field), getattr(theirs.recipe, field)
        if a != b and (field != "model" or (a and b)):  # a run that branched off has no model in its recipe
            differences.append(f"another {words} than {run.name}")
    return differences + [
        f"{setting} and {run.name} {own}" for setting, own in _other_settings(ours.recipe, theirs.recipe)
    ]


def _started_alike(a: RunConfig, b: RunConfig) -> bool:
    start = a.source or a.recipe.start, b.source or b.recipe.start
    return start[0] == start[1] and a.fresh_optimizer == b.fresh_optimizer


def _branches(config: RunConfig, trunk: Path) -> bool:
    """True if a run continues a checkpoint of the trunk as the trunk itself did."""
    return bool(config.source) and not config.fresh_optimizer and Path(config.source).parent == trunk.resolve()


def _has_constant_lr(a: RunConfig, b: RunConfig) -> bool:
    return all(str(c.recipe.settings.get("lr_scheduler_type")).startswith("constant") for c in (a, b))


def _other_settings(ours: Recipe, theirs: Recipe) -> Iterator[tuple[str, str]]:
    """Yield each setting that differs and affects results: its name with their value, and our value."""
    for name in sorted(ours.settings.keys() | theirs.settings.keys()):
        a, b = ours.settings.get(name), theirs.settings.get(name)
        if a != b and name not in (*CHANGEABLE_ON_RESUME, "weight_decay", "seed"):
            yield f"{name.replace('_', ' ')} {_in_words(b)}", _in_words(a)


def _in_words(value: object) -> str:
    return "none" if value is None else f"{value!s:.40}"
