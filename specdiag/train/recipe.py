"""Recipes: model, data, optimizer, decay and length of a run in a TOML file. Presets follow papers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from specdiag.errors import MissingExtraError, SourceError, UsageError
from specdiag.files import Table, converter, decode_toml, read_whole
from specdiag.optim.registry import METHODS
from specdiag.records import Record
from specdiag.text.checks import MOST_RATE
from specdiag.train.callbacks.registry import OPTIONS
from specdiag.train.tasks.augment import AUGMENTS

PRESETS = Path(__file__).parent / "presets"
TASKS = ("causal-lm", "masked-lm", "glue/NAME", "classification", "images")
DECAYS = (*OPTIONS, "plan:FILE")

_NOT_SETTINGS = {
    "max_steps": "steps_total",
    "num_train_epochs": "steps_total",
    "output_dir": "the folder of the run",
    "logging_nan_inf_filter": "stop_on_nan=True or stop_on_nan=False",
    "save_strategy": "save_steps",
    "logging_strategy": "logging_steps",
    "resume_from_checkpoint": "resume=",
}
"""Arguments of the Trainer that are set in another way, which the value names."""
_UNSUPPORTED_SETTINGS = (
    "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_train", "do_eval", "do_predict", "disable_tqdm",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "push_to_hub",
)  # fmt: skip
"""Arguments of the Trainer that have no effect on a run, which has its own evaluation, saving and progress."""
_LAUNCHED = ("fsdp", "fsdp_config", "deepspeed", "parallelism_config")
"""Arguments of the Trainer that divide a model among processes."""
_MAY_BE_INFINITE = ("max_grad_norm",)
_BEYOND = 1 << 63
"""First integer that is too large."""
_MOST_LR = 1e32
"""Largest lr. Its product with the largest decay fits float32, so that a run that diverges can report it."""
_SEEDS = (0, 2**32 - 1)
"""Smallest and largest seed; numpy takes 32 bits."""
_BOUNDS: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": (1, math.inf), "per_device_eval_batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf), "dataloader_num_workers": (0, math.inf),
    "save_total_limit": (1, math.inf), "seed": _SEEDS, "data_seed": _SEEDS, "learning_rate": (0, _MOST_LR),
    "weight_decay": (0, MOST_RATE), "label_smoothing_factor": (0, 1),
}  # fmt: skip


class Recipe(Record, frozen=True, kw_only=True):
    """Content of a recipe's file. `settings` has learning rate, decay, betas and batch size for every optimizer."""

    title: str
    """Title for messages."""
    source: str
    """Paper, post or code that it follows."""
    notes: tuple[str, ...] = ()
    """Sentences on the values: which are from the source, reconstructed, or different."""
    task: str
    """`causal-lm`, `masked-lm`, `glue/NAME`, `classification`, `images`."""
    data: tuple[str, ...] = ()
    """Paths, or datasets of the hub as `name` or `name:config`; empty if they must be named for each run."""
    eval_data: tuple[str, ...] = ()
    """Held-out data, named as `data`; empty to hold out blocks of `data`."""
    tokenizer: str = ""
    """Hub id, folder, or `bytes`; empty for the tokenizer of `start`."""
    block_size: int = 0
    """Tokens of a block, or largest number of tokens of an example; 0 if there are no tokens."""
    steps_total: int
    """Optimizer steps of the run."""
    max_tokens: int = 0
    """Number of tokens to take from the data; 0 for all."""
    decay: str = "uniform"
    """`uniform`, `none`, `alphadecay`, `alphalr`, `awd`, `adadecay`, `module-adadecay`, `plan:FILE`."""
    optimizer: str = "adamw"
    """A name of `specdiag.optim.METHODS`; empty, only in a run that continues, for the Trainer's own."""
    start: str = ""
    """Hub id or folder of the weights; empty for new weights, made from `model`."""
    eval_every: int = 0
    """Steps between two evaluations; 0 to evaluate only before the first step and after the last."""
    norms_every: int = 50
    """Steps between two logs of weight norms, for checks of a simulation and plots of norms; 0 for none."""
    columns: tuple[str, ...] = ()
    """Columns of a classification data set: one or two with text, then the label; empty for the usual ones."""
    augment: str = "crop"
    """Changes of training images: `none`, `crop`, `randaugment`, `mixup`."""
    model: Table = msgspec.field(default_factory=Table)
    """Content of config.json; with `start`, only the values that differ from its config.json."""
    alphadecay: Table = msgspec.field(default_factory=Table)
    """Options of the decay rule, of whichever `decay` names: see `callbacks.registry.OPTIONS`."""
    optimizer_options: Table = msgspec.field(default_factory=Table)
    """Options of the optimizer that are not in `settings`."""
    settings: Table
    """Arguments of the Trainer."""


