"""The table of checks (metric, threshold, reason, advice), and the changes that a user makes to it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Literal, NamedTuple, cast

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from specdiag.auditing.records import SEVERITIES, Finding, Severity, Value
from specdiag.errors import UsageError
from specdiag.files import Table, converter, decode_toml, read_whole, shortened, toml_decoder
from specdiag.text import checks

LIMIT = 1 << 20
"""Bytes of the largest file of thresholds that is read."""

Need = Literal[
    "report", "weights", "checkpoint", "randomize", "baseline", "decay", "tokens", "alarms", "adapter", "base",
    "transformers",
]  # fmt: skip


_NEEDS: dict[Need, str] = {
    "report": "",
    "weights": "the checkpoint",
    "checkpoint": "config.json",
    "randomize": "`randomize=True`",
    "baseline": "`baseline=`",
    "decay": "`weight_decay=`, `lr=`",
    "tokens": "`tokens=`",
    "alarms": "`alarms=True`",
    "adapter": "an adapter",
    "base": "an adapter, `base=`",
    "transformers": "config.json and transformers",
}
"""Inputs in the words of the documentation."""


class Check(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of checks.toml."""

    id: str
    by: str
    """The function that measures it: `file.function` of this package."""
    severity: Severity
    metric: str
    """Measured quantity, in the words of the table in the documentation."""
    phrase: str = "{}"
    """A value in words: `{}` stands for the number, `{%}` for a share in percent."""
    threshold: float | None = None
    """Limit beyond which a value is a finding; None where every observation is one."""
    fires: Literal["above", "below"] = "above"
    at_least: int | None = None
    """Matrices that must be comparable for the check to say anything."""
    needs: Need = "report"
    """Input that the check needs beside a report."""
    why: str
    advice: str
    origin: str
    """Where metric and threshold come from."""
    enabled: bool = True
    ignore: dict[str, str] = {}
    """Globs of modules whose findings do not count, each with its reason."""


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a check that a user's file may change."""

    threshold: float | None = None
    severity: Severity | None = None
    enabled: bool | None = None
    at_least: int | None = None
    ignore: dict[str, str] | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    check: tuple[Check, ...]


_decode_file = toml_decoder(_File)
_to_override = converter(Override)


class Observation(NamedTuple):
    """A measurement of a check; the thresholds decide whether it is a finding."""

    check: str
    module: str | None
    value: Value
    expected: float | None = None
    """Expected value, where the check has no single threshold."""


@cache
def default_checks() -> dict[str, Check]:
    """Read the checks as they are shipped, by id, in the order of the table."""
    data = (files("specdiag.auditing") / "checks.toml").read_bytes()
    return {check.id: check for check in _decode_file(data).check}


def load_checks(overrides: str | os.PathLike[str] | Mapping[str, object] | None = None) -> dict[str, Check]:
    """Read the checks, with the changes of a user.

    Args:
        overrides: a TOML file with a table for each check to change, or the same as a mapping:
            `{"rank": {"threshold": 0.2, "severity": "info"}, "trap": {"enabled": False}}`. `ignore` excuses modules by
            glob, each with its reason: `{"random": {"ignore": {"pooler.*": "nothing reads it"}}}`.

    Returns:
        The checks by id, in the order of the table.

    Raises:
        UsageError: the file cannot be read, or names a check or key that does not exist, or a value that cannot be.
    """
    if overrides is None:
        return default_checks()
    origin, tables = _read(overrides)
    checks = dict(default_checks())
    for name, table in tables.items():
        if name not in checks:
            raise UsageError(f"{origin}: {no_such_check(str(name), checks)}")
        checks[name] = _changed(checks[name], table, origin)
    return checks


def no_such_check(name: str, checks: Iterable[str]) -> str:
    """Say that there is no check of a name, with the nearest names.

    Args:
        name: as it was given.
        checks: ids of all checks.
    """
    near = get_close_matches(name, checks := list(checks), 3, 0.5)
    advice = f"the nearest are {', '.join(near)}" if near else f"the checks are {', '.join(checks)}"
    return f"there is no check '{shortened(name, 60)}'; {advice}"


def findings(observations: Iterable[Observation], checks: Mapping[str, Check]) -> Iterator[Finding]:
    """Turn observations into findings where they lie beyond the threshold of their check.

    Args:
        observations: in any order.
        checks: by id; one that is switched off finds nothing.

    Yields:
        The findings, in the order of the observations.
    """
    for observation in observations:
        check = checks[observation.check]
        if check.enabled and _fires(check, observation.value):
            yield Finding(
                check=check.id,
                severity=check.severity,
                module=observation.module,
                value=observation.value,
                threshold=check.threshold if observation.expected is None else observation.expected,
                why=check.why,
                advice=check.advice,
            )


def changeable(check: Check) -> list[str]:
    """List the settings of a check that a user's file may change."""
    return [key for key in Override.__struct_fields__ if getattr(check, key) is not None]


def checks_table() -> str:
    """Write the table of docs/audit.md: every check with its default and its source."""
    head = ("check", "severity", "finding where", "threshold", "needs", "why it matters", "basis")
    lines = [head, ("---",) * len(head)]
    lines += [
        (
            f"`{check.id}`",
            check.severity,
            check.metric,
            _limit(check),
            _NEEDS[check.needs],
            check.why,
            check.origin,
        )
        for check in default_checks().values()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _limit(check: Check) -> str:
    if check.threshold is None:
        return "any"
    least = "" if check.at_least is None else f" (at_least = {check.at_least})"
    return f"{'>' if check.fires == 'above' else '<'} {check.threshold:g}{least}"


def _fires(check: Check, value: Value) -> bool:
    if check.threshold is None or isinstance(value, str):
        return True
    return value > check.threshold if check.fires == "above" else value < check.threshold


def _read(overrides: str | os.PathLike[str] | Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    if isinstance(overrides, Mapping):
        return "thresholds", overrides
    checks.path("thresholds", overrides)
    name = os.fspath(overrides)
    try:
        return name, decode_toml(read_whole(overrides, LIMIT))
    except OSError as error:
        raise UsageError(f"the thresholds in {name} cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UsageError(f"{name} is no TOML: {error}") from error


def _changed(check: Check, table: object, origin: str) -> Check:
    allowed = changeable(check)
    unknown = [key for key in cast("Table", table) if key not in allowed] if isinstance(table, dict) else []
    if unknown:
        raise UsageError(
            f"{origin}: '{check.id}' has no '{shortened(str(unknown[0]), 60)}' to change; it has {', '.join(allowed)}"
        )
    try:
        override = _to_override(table)
    except msgspec.DecodeError as error:
        raise UsageError(
            f"{origin}: '{check.id}' is not understood ({error}); write [{check.id}] with any of {', '.join(allowed)}; "
            f'severities are {", ".join(SEVERITIES)}; below [{check.id}.ignore] stands "pattern" = "reason"'
        ) from error
    for pattern, reason in (override.ignore or {}).items():
        if not pattern.strip() or not reason.strip():
            raise UsageError(f"{origin}: '{check.id}' ignores '{shortened(pattern, 60)}' without a pattern or a reason")
    for key in ("threshold", "at_least"):
        number = getattr(override, key)
        if number is not None and not 0 <= number < math.inf:
            raise UsageError(f"{origin}: {key} {number} of '{check.id}' must be a number of at least 0")
    return replace(check, **{key: value for key, value in asdict(override).items() if value is not None})
