"""Prepares a run that begins with a recipe: with new weights, or those of a model that was trained elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.errors import SourceError, UsageError
from specdiag.train.callbacks.registry import check_rule_options
from specdiag.train.checkpoints.inspect import check_weights, refuse_adapter
from specdiag.train.data.hub import pin
from specdiag.train.data.tokenizers import open_tokenizer, save_tokenizer
from specdiag.train.data.tokens import Data
from specdiag.train.models.building import new_config, new_model, read_config, trained_model
from specdiag.train.recipe import Recipe
from specdiag.train.runs.assembly import RunSpec, assemble
from specdiag.train.runs.config import PLAN, RunConfig
from specdiag.train.runs.folders import new_folder
from specdiag.train.runs.run import Run
from specdiag.train.runs.trainer_arguments import DEFAULT_ARGUMENTS, TrainerArguments
from specdiag.train.sharding import check_launch
from specdiag.train.tasks.loading import load_task, reads_tokens, vocabulary_of, with_validation_file
from specdiag.train.tasks.task import CLASSIFYING, kind_of

_BYTES = 256
"""Vocabulary size of a model on bytes."""


def resolved(recipe: Recipe) -> Recipe:
    """Return the recipe with all defaults filled in, as a run keeps it."""
    rule = "plan" if recipe.decay.startswith("plan:") else recipe.decay
    return msgspec.structs.replace(recipe, settings=DEFAULT_ARGUMENTS | recipe.settings, decay=rule)


def begin(
    recipe: Recipe,
    out: Path,
    *,
    from_options: Collection[str] = (),
    again: RunConfig | None = None,
    cache: Path | None = None,
    notes: Sequence[str] = (),
    scratch: Path | None = None,
) -> Run:
    """Prepare a run that begins: decide and check everything.

    Args:
        recipe: recipe of the run.
        out: folder of the run.
        from_options: names of settings that come from an option, not from the recipe.
        again: existing configuration of a run that was stopped before its first checkpoint; None for a new run.
        cache: folder for the tokens if several runs share them; None for the folder of the run.
        notes: sentences so far.
        scratch: folder for what a dry run writes, which stays out of `out`; None to write the run.

    Returns:
        The run, ready to train.

    Raises:
        UsageError: the recipe lacks something or contradicts itself, or the folder is taken.
        SourceError: data, weights, tokenizer or plan are missing or damaged.
    """
    check_launch()
    run = out.resolve() if again is not None else new_folder(out)
    kind_of(recipe.task)
    if recipe.steps_total < 1:
        raise UsageError("the recipe does not say how long to train: give steps_total=N")
    if not recipe.data and kind_of(recipe.task) != "glue":
        raise UsageError("the recipe names no data: give data=PATH, or org/name for a dataset on the hub")
    plan = _plan(recipe, run, again)
    origins = {name: "given" if name in from_options else "recipe" if name in recipe.settings else "default"
               for name in DEFAULT_ARGUMENTS | recipe.settings}  # fmt: skip
    notes = list(notes)
    recipe = msgspec.structs.replace(
        resolved(recipe), data=tuple(pin(recipe.data)), eval_data=tuple(pin(recipe.eval_data))
    )
    recipe = recipe if again is not None else with_validation_file(recipe, notes)
    seed = int(recipe.settings["seed"])
    if recipe.start and Path(recipe.start).is_dir():
        refuse_adapter(Path(recipe.start))
        check_weights(Path(recipe.start))
    tokenizer = open_tokenizer(recipe.tokenizer or recipe.start)
    config, vocabulary_notes = _config(recipe, tokenizer)

    def load(folder: Path) -> Data:
        data = load_task(recipe, config=config, tokenizer=tokenizer, seed=seed, cache=cache or folder)
        changed = [] if again is None else again.fingerprint.differences(data.fingerprint)
        if changed:
            raise SourceError(f"the data is not what the run was configured with: {'; '.join(changed[:3])}")
        return data

    def make(data: Data) -> Any:
        has_head = kind_of(recipe.task) in CLASSIFYING
        if has_head:
            names = data.labels or ("value",)  # without classes, a number is predicted
            config.num_labels = len(names)
            config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        if recipe.start:
            return trained_model(recipe.start, config, recipe.task, new_head=has_head, seed=seed)
        return new_model(config, recipe.task, seed)

    return assemble(
        RunSpec(
            folder=run, scratch=scratch, in_place=again is not None, recipe=recipe,
            settings=TrainerArguments(recipe.settings, origins), source="", fresh_optimizer=False, checkpoint=None,
            step=0, fresh=True, trained=bool(recipe.start), plan=plan, load_data=load,
            seen=lambda _: bool(recipe.start), make_model=make, tokenizer=tokenizer,
            companions=lambda folder: save_tokenizer(tokenizer, folder),
            notes=[*notes, *vocabulary_notes, *_warmup_notes(recipe)],
        )
    )  # fmt: skip


def _config(recipe: Recipe, tokenizer: Any) -> tuple[Any, list[str]]:
    """Return the model's configuration and notes. The tokenizer sets the vocabulary if the recipe does not."""
    if recipe.start:
        return read_config(recipe.start, recipe.model), []
    config, kind = new_config(recipe.model), recipe.model.get("model_type")
    default = vocabulary_of(config)
    if default is None or "vocab_size" in recipe.model or kind_of(recipe.task) == "images":
        return config, []
    if reads_tokens(recipe):
        return config, [f"The recipe names no vocab_size: the model has that of {kind} by default, {default}."]
    size = _BYTES if tokenizer is None else len(tokenizer)
    config = new_config({**recipe.model, "vocab_size": size})
    units = "bytes" if tokenizer is None else "the tokenizer"
    return config, [
        f"The recipe names no vocab_size: it is {size}, that of {units} (the default of {kind} is {default})."
    ]


def _plan(recipe: Recipe, run: Path, again: RunConfig | None) -> DecayPlan | None:
    if recipe.decay.startswith("plan:"):
        return load_plan(recipe.decay.removeprefix("plan:"))
    check_rule_options(recipe.decay, recipe.alphadecay)
    if recipe.decay != "plan":
        return None
    if again is None:
        raise UsageError("decay 'plan' says not which: name it as plan:FILE")
    return load_plan(run / PLAN)


def _warmup_notes(recipe: Recipe) -> list[str]:
    """Note a warm-up that does not end within the run."""
    warmup = recipe.settings.get("warmup_steps", 0)
    if warmup < recipe.steps_total:
        return []
    return [
        f"The warm-up of {warmup} steps is not over at the end, step {recipe.steps_total}: the lr of the recipe is "
        "never reached (warmup_steps=N)."
    ]
