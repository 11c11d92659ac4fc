"""A recipe with some of its values changed, as options on a command line change them."""

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
"""Those that `TABLE.NAME=VALUE` may name; NAME alone is a field of the recipe, else one of the settings."""


def parse_assignments(texts: Sequence[str]) -> Table:
    """`NAME=VALUE` by name; values are TOML, and text where they are none.

    Raises:
        UsageError: there is no name or no equals sign, or a name stands twice.
    """
    found: Table = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name.strip() or not equals:
            raise UsageError(f"'{text:.80}' is not NAME=VALUE, such as bf16=true or model.num_hidden_layers=4")
        if name.strip() in found:
            raise UsageError(f"'{name.strip():.80}' is given twice: leave one out")
        found[name.strip()] = _value(value)
    return found


def _value(text: str) -> Any:
    """A TOML value; text where it is none, such as a number of more digits than Python reads."""
    try:
        content = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return content["value"] if len(content) == 1 else text


def settings_of(assignments: Mapping[str, object]) -> set[str]:
    """The arguments of the Trainer among them."""
    names = {_SHORT.get(name, name).removeprefix("settings.") for name in assignments}
    return {name for name in names if "." not in name and name not in Recipe.__struct_fields__}


def changed(recipe: Recipe, assignments: Mapping[str, object]) -> Recipe:
    """The recipe with other values.

    Args:
        recipe: stays as it is.
        assignments: by name: a field, `TABLE.NAME`, or an argument of the Trainer.

    Raises:
        UsageError: there is no such name, two names mean the same, or the value cannot be.
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
    if content["decay"] != "alphadecay" and recipe.decay == "alphadecay":
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
    """Options of a former method are not those of a new one."""
    return {name: value for name, value in content[table].items() if f"{table}.{name}" in assignments}
