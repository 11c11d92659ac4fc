"""Models as transformers builds them from config.json: with the weights of a checkpoint, or new ones."""

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
    """config.json of a folder or hub id.

    Args:
        source: where it is.
        changes: values that are to be others.

    Raises:
        SourceError: there is none, or transformers does not know the model.
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **_file(source), **(changes or {}))
    except _FAILURES as error:
        raise SourceError(f"transformers cannot read the config.json of {source} ({_first_line(error)})") from error


def new_config(content: Mapping[str, object]) -> PreTrainedConfig:
    """A configuration from the content of config.json.

    Raises:
        UsageError: it names no model type that transformers knows, or has a wrong value.
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
    """A model with new weights, the same for the same seed.

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
    """A model with the weights of a folder or hub id.

    Args:
        source: where the weights are.
        config: of the model, with the task's labels.
        task: what it is to learn.
        stored_type: keep the type that they are stored in, as a run that goes on must; else float32, in which small
            decays do not round away.
        new_head: the weights may lack those of the task's head, which are made anew.
        seed: of a new head.

    Raises:
        SourceError: weights are missing or damaged.
        UsageError: they are another task's.
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
    wanted = list(config.architectures or [])
    if not new_head and wanted and type(model).__name__ not in wanted:
        could = ", ".join(tasks_of(wanted[0])) or "another task"
        raise UsageError(f"{source} is a {wanted[0]}, for {could}; task={task!r} would need a {type(model).__name__}")
    missing = sorted(loading["missing_keys"])
    body = [name for name in missing if name.startswith(f"{model.base_model_prefix}.")] if new_head else missing
    if body:
        raise SourceError(f"{source} lacks weights of its model, such as {body[0]} ({len(body)} in all)")
    return model


def _plain(model: Any, task: str) -> Any:
    """The same weights in a model that does not pass for a quantised one."""
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
    """A misspelt name would be kept and not read, and the default taken for what was meant."""
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
