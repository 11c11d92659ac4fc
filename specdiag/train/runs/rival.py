"""Prepares a rival: the same run with another decay, and the same start, data, order, seeds and schedule."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec

from specdiag.errors import ComputationError, UsageError
from specdiag.train.callbacks.registry import check_rule_options
from specdiag.train.checkpoints.inspect import checkpoints_of
from specdiag.train.checkpoints.manifest import sync
from specdiag.train.checkpoints.publish import STAGING
from specdiag.train.data.tokenizers import KEPT, NO_TOKENIZER
from specdiag.train.data.tokens import BYTES
from specdiag.train.foreign.reading import is_foreign
from specdiag.train.ranks import one_rank_first, wait_for_all
from specdiag.train.recipe import Recipe
from specdiag.train.runs.config import RunConfig, load_config, save_config
from specdiag.train.runs.folders import new_folder
from specdiag.train.runs.outcome import load_outcome, save_outcome
from specdiag.train.runs.overrides import CHANGEABLE_ON_RESUME
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.run import Run


def prepare_rival(run: Run, rule: str, folder: Path) -> Run:
    """Prepare a run that differs from another only in its decay, or continue it if it exists.

    Args:
        run: the run to compare with, as it was prepared.
        rule: a decay rule without options, such as `uniform`.
        folder: folder of the rival.

    Returns:
        The rival, ready to train.

    Raises:
        UsageError: the rule is unknown, the folder holds something else, or the rival would differ in more.
        SourceError: the source changed meanwhile.
    """
    reserve_rival(run, rule, folder)
    existing = existing_rival(run, rule, folder)
    if existing is None:
        rival = _from_weights(run, rule, folder)
    else:
        total = run.steps_total
        rival = prepare(
            Request(
                source=folder, steps_total=total if total > existing.recipe.steps_total else None,
                allow_data_shift=bool(existing.source),
            )
        )  # fmt: skip
    if not _is_same(rival.config.recipe, run.config.recipe, rule) or _other_data(rival.config, run.config):
        if rival.lock is not None:
            rival.lock.release()
        raise UsageError(f"{folder} cannot be the same run as {run.folder.name}: data or settings differ; move it away")
    return rival


def reserve_rival(run: Run, rule: str, folder: Path) -> None:
    """Fix where the rival starts before the run itself trains, which may delete the checkpoint.

    A run that begins, or continues in another folder, gets a rival with the same beginning. A run that continues in its
    own folder gets a rival with a copy of the checkpoint that it continues.

    Args:
        run: the run to compare with, as it was prepared.
        rule: a decay rule without options.
        folder: folder of the rival.

    Raises:
        UsageError: the rule is unknown, or the folder holds something else.
        ComputationError: the checkpoint cannot be copied.
    """
    existing = existing_rival(run, rule, folder)
    wait_for_all()  # a process that looked later would find what the first one writes
    if existing is not None and (checkpoints_of(folder) or existing.recipe.steps_total == run.steps_total):
        return
    config = run.config
    if not _continues(run) and config.source and is_foreign(Path(config.source)):
        return
    with one_rank_first():
        current = load_config(folder)
        if current is not None and current.recipe.steps_total == run.steps_total:
            return
        if existing is None:
            new_folder(folder)
        recipe = msgspec.structs.replace(config.recipe, decay=rule, alphadecay={})
        config = msgspec.structs.replace(config, recipe=recipe)
        try:
            _write(run, config, folder)
        except OSError as error:
            raise ComputationError(f"{folder} cannot be written: {error.strerror or error}; free space") from error


def existing_rival(run: Run, rule: str, folder: Path) -> RunConfig | None:
    """Load the configuration of a rival that exists already.

    Args:
        run: the run to compare with, as it was prepared.
        rule: a decay rule without options.
        folder: folder of the rival.

    Returns:
        None if there is no rival yet.

    Raises:
        UsageError: the rule is unknown, or the folder holds a run that differs in more than decay and length.
    """
    check_rule_options(rule, {})
    existing = load_config(folder)
    if existing is None:
        return None
    started_alike = existing.source == run.config.source or Path(existing.source).parent == run.folder
    if not started_alike or not _is_same(existing.recipe, run.config.recipe, rule):
        raise UsageError(f"{folder} holds a run with other settings than {run.folder.name}: move it away")
    return existing


def _continues(run: Run) -> bool:
    """True if the run continues a checkpoint in its own folder."""
    return run.resume_from is not None and run.resume_from.parent == run.folder


def _write(run: Run, config: RunConfig, folder: Path) -> None:
    """Write the rival's configuration and then, renamed into place, the checkpoint that it starts from."""
    folder.mkdir(parents=True, exist_ok=True)
    if run.in_place and _continues(run):
        config = msgspec.structs.replace(
            config, source=str(run.resume_from), fresh_optimizer=False, model_config="", layout=""
        )
    save_config(folder, config)
    if (run.folder / KEPT).is_dir():
        shutil.copytree(run.folder / KEPT, folder / KEPT, dirs_exist_ok=True)
    if run.resume_from is None or not _continues(run):
        return
    outcome = load_outcome(run.folder) if run.in_place else None
    if outcome is not None and outcome.step == run.step:  # both runs include the time of the common beginning
        seconds = outcome.seconds - outcome.decay_seconds
        save_outcome(folder, msgspec.structs.replace(outcome, seconds=seconds, decay_seconds=0.0, held_out=None))
    staged = folder / STAGING / run.resume_from.name
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(run.resume_from, staged, copy_function=_link)
    staged.rename(folder / staged.name)
    staged.parent.rmdir()
    sync(folder)


def _link(source: str, target: str) -> None:
    """Link a file of a checkpoint, which is safe because it is never changed; copy it if links are not supported."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _from_weights(run: Run, rule: str, folder: Path) -> Run:
    """Start the rival from another program's checkpoint, as the run did."""
    config, recipe = run.config, run.config.recipe
    return prepare(
        Request(
            source=Path(config.source), data=recipe.data, eval_data=recipe.eval_data, out=folder,
            decay=rule, steps_total=recipe.steps_total, block_size=recipe.block_size or None,
            max_tokens=recipe.max_tokens or None, task=recipe.task, columns=recipe.columns,
            settings=recipe.settings, fresh_optimizer=config.fresh_optimizer,
            allow_data_shift=True, config=config.model_config or None, layout=config.layout or None,
            tokenizer=_tokenizer(run),
            eval_every=recipe.eval_every,
        )
    )  # fmt: skip


def _is_same(rival: Recipe, recipe: Recipe, rule: str) -> bool:
    """True if two recipes differ only in decay, length, and settings that do not affect results."""
    expected = msgspec.structs.replace(recipe, decay=rule, alphadecay={}, steps_total=rival.steps_total)
    return _without_changeable(rival) == _without_changeable(expected)


def _without_changeable(recipe: Recipe) -> Recipe:
    settings = {name: value for name, value in recipe.settings.items() if name not in CHANGEABLE_ON_RESUME}
    return msgspec.structs.replace(recipe, settings=settings, eval_every=0)


def _other_data(rival: RunConfig, config: RunConfig) -> bool:
    return bool(config.fingerprint.differences(rival.fingerprint))


def _tokenizer(run: Run) -> str | None:
    """Return the folder of the run's tokenizer, `bytes`, or None if it has none."""
    if run.config.fingerprint.tokens == BYTES:
        return NO_TOKENIZER
    folder = run.folder / KEPT
    return str(folder) if folder.is_dir() else None