_convert = converter(Recipe)


def preset_names() -> list[str]:
    """List the names of the included recipes."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Load a preset or a recipe's file.

    Args:
        name_or_path: name of a preset, or path of a .toml file.

    Raises:
        UsageError: there is no such preset, or the file has a value that no recipe can have.
        SourceError: the file cannot be read.

    Example:
        >>> load_recipe("llama-60m").steps_total
        10000
    """
    names = preset_names()
    if not name_or_path.endswith(".toml") and name_or_path not in names:
        raise UsageError(_unknown(name_or_path, "preset", names, " (or name a .toml file)"))
    path = PRESETS / f"{name_or_path}.toml" if name_or_path in names else Path(name_or_path)
    try:
        content = decode_toml(read_whole(path))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no TOML ({error!s:.400})") from error
    try:
        return validated(content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def validated(content: Mapping[str, object]) -> Recipe:
    """Make a recipe of the content of its file, and check it.

    Args:
        content: values by the names of fields, as in TOML.

    Raises:
        UsageError: a field or value is unknown or impossible, or a required field is missing.
    """
    _check_names(content, "field", Recipe.__struct_fields__)
    try:
        recipe = _convert(content)
    except msgspec.DecodeError as error:
        raise UsageError(_sentence(str(error)[:400])) from error
    _check(recipe)
    check_settings(recipe.settings)
    return recipe


def _check(recipe: Recipe) -> None:
    task, decay = recipe.task.partition("/"), recipe.decay.partition(":")
    if recipe.task not in TASKS and not (task[0] == "glue" and task[2]):
        raise UsageError(_unknown(recipe.task, "task", TASKS))
    if recipe.decay not in DECAYS[:-1] and not (decay[0] == "plan" and decay[2]):
        raise UsageError(_unknown(recipe.decay, "decay", DECAYS))
    if recipe.optimizer not in METHODS:
        raise UsageError(_unknown(recipe.optimizer, "optimizer", METHODS))
    if recipe.augment not in AUGMENTS:
        raise UsageError(_unknown(recipe.augment, "augmentation", AUGMENTS))
    _check_names(recipe.optimizer_options, f"option of {recipe.optimizer}", METHODS[recipe.optimizer].defaults)
    _check_names(recipe.alphadecay, f"option of {recipe.decay}", OPTIONS.get(recipe.decay, ()))
    if recipe.eval_every < 0:
        raise UsageError(f"'eval_every' is {recipe.eval_every}: give a number of steps, or 0 for the ends alone")
    if recipe.norms_every < 0:
        raise UsageError(f"'norms_every' is {recipe.norms_every}: give a number of steps, or 0 for no log of norms")
    if recipe.steps_total < 1:
        raise UsageError(f"'steps_total' is {recipe.steps_total}, and a run has at least one step")
    if not recipe.start and not isinstance(recipe.model.get("model_type"), str):
        raise UsageError("say which weights with 'start', or which new model with 'model_type' under [model]")
    if recipe.task != "images" and (recipe.block_size < 2 or not (recipe.tokenizer or recipe.start)):
        raise UsageError(f"{recipe.task} needs a 'block_size' of at least 2, and a 'tokenizer' ('bytes' for none)")


def check_settings(settings: Mapping[str, object]) -> None:
    """Check arguments of the Trainer.

    Args:
        settings: values by the Trainer's names.

    Raises:
        UsageError: a name is unknown or not allowed, or a value has a wrong type, is not finite or is out of bounds.
        MissingExtraError: transformers is not installed.
    """
    try:
        from transformers import TrainingArguments
    except ImportError as error:
        raise MissingExtraError("training needs transformers: pip install transformers accelerate") from error
    elsewhere = next((name for name in settings if name in _NOT_SETTINGS), None)
    if elsewhere is not None:
        raise UsageError(f"'{elsewhere}' is no setting here: {_NOT_SETTINGS[elsewhere]} says it")
    unused = next((name for name in settings if name in _UNSUPPORTED_SETTINGS), None)
    if unused is not None:
        raise UsageError(
            f"'{unused}' is no setting here: a run is evaluated before the first step, every eval_every steps and "
            "after the last, saves every save_steps in its own folder, and shows its own progress"
        )
    launched = next((name for name in settings if name in _LAUNCHED), None)
    if launched is not None:
        raise UsageError(
            f"'{launched}' is no setting here: accelerate launch asks for FSDP2 with use_fsdp and fsdp_version=2, and "
            "specdiag does not train with DeepSpeed or a parallelism config"
        )
    types: Table = {field.name: field.type for field in fields(TrainingArguments)}
    _check_names(settings, "argument of the Trainer", types)
    for name, value in settings.items():
        expected = types[name]
        if expected not in (bool, int, float, str):
            continue
        accepted = (int, float) if expected is float else expected
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise UsageError(f"'{name}' is {value!r:.80}, and it must be of type {expected.__name__}")
        _check_number(name, value)
    for name, value in settings.items():
        if isinstance(value, int | float):
            _check_bounds(name, value)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, int) and abs(value) >= _BEYOND:
        raise UsageError(f"'{name}' has {len(str(value)) if abs(value) < 10**4000 else 'thousands of'} digits, "
                         "and is to be a number of 64 bits")  # fmt: skip
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and name not in _MAY_BE_INFINITE)):
        raise UsageError(f"'{name}' is {value}, and it must be a finite number")


