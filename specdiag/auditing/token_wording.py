"""A table of tokens in words. Tokens come from untrusted files: nothing in them is printed as markup."""

from __future__ import annotations

from specdiag.auditing.records import TokenRow, TokenTable
from specdiag.spectra.limits import UNTOUCHED_SCORE
from specdiag.text import markdown
from specdiag.text.printable import printable

HEADS = ("row", "token", "score", "norm", "equal to")
_LONGEST = 40


def sentences(table: TokenTable) -> list[str]:
    """Describe a table: how rows were scored, how many score high, and the rows that stand for no token."""
    name = printable(table.name)
    known = (
        f"tokens from {printable(table.tokenizer)}"
        if table.tokenizer is not None
        else f"the tokens are not known: {printable(table.no_tokenizer or '')}"
    )
    lines = [f"Tokens of {name}: {table.rows} rows; {known}."]
    if table.reference is None:
        lines.append(f"No scores: {printable(table.no_scores or '')}.")
    else:
        lines.append(
            f"Score: cosine to the mean of {_reference(table)} (mean cosine {table.coherence:.2f} among them). "
            f"{table.n_like} rows ({100 * table.n_like / table.rows:.2g} %) score above {UNTOUCHED_SCORE:g}: training "
            "hardly met them. A low number is normal; rare scripts are often among them."
        )
    counts = (
        (table.n_reserved, "reserved by name"),
        (table.n_padding, "without a token" if table.tokenizer is not None else "equal ones at the end"),
        (table.n_zero, "all zero"),
    )
    if apart := [f"{n} {what}" for n, what in counts if n]:
        lines.append(f"Rows that are neither counted there nor listed: {', '.join(apart)}.")
    if table.n_equal:
        rounded = ", perhaps since they were quantised" if table.dequantized else ""
        lines.append(f"Rows equal to another row: {table.n_equal}{rounded}.")
    return [*lines, f"Tokens without a row in this table: {table.n_missing}."] if table.n_missing else lines


def cells(row: TokenRow) -> tuple[str, ...]:
    """Write a row for the columns `HEADS`; the norm is over the median of the rows."""
    text = "" if row.text is None else printable(row.text)
    shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return str(row.row), shown, f"{row.score:.3f}", f"{row.norm:.2f}", "" if row.equal_to is None else f"{row.equal_to}"


def to_markdown(table: TokenTable) -> list[str]:
    """Write a table as the lines of a section of markdown."""
    lines = [f"### tokens: {markdown.code(table.name)}", "", *(markdown.text(line) for line in sentences(table)), ""]
    if table.tokens:
        lines += [f"| {' | '.join(HEADS)} |", f"|{' --- |' * len(HEADS)}"]
        lines += [f"| {' | '.join(_in_markdown(row))} |" for row in table.tokens]
        lines.append("")
    return lines


def _in_markdown(row: TokenRow) -> list[str]:
    first, text, *rest = cells(row)
    return [first, markdown.code(text) if text else "", *rest]


def _reference(table: TokenTable) -> str:
    if table.reference == "reserved":
        return f"{table.n_reference} reserved rows"
    return f"the {table.n_reference} rows that lie closest together"
