"""Causes by which PEFT does not find an adapter: its file's name, settings it stops at, names it passes over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import cast

from specdiag.checkpoint.adapters.adapter import Adapter
from specdiag.checkpoint.adapters.names import PREFIX, take_apart
from specdiag.checkpoint.adapters.patterns import LONGEST
from specdiag.checkpoint.adapters.targets import Targets
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError

_FILE = re.compile(r"(.*/)?adapter_model\.(safetensors|bin)")
_TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


def not_found(adapter: Adapter, file: str) -> Iterator[tuple[str, str]]:
    """Name what PEFT would not find of an adapter.

    Args:
        adapter: updates and settings.
        file: its file. One of another name is PEFT's where the settings are: other programs write no peft_type.

    Yields:
        The file, an entry of the settings or a tensor, and what is wrong with it.

    Raises:
        SourceError: the settings contradict their types.
    """
    settings = adapter.config.settings
    if not _FILE.fullmatch(file):
        if adapter.updates and settings.get("peft_type") is not None:
            yield file, "PEFT reads adapter_model.safetensors or adapter_model.bin, and no file of another name"
        return
    if not settings:
        yield "adapter_config.json", "not beside the adapter"
    else:
        yield from _stops_at(settings)
        yield from _names_no_update(adapter)
    names = [(update.down.name, update.adapter) for update in adapter.updates]
    in_memory = [name for name, own in names if own is not None]
    if in_memory:
        yield in_memory[0], f"{_modules(in_memory)}: a name as in memory, which holds that of the adapter"
    bare = [name for name, _ in names if not name.startswith(PREFIX)]
    if bare and settings:
        yield bare[0], f"{_modules(bare)}: a name without {PREFIX}"
    magnitudes = [u.magnitude.name for u in adapter.updates if u.magnitude is not None]
    if magnitudes and settings and not adapter.config.has_magnitudes:
        yield magnitudes[0], f"{_modules(magnitudes)}: a DoRA magnitude, and use_dora is not true"


def _stops_at(settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Name the entries that PEFT stops at before it looks at the weights."""
    if settings.get("peft_type") is None:
        yield "peft_type", "not in adapter_config.json, and PEFT stops without it"
    task = settings.get("task_type")
    if task is not None and task not in _TASKS:
        yield "task_type", f"{brief(repr(task))} is no task type of PEFT, which stops at it"
    for key in ("target_modules", "exclude_modules"):
        if (flaw := _flaw(settings.get(key))) is not None:
            yield key, f"PEFT stops at {flaw}"


def _flaw(expression: object) -> str | None:
    """Say why a text is no regular expression; None of one that is, and where it is too long or too deep to try."""
    if not isinstance(expression, str) or len(expression) > LONGEST:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax whose meaning may change
            re.compile(expression)
    except (re.error, OverflowError) as error:
        return f"{brief(repr(expression))}, no regular expression: {error}"
    except RecursionError:
        return None
    return None


def _names_no_update(adapter: Adapter) -> Iterator[tuple[str, str]]:
    """Tell where the settings name none of the modules that have an update, so that all of them are passed over."""
    settings = adapter.config.settings
    targets = Targets(settings)
    factors = (take_apart(tensor.name) for tensor in adapter.left_out)
    modules = {u.module for u in adapter.updates} | {p.module for p in factors if p.kind in ("down", "up")}
    is_empty = cast("object", settings.get("target_modules")) in ([], "")
    if not modules or not (targets.are_listed or is_empty) or settings.get("ensure_weight_tying"):
        return
    try:
        if any(targets.include(module) for module in modules):
            return
    except SourceError:
        return
    yield "target_modules", f"{'empty' if is_empty else 'fits no update'}: {_modules(list(modules))} with an update"


def _modules(names: list[str]) -> str:
    return "1 module" if len(names) == 1 else f"{len(names)} modules"
