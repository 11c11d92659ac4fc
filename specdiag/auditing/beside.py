"""The weight files beside those of the model: what was found in them, or that nobody looked."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_BY_VALUE = ("damaged_file", "twin", "variant")


def files(subject: Subject) -> Iterator[Observation]:
    """Observe what the other weight files of the repository hold, and those that were not looked into.

    Args:
        subject: the subject of the audit.
    """
    yield from subject.beside
    if subject.other_files is None:
        for name in subject.report.source.ignored:
            yield Observation(
                "not_audited", name, "give the path or hub id: reports and open checkpoints hold one model"
            )


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of other files where they were not looked into.

    Args:
        subject: the subject of the audit.
    """
    if subject.other_files is not None:
        return {}
    return dict.fromkeys(_BY_VALUE, "a report, a model in memory or an open checkpoint has no other files")
