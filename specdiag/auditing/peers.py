"""Check numbers against the ranges of reference models. A number outside is a fact, no fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.reference.peers import Peers, Place
from specdiag.reference.ranges import METRICS

_CHECK = "reference_range"


def outside(subject: Subject) -> Iterator[Observation]:
    """Find matrices with numbers that no reference model has in this role.

    Args:
        subject: the subject of the audit.

    Yields:
        The numbers of a matrix beside their ranges, in words.
    """
    by_matrix: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place in _places(subject):
        if not place.is_within:
            by_matrix[place.key, place.models].append(place)
    for (key, models), places in by_matrix.items():
        yield Observation(_CHECK, key, f"{', '.join(p.beside for p in places)}, outside the range of {models}")


def not_checked(subject: Subject) -> dict[str, str]:
    """Give the reason where there is nothing to hold the matrices against.

    Args:
        subject: the subject of the audit.
    """
    if subject.ranges is None or next(_places(subject), None) is not None:
        return {}
    lacking = Peers.of(subject.report, subject.ranges).lacking(subject.report.records)
    return {_CHECK: f"no comparable reference: {lacking}"}


def _places(subject: Subject) -> Iterator[Place]:
    if subject.ranges is not None:
        peers = Peers.of(subject.report, subject.ranges)
        yield from (p for r in subject.report for m in METRICS if (p := peers.place(r, m)) is not None)
