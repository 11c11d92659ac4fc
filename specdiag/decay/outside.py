"""The matrices that a plan leaves alone, counted in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from specdiag.records import ModuleRecord
from specdiag.text.names import listed


def outside_the_plan(records: Sequence[ModuleRecord], planned: Collection[str]) -> list[str]:
    """Count the matrices that take no part in a plan, by role, and those among them that no rule knows.

    Args:
        records: of the report.
        planned: names of the Parameters in the plan.

    Returns:
        Up to two sentences; none where every matrix takes part.
    """
    outside = [record for record in records if record.name not in planned]
    if not outside:
        return []
    roles = ", ".join(f"{n} {role}" for role, n in Counter(record.role for record in outside).most_common())
    verb = "takes" if len(outside) == 1 else "take"
    sentences = [f"{len(outside)} of {len(records)} matrices {verb} no part: {roles}."]
    unknown = [record.key for record in outside if not record.recognised]
    if unknown:
        names = "1 of them has a name" if len(unknown) == 1 else f"{len(unknown)} of them have names"
        sentences.append(f"{names} that no rule knows: {listed(unknown, 3)}.")
    return sentences
