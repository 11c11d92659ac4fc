"""Meanings of columns and keys that are no number of a report, by the command that prints them."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from specdiag.files import toml_decoder
from specdiag.views import reading

ANY = "any"
_TYPICAL = " typical"
"""Ends the name of a section that holds typical values."""
_decode = toml_decoder(dict[str, dict[str, str]])
_COMPOSED: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"(?P<of>\w+)_before"), "compare", "{} of the first model."),
    (re.compile(r"(?P<of>\w+)_after"), "compare", "{} of the second model."),
    (re.compile(r"(?P<of>\w+)_change|d (?P<and>[\w ]+)"), "compare", "{} of the second model less that of the first."),
    (re.compile(r"delta_(?P<of>\w+)"), "compare", "{} of the change, the matrix after - before."),
    (re.compile(r"(?:qk|ov|du) (?P<of>[\w ]+)"), "analyze", "{} of the product qk, ov or du, mean over heads."),
)
"""Names that are made of a number's name, and what they mean."""


class Term(NamedTuple):
    """A meaning of a column or key.

    Attributes:
        command: that prints it; `any` for all of them.
        meaning: a sentence.
        of: the number that the name is made of, which has an entry of its own; empty for other names.
        typical: values that a command of this repository printed; empty where none are known.
    """

    command: str
    meaning: str
    of: str = ""
    typical: str = ""


def terms(name: str) -> tuple[Term, ...]:
    """Find what a column or key means.

    Args:
        name: head of a table or key of a file; case does not count.

    Returns:
        A meaning for each command that prints it; nothing where no command does.
    """
    asked = name.strip().lower()
    found = [
        Term(command, meaning, typical=_typical().get((command, asked), ""))
        for command, meaning in _by_name().get(asked, ())
    ]
    if found:
        return tuple(found)
    numbers = reading.meanings()
    known = {number.lower(): number for number in numbers}
    for pattern, command, sentence in _COMPOSED:
        if (match := pattern.fullmatch(asked)) is not None:
            of = next(filter(None, match.groups()))
            if of in known:
                return (Term(command, sentence.format(known[of]), known[of]),)
    return ()


def names() -> tuple[str, ...]:
    """List all names that have a meaning of their own."""
    return tuple(_by_name())


@cache
def _sections() -> dict[str, dict[str, str]]:
    return _decode((files("specdiag.views") / "terms.toml").read_bytes())


@cache
def _typical() -> dict[tuple[str, str], str]:
    """Map command and name to typical values."""
    return {
        (section.removesuffix(_TYPICAL), name.lower()): values
        for section, said in _sections().items()
        if section.endswith(_TYPICAL)
        for name, values in said.items()
    }


@cache
def _by_name() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for command, meanings in _sections().items():
        for name, meaning in () if command.endswith(_TYPICAL) else meanings.items():
            found.setdefault(name.lower(), []).append((command, meaning))
    return found
