"""Checks of adapters: what their settings promise, and what their factors are like.

They say what was measured, no more: a concentrated or large update may be meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, cast

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.errors import SourceError

if TYPE_CHECKING:
    from specdiag.auditing.adapter_screen import Screen

_EITHER = frozenset({"classifier", "score"})
"""Names of heads of which PEFT lists both for classification, and a model has one."""
_OF_FACTORS = ("adapter_one_sided", "adapter_initial", "adapter_random", "adapter_concentrated")
_OF_SETTINGS = ("adapter_empty", "adapter_lost", "adapter_targets")
_OF_BASE = ("adapter_norm", "adapter_intruders")
_LONGEST_NUMBER, _MOST_ENDS = 9, 32
_LEAST_RANK = 4
"""Rank below which a share of the energy in the first direction says little."""


def is_empty(subject: Subject) -> bool:
    """Tell whether a checkpoint is an adapter that changes nothing.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None or not subject.report.complete or _is_selection(subject):
        return False
    if subject.report.source.base is not None:
        return bool(subject.screens) and all(s.is_zero for s in subject.screens)
    return all(r.status == "zero" for r in subject.report if r.key in subject.updates)


def one_sided(subject: Subject) -> list[Screen]:
    """Find updates of zero beside others that are not.

    Args:
        subject: the subject of the audit.
    """
    zero = [s for s in subject.screens if s.is_zero]
    return zero if len(zero) < len(subject.screens) else []


def content(subject: Subject) -> Iterator[Observation]:
    """Find an adapter without a change, and weights that its settings promise and that are not there.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        return
    if is_empty(subject):
        n = len(subject.updates) or len(subject.screens)
        yield Observation("adapter_empty", None, f"all {n} updates are zero" if n else "no updates at all")
    if subject.report.source.base is None:
        names = [*(r.name for r in subject.report), *(s.name for s in subject.report.skipped)]
        for name in _lost(subject.adapter, names):
            yield Observation("adapter_lost", name, "not there")
        from specdiag.checkpoint.adapters.adapter import HALF  # loads NumPy

        for tensor in subject.report.skipped:
            if tensor.reason == HALF:
                yield Observation("adapter_lost", tensor.name, "its other factor is not there")


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
        return dict.fromkeys(checks, "the source is no adapter, or a report of one")
    reasons: dict[str, str] = {}
    if subject.report.source.base is None:
        reasons |= dict.fromkeys(_OF_BASE, "needs base=")
    else:
        reasons["adapter_lost"] = "with base= the weights are the model's: audit the adapter without it"
    if _is_selection(subject):
        reasons["adapter_empty"] = "only a selection of the matrices was asked for"
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
    """List the updates of modules that PEFT would not adapt by the settings; the reason where they do not tell.

    A module's name ends in an entry of the list, or fits the expression.
    """
    settings = subject.adapter or {}
    declared = settings.get("target_modules")
    if not declared or declared == "all-linear" or not isinstance(declared, str | list):
        return "adapter_config.json lists no target_modules"
    from specdiag.checkpoint.adapters.patterns import Patterns  # loads NumPy

    patterns = Patterns({declared: True}) if isinstance(declared, str) else None
    paths = [*_texts(declared), *(p.rpartition(".")[0] for p in _texts(settings.get("target_parameters")))]
    listed = frozenset(paths)
    try:
        return [
            s
            for s in subject.screens
            if not _is_of_a_layer(s.module, settings.get("layers_to_transform"))
            or not (listed.intersection(_ends(s.module)) if patterns is None else patterns.first(s.module, False))
        ]
    except SourceError as error:
        return str(error)


def _is_of_a_layer(module: str, chosen: object) -> bool:
    """Tell whether a module lies in one of the chosen layers, or in none that has a number."""
    layers: list[object] = cast("list[object]", chosen) if isinstance(chosen, list) else [chosen]
    numbers = {int(part) for part in module.split(".") if part.isdecimal() and len(part) < _LONGEST_NUMBER}
    return chosen is None or not numbers or any(number in layers for number in numbers)


def _ends(module: str) -> Iterator[str]:
    """Yield a path without its first 0, 1, 2, ... segments."""
    parts = module.split(".")
    return (".".join(parts[first:]) for first in range(len(parts) - min(len(parts), _MOST_ENDS), len(parts)))


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
