"""Checks of adapters against their own adapter_config.json: updates that are all zero, and weights that it lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_EITHER = frozenset({"classifier", "score"})
"""Names of heads of which PEFT lists both for classification, and a model has one."""


def is_empty(subject: Subject) -> bool:
    """Tell whether a checkpoint is an adapter that changes nothing.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None or not subject.report.complete or _is_selection(subject):
        return False
    return all(r.status == "zero" for r in subject.report if r.key in subject.updates)


def content(subject: Subject) -> Iterator[Observation]:
    """Find an adapter without a change, and weights that its settings promise and that are not there.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        return
    if is_empty(subject):
        n = len(subject.updates)
        yield Observation("adapter_empty", None, f"all {n} updates are zero" if n else "no updates at all")
    for name in _lost(subject.adapter, [*(r.name for r in subject.report), *(s.name for s in subject.report.skipped)]):
        yield Observation("adapter_lost", name, "not there")


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        return dict.fromkeys(("adapter_empty", "adapter_lost"), "the source is no adapter, or a report of one")
    return {"adapter_empty": "only a selection of the matrices was asked for"} if _is_selection(subject) else {}


def _is_selection(subject: Subject) -> bool:
    settings = subject.report.settings
    return bool(settings.include or settings.exclude or settings.roles)


def _lost(settings: Mapping[str, object], names: list[str]) -> Iterator[str]:
    """Name the entries of the settings that no stored tensor belongs to."""
    modules = {ending for name in names for ending in _endings(name)}
    promised = _texts(settings.get("modules_to_save"))
    either = _EITHER.intersection(promised)
    for entry in promised:
        if entry not in modules and (entry not in either or either.isdisjoint(modules)):
            yield entry
    tokens = settings.get("trainable_token_indices")
    if tokens and not any("trainable_tokens" in name or "token_adapter" in name for name in names):
        yield "trainable_token_indices"


def _endings(name: str) -> Iterator[str]:
    """Yield every run of segments of a tensor's name: `model.lm_head.weight` belongs to `lm_head`."""
    parts = name.split(".")[:12]
    for first in range(len(parts)):
        for last in range(first + 1, len(parts) + 1):
            yield ".".join(parts[first:last])


def _texts(value: object) -> list[str]:
    entries = cast("list[object]", value) if isinstance(value, list) else []
    return [entry for entry in entries if isinstance(entry, str)]
