"""Builds models by transformers from config.json, with the weights of a checkpoint or new ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, set_seed

from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.train.checkpoints.inspect import gguf_in
from specdiag.train.models import nano_gpt, simple_vit
from specdiag.train.tasks.task import auto_class, kind_of, tasks_of

nano_gpt.register()
simple_vit.register()

_FAILURES = (
    StrictDataclassError, OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError,
    ArithmeticError,
)  # fmt: skip
"""Errors of transformers for a configuration or weights that it cannot use."""


def read_config(source: str | Path, changes: Mapping[str, object] | None = None) -> PreTrainedConfig:
    """Read config.json of a folder or hub id.

    Args:
        source: folder or hub id.
        changes: values that replace those of the file.

    Raises:
        SourceError: there is none, or transformers does not know the model.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **_file(source), **(changes or {}))
    except _FAILURES as error:
        raise SourceError(f"transformers cannot read the config.json of {source} ({_first_line(error)})") from error


def new_config(content: Mapping[str, object]) -> PreTrainedConfig:
    """Make a configuration from the content of config.json.

    Raises:
        UsageError: the content names no model type that transformers knows, or has a wrong value.
    """
    rest = dict(content)
    kind = cast("str | None", rest.pop("model_type", None))
    if kind is None:
        raise UsageError('the recipe has no model_type in [model]: say which, such as model_type = "llama"')
    try:
        _check_names(rest, AutoConfig.for_model(kind))
        return AutoConfig.for_model(kind, **rest)
    except UsageError:
        raise
    except _FAILURES as error:
        raise UsageError(f"transformers cannot make a {kind} model of the recipe ({_first_line(error)})") from error


def new_model(config: PreTrainedConfig, task: str, seed: int) -> PreTrainedModel:
    """Make a model with new weights in float32, the same for the same seed.

    Args:
        config: configuration of the model.
        task: task as in a recipe.
        seed: seed of the weights.

    Raises:
        UsageError: the model type cannot learn that task.
        ComputationError: memory ran out.
    """
    set_seed(seed)
    try:
        model = _auto(task).from_config(config, trust_remote_code=False)
    except _FAILURES as error:
        if "allocate memory" in str(error):
            raise ComputationError(f"the new model takes more memory than there is ({_first_line(error)})") from error
        raise UsageError(f"transformers has no {config.model_type} model for {task} ({_first_line(error)})") from error
    return model.to(torch.float32)


def trained_model(
    source: str | Path,
    config: PreTrainedConfig,
    task: str,
    *,
    stored_type: bool = False,
    new_head: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a model with the weights of a folder or hub id.

    Args:
        source: folder or hub id of the weights.
        config: configuration of the model, with the task's labels.
        task: task as in a recipe.
        stored_type: True to keep the stored dtype, as a run that continues must; False for float32, in which small
            decays are not rounded away.
        new_head: True if the weights may lack the head of the task, which then gets new weights.
        seed: seed of a new head.

    Raises:
        SourceError: weights are missing or damaged.
        UsageError: the weights are of another task.
    """
    set_seed(seed)
    try:
        model, loading = _auto(task).from_pretrained(
            source,
            config=config,
            trust_remote_code=False,
            output_loading_info=True,
            dtype="auto" if stored_type else torch.float32,
            **_file(source),
        )
    except _FAILURES as error:
        raise SourceError(f"transformers cannot build the model of {source} ({_first_line(error)})") from error
    if gguf_in(Path(source)) is not None:
        model = _plain(model, task)
    expected = list(config.architectures or [])
    if not new_head and expected and type(model).__name__ not in expected:
        possible = ", ".join(tasks_of(expected[0])) or "another task"
        raise UsageError(
            f"{source} is a {expected[0]}, for {possible}; task={task!r} would need a {type(model).__name__}"
        )
    missing = sorted(loading["missing_keys"])
    lost = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")] if new_head else missing
    if lost:
        raise SourceError(f"{source} lacks weights of its model, such as {lost[0]} ({len(lost)} in all)")
    return model


def _plain(model: Any, task: str) -> Any:
    """Return a float32 model with the same weights, whose configuration does not say that it is quantised."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = _auto(task).from_config(config)
    plain.load_state_dict(model.state_dict())
    return plain.to(torch.float32)


def _file(source: str | Path) -> dict[str, str]:
    name = gguf_in(Path(source))
    return {} if name is None else {"gguf_file": name}


def _check_names(values: Mapping[str, object], config: Any) -> None:
    """Refuse a misspelt name, which transformers would keep and ignore."""
    known = [*config.to_dict(), *config.attribute_map]
    for name in values:
        if name not in known and not hasattr(config, name):
            near = get_close_matches(name, known, n=1)
            hint = f": did you mean '{near[0]}'?" if near else ""
            raise UsageError(f"a {config.model_type} model has no '{name}' in its configuration{hint}")


def _auto(task: str) -> Any:
    return getattr(transformers, auto_class(kind_of(task)))


def _first_line(error: BaseException) -> str:
    return " ".join(" ".join(str(error).strip().splitlines()[:2]).split())
