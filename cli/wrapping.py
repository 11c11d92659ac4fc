"""Sentences in lines as wide as the terminal: broken between words, never in a name, and before no percent sign."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.text import Text

_WORD = re.compile(r"\S+(?: %\S*)?")


def wrapped(text: Text, width: int, indent: int = 0) -> Text:
    """Break a sentence into lines.

    Args:
        text: on one line.
        width: characters of a line; a longer word has a line of its own.
        indent: spaces before all lines but the first.
    """
    plain, begin, room = text.plain, 0, width
    breaks: list[int] = []
    for word in _WORD.finditer(plain):
        if word.start() > begin and cell_len(plain[begin : word.end()]) > room:
            begin, room = word.start(), width - indent
            breaks.append(begin)
    lines = text.divide(breaks)
    for line in lines[:-1]:
        line.rstrip()
    return Text("\n" + " " * indent).join(lines)
