"""Checks of tables of tokens: rows that training hardly touched, copies, padding, and tokens without a row."""

from __future__ import annotations

from collections.abc import Iterator

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_CHECKS = ("untrained_tokens", "equal_tokens", "padding_tokens", "missing_tokens")


def tables(subject: Subject) -> Iterator[Observation]:
    """Find rows of tables of tokens that nothing taught, that stand twice, or for no token, and those that lack.

    Args:
        subject: the subject of the audit, with its tables.

    Yields:
        Shares and counts of such rows.
    """
    for table in subject.tokens or ():
        if table.reference is not None:
            yield Observation("untrained_tokens", table.name, table.n_like / table.rows)
        if not table.dequantized:  # rows that differ little become equal
            yield Observation("equal_tokens", table.name, table.n_equal)
        yield Observation("padding_tokens", table.name, table.n_padding)
        yield Observation("missing_tokens", table.name, table.n_missing)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if subject.tokens is None:
        return {} if subject.is_checkpoint else dict.fromkeys(_CHECKS, "a report holds no rows: audit the checkpoint")
    if not subject.tokens:
        return dict.fromkeys(_CHECKS, "no embedding of tokens, or head, under a name that is known")
    reasons: dict[str, str] = {}
    if all(table.reference is None for table in subject.tokens):
        reasons["untrained_tokens"] = str(subject.tokens[0].no_scores)
    if all(table.dequantized for table in subject.tokens):
        reasons["equal_tokens"] = "quantised rows that differ little become equal"
    if all(table.tokenizer is None for table in subject.tokens):
        reasons["missing_tokens"] = str(subject.tokens[0].no_tokenizer)
    return reasons
