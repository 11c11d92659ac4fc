"""Findings that a user's file excuses by name: they leave the verdict, and stay in the report with their reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from specdiag.auditing.records import Excused, Finding
from specdiag.auditing.thresholds import Check
from specdiag.text.globs import fits


def excuse(found: Iterable[Finding], checks: Mapping[str, Check]) -> tuple[list[Finding], tuple[Excused, ...]]:
    """Part the findings that `ignore` of their check excuses from the others.

    Args:
        found: findings, in any order.
        checks: by id.

    Returns:
        The findings that count, in the same order, and an entry for each pattern, those that excused nothing included.
        A finding goes to the first pattern that matches its module; one of the whole checkpoint has no module.
    """
    kept: list[Finding] = []
    taken: dict[tuple[str, str], list[Finding]] = {(c.id, p): [] for c in checks.values() for p in c.ignore}
    for finding in found:
        names = () if finding.module is None else (finding.module,)
        pattern = next((p for p in checks[finding.check].ignore if fits(names, (p,))), None)
        (kept if pattern is None else taken[finding.check, pattern]).append(finding)
    return kept, tuple(
        Excused(check=check, pattern=pattern, reason=checks[check].ignore[pattern], findings=tuple(findings))
        for (check, pattern), findings in taken.items()
    )