def _check_bounds(name: str, value: float) -> None:
    least, most = _BOUNDS.get(name, (-math.inf, math.inf))
    if not least <= value <= most:
        allowed = f"{least} to {most:.10g}" if most < math.inf else f"at least {least}"
        raise UsageError(f"'{name}' is {value}: give a number of {allowed}")


def _check_names(names: Iterable[str], kind: str, known: Iterable[str]) -> None:
    known = list(known)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise UsageError(_unknown(unknown, kind, known))


def _unknown(name: str, kind: str, known: Iterable[str], also: str = "") -> str:
    known, name = list(known), f"{name:.80}"
    near = get_close_matches(name, known, n=1)
    if not known:
        return f"there is no {kind}, and '{name}' is given{also}"
    nearest = f": did you mean '{near[0]}'?" if near else ""
    choices = f"; choose from {', '.join(known)}" if len(known) <= 20 else ""
    return f"unknown {kind} '{name}'{nearest or choices}{also}"


def _sentence(error: str) -> str:
    """Rewrite a message of msgspec such as "Expected `int`, got `str` - at `$.steps_total`"."""
    missing = re.search(r"missing required field `(\w+)`", error)
    if missing:
        return f"'{missing[1]}' is missing"
    match = re.fullmatch(r"(?P<what>.+?)(?: - at `\$\.?(?P<where>.*)`)?", error)
    problem, field = (match["what"], match["where"]) if match else (error, None)
    return f"'{field}': {problem[0].lower()}{problem[1:].replace('`', '')}" if field else problem
