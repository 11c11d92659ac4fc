"""The check of a forward pass of transformers' own model, without values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specdiag.auditing.reference import Fault, Reference
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_CHECK = "does_not_run"


def stopped(subject: Subject) -> Iterator[Observation]:
    """Find a model whose forward pass ends in an error.

    Args:
        subject: the subject of the audit.
    """
    found = _model(subject)
    if found is not None and found.trial.stopped is not None:
        yield Observation(_CHECK, None, f"{found.model} stops with {found.trial.stopped}{_cause(found.trial.faults)}")


def not_checked(subject: Subject) -> dict[str, str]:
    """Say why the forward pass of a model is unknown.

    Args:
        subject: the subject of the audit.
    """
    found = _model(subject)
    if found is not None:
        return {} if found.trial.not_run is None else {_CHECK: found.trial.not_run}
    reason = "a report does not carry config.json" if subject.reference is None else subject.reference.reason
    return {_CHECK: f"needs transformers' own model: {reason}"}


def _model(subject: Subject) -> Reference | None:
    found = subject.reference
    return found if found is not None and found.reason is None else None


def _cause(faults: Sequence[Fault]) -> str:
    ways = [
        f"without {f.path} ({f.stated})" if f.usual is None else f"with {f.path} {f.usual} instead of {f.stated}"
        for f in faults
    ]
    return f"; it runs {', or '.join(ways)}" if ways else ""
