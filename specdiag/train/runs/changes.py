"""Changes values of a recipe, as options on a command line do."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.train.recipe import Recipe, validated

_SHORT = {"lr": "learning_rate", "batch_size": "per_device_train_batch_size"}
TABLES = ("settings", "model", "alphadecay", "optimizer_options")
"""Tables that `TABLE.NAME=VALUE` may name. NAME alone is a field of the recipe, else one of the settings."""


def parse_assignments(texts: Sequence[str]) -> Table:
    """Parse texts of the form `NAME=VALUE`.

    Args:
        texts: assignments; a value is TOML, or text if it is no TOML.

    Returns:
        Values by name.

    Raises:
        UsageError: a name or the equals sign is missing, or a name is given twice.
    """
    values: Table = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise UsageError(f"'{text:.80}' is not NAME=VALUE, such as bf16=true or model.num_hidden_layers=4")
        if name.strip() in values:
            raise UsageError(f"'{name.strip():.80}' is given twice: leave one out")
        values[name.strip()] = _value(value)
    return values


def _value(text: str) -> Any:
    """Read a TOML value; return the text if it is none, such as a number with more digits than Python reads."""
    try:
        content = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return content["value"] if len(content) == 1 else text


def settings_of(assignments: Mapping[str, object]) -> set[str]:
    """Return the names of the assignments that are arguments of the Trainer."""
    names = {_SHORT.get(name, name).removeprefix("settings.") for name in assignments}
    return {name for name in names if "." not in name and name not in Recipe.__struct_fields__}


def changed(recipe: Recipe, assignments: Mapping[str, object]) -> Recipe:
    """Return a copy of a recipe with other values.

    Args:
        recipe: recipe to copy.
        assignments: values by name: a field, `TABLE.NAME`, or an argument of the Trainer.

    Raises:
        UsageError: a name does not exist, two names mean the same, or a value is not possible.
    """
    _check_once(assignments)
    content: Table = msgspec.to_builtins(recipe)
    fields = Recipe.__struct_fields__
    for key, value in assignments.items():
        name = _SHORT.get(key, key)
        table, dot, inner = name.partition(".")
        if dot and table in TABLES:
            content[table] = {**content[table], inner: value}
        elif name in fields and name not in TABLES:
            content[name] = value
        else:
            content["settings"] = {**content["settings"], name: value}
    if content["decay"] != recipe.decay:
        content["alphadecay"] = _only_given(content, "alphadecay", assignments)
    if content["optimizer"] != recipe.optimizer:
        content["optimizer_options"] = _only_given(content, "optimizer_options", assignments)
    return validated(content)


def _check_once(assignments: Mapping[str, object]) -> None:
    names: dict[str, str] = {}
    for key in assignments:
        name = _SHORT.get(key, key).removeprefix("settings.")
        if name in names:
            raise UsageError(f"'{names[name]}' and '{key}' mean the same: leave one out")
        names[name] = key


def _only_given(content: Mapping[str, Any], table: str, assignments: Mapping[str, object]) -> Table:
    """Return only the options that were assigned, because those of the former method do not fit the new one."""
    return {name: value for name, value in content[table].items() if f"{table}.{name}" in assignments}
