"""Calling the functions that measure the checks: a check names its function in `by`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import cast

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Check, Observation

_Measure = Callable[[Subject], Iterable[Observation]]
_Reasons = Callable[[Subject], dict[str, str]]


def observe(subject: Subject, checks: Iterable[Check]) -> Iterator[Observation]:
    """Measure what the checks need, each function once, in the order of the table.

    Args:
        subject: the subject of the audit.
        checks: the checks to make.

    Yields:
        The observations of these checks.
    """
    by_id = {check.id: check for check in checks}
    for by in dict.fromkeys(check.by for check in by_id.values()):
        measure = cast("_Measure", getattr(_module(by), by.partition(".")[2]))
        yield from (observation for observation in measure(subject) if observation.check in by_id)


def not_checked(subject: Subject) -> dict[str, str]:
    """Collect the checks that cannot run from every file of checks.

    Args:
        subject: the subject of the audit.

    Returns:
        Reasons by check, from the `not_checked` of each file that has one.
    """
    modules = dict.fromkeys(_module(check.by) for check in subject.checks.values())
    reasons = (cast("_Reasons", module.not_checked)(subject) for module in modules if hasattr(module, "not_checked"))
    return {check: reason for by_check in reasons for check, reason in by_check.items()}


def _module(by: str) -> ModuleType:
    return import_module(f"specdiag.auditing.{by.partition('.')[0]}")
