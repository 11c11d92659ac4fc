"""How to read the numbers of a report: one entry for each column, for `specdiag explain` and docs/reading.md."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from msgspec import Struct

from specdiag.files import toml_decoder


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column and its relatives."""

    column: str
    also: tuple[str, ...]
    """Other columns that it explains, and heads of tables."""
    meaning: str
    picture: bool = True
    """True where docs/figures/reading has its values in MiniLM."""
    typical: str
    low: str
    high: str
    advice: str

    def lines(self) -> list[tuple[str, str]]:
        """Subject and sentence of each thing that the entry says."""
        return [
            ("Meaning", self.meaning),
            ("Typical", self.typical),
            ("Low", self.low),
            ("High", self.high),
            ("To do", self.advice),
        ]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    entry: tuple[Entry, ...]


_decode = toml_decoder(_File)


@cache
def entries() -> tuple[Entry, ...]:
    """Read all entries, the most asked for first."""
    return _decode((files("specdiag.views") / "reading.toml").read_bytes()).entry


def find(column: str) -> Entry | None:
    """Find the entry of a column.

    Args:
        column: its name in a report, or its head in a table; case does not count.

    Returns:
        The entry; None where the column is no number of a report.
    """
    known = {name.lower(): entry for entry in entries() for name in (entry.column, *entry.also)}
    return known.get(column.strip().lower())


def meanings() -> dict[str, str]:
    """Map each column that an entry explains to what it means."""
    return {name: entry.meaning for entry in entries() for name in (entry.column, *entry.also)}


def reading_page() -> str:
    """Write the entries as markdown, the body of docs/reading.md."""
    sections: list[str] = []
    for entry in entries():
        also = f"Also: {', '.join(f'`{name}`' for name in entry.also)}.\n\n" if entry.also else ""
        rows = "".join(f"| {subject} | {text} |\n" for subject, text in entry.lines())
        alone = f"![{entry.column} of every matrix of MiniLM, by role](figures/reading/{entry.column}.png)\n\n"
        picture = alone if entry.picture else ""
        sections.append(f"## {entry.column}\n\n{also}{picture}| | |\n| --- | --- |\n{rows}")
    return "\n".join(sections)
