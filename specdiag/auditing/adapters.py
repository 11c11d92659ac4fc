"""Checks of adapters: what their settings promise, and what their factors are like.

They say what was measured, no more: a concentrated or large update may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from specdiag.auditing.records import SELECTION
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.errors import SourceError
from specdiag.text.counts import counted

if TYPE_CHECKING:
    from specdiag.auditing.adapter_screen import Screen

_OF_FACTORS = ("adapter_one_sided", "adapter_initial", "adapter_random", "adapter_concentrated")
_OF_SETTINGS = ("adapter_not_found", "adapter_empty", "adapter_lost", "adapter_rank", "adapter_targets")
_OF_BASE = ("adapter_norm", "adapter_intruders")
_SETTINGS, _WEIGHTS = "adapter_config.json", frozenset({"adapter_model.safetensors", "adapter_model.bin"})
_LEAST_RANK = 4
"""Rank below which a share of the energy in the first direction says little."""


def is_empty(subject: Subject) -> bool:
    """Tell whether a checkpoint is an adapter that changes nothing.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None or not subject.report.complete or _is_selection(subject):
        return False
    if any(defect.kind == "empty" for defect in subject.defects):
        return True
    if subject.report.source.base is not None:
        return bool(subject.screens) and all(s.is_zero for s in subject.screens)
    return bool(subject.updates) and all(r.status == "zero" for r in subject.report if r.key in subject.updates)


def one_sided(subject: Subject) -> list[Screen]:
    """Find updates of zero beside others that are not.

    Args:
        subject: the subject of the audit.
    """
    zero = [s for s in subject.screens if s.is_zero]
    return zero if len(zero) < len(subject.screens) else []


def content(subject: Subject) -> Iterator[Observation]:
    """Find an adapter without a change, parts not there or of another rank, and parts that PEFT would not find.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        return
    if is_empty(subject):
        n = len(subject.updates) or len(subject.screens)
        yield Observation("adapter_empty", None, f"all {n} updates are zero" if n else "no updates at all")
    checks = {"lost": "adapter_lost", "not found": "adapter_not_found", "rank": "adapter_rank"}
    for defect in subject.defects:
        if defect.kind in checks:
            yield Observation(checks[defect.kind], defect.name, defect.reason)


def beside_model(subject: Subject) -> Iterator[Observation]:
    """Find the settings of an adapter that is not there beside a model.

    Args:
        subject: the subject of the audit.
    """
    names = frozenset(subject.names or ())
    if subject.adapter is None and _SETTINGS in names and not names & _WEIGHTS:
        yield Observation("adapter_beside", _SETTINGS, "no adapter_model.* beside it")


def inside(subject: Subject) -> Iterator[Observation]:
    """Find updates beside the weights that they change, in a model of transformers without the settings of an adapter.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter or not subject.updates or "model_type" not in subject.config:
        return
    weights = {r.name for r in subject.report if r.key not in subject.updates}
    found = sorted({r.name for r in subject.report if r.key in subject.updates and r.name in weights})
    if found:
        yield Observation("adapter_inside", found[0], f"{counted(len(found), 'update')} beside the weights in the file")


def factors(subject: Subject) -> Iterator[Observation]:
    """Find updates of zero, factors as initialised, and energies that are those of noise or lie in one direction.

    Args:
        subject: the subject of the audit.

    Yields:
        Words where a factor is zero or initial; distances from random factors; shares of the first direction.
    """
    yield from (Observation("adapter_one_sided", s.name, _which(s)) for s in one_sided(subject))
    for s in subject.screens:
        if s.is_initial and not s.is_zero:
            yield Observation("adapter_initial", s.name, "A as it is initialised")
        if s.distance is not None:
            yield Observation("adapter_random", s.name, s.distance)
        if s.share is not None and s.rank >= _LEAST_RANK:
            yield Observation("adapter_concentrated", s.name, s.share)


def targets(subject: Subject) -> Iterator[Observation]:
    """Find updates of modules that the settings do not name.

    Args:
        subject: the subject of the audit.
    """
    outside = _outside_of_targets(subject)
    if not isinstance(outside, str):
        yield from (Observation("adapter_targets", s.name, "not among target_modules") for s in outside)


def beside_base(subject: Subject) -> Iterator[Observation]:
    """Compare updates with the weights that they change.

    Args:
        subject: the subject of the audit.

    Yields:
        Ratios of spectral norms; numbers of intruder dimensions beyond those that noise makes.
    """
    for s in subject.screens:
        if s.of_base is not None:
            yield Observation("adapter_norm", s.name, s.of_base.ratio)
            if s.of_base.intruders > s.of_base.expected:
                yield Observation("adapter_intruders", s.name, s.of_base.intruders, s.of_base.expected)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        checks = (*_OF_SETTINGS, *_OF_FACTORS, *_OF_BASE)
        of_none: dict[str, str] = dict.fromkeys(checks, "the source is no adapter, or a report of one")
        has_folder = subject.names is not None or not subject.is_checkpoint
        return of_none if has_folder else of_none | {"adapter_beside": "needs the folder of the model"}
    reasons = {"adapter_beside": "the source is an adapter"}
    if subject.report.source.base is None:
        reasons |= dict.fromkeys(_OF_BASE, "needs base=")
    if _is_selection(subject):
        reasons["adapter_empty"] = SELECTION
    if not subject.screens:
        reasons |= dict.fromkeys(_OF_FACTORS, "no update that could be read")
    if isinstance(problem := _outside_of_targets(subject), str):
        reasons["adapter_targets"] = problem
    return reasons


def _which(s: Screen) -> str:
    """Say why an update is zero."""
    if not s.zero:
        return "zero, though neither factor is"
    names = " and ".join(s.zero)
    return f"{names} are zero" if s.zero == ("A", "B") else f"{names} is zero, the other factor is not"


def _outside_of_targets(subject: Subject) -> list[Screen] | str:
    """List the updates of modules that PEFT would not adapt by the settings; the reason where they do not tell."""
    from specdiag.checkpoint.adapters.targets import Targets  # loads NumPy

    targets = Targets(subject.adapter or {})
    if not targets.are_listed:
        return "adapter_config.json lists no target_modules"
    try:
        tied = _tied_tables(subject)
        return [s for s in subject.screens if s.name not in tied and not targets.include(s.module)]
    except SourceError as error:
        return str(error)


def _tied_tables(subject: Subject) -> set[str]:
    """Name the embeddings and heads that the settings adapt together."""
    if not (subject.adapter or {}).get("ensure_weight_tying"):
        return set()
    return {r.name for r in subject.report if r.role in ("embed", "head")}


def _is_selection(subject: Subject) -> bool:
    settings = subject.report.settings
    return bool(settings.include or settings.exclude or settings.roles)
