r"""Untrusted text, made safe to show. Names in a file may hold escape sequences, newlines and marks that turn text.

Two forms: `printable` is for people, and `reversible` for files that programs read back with `restored`.

>>> printable("red\x1b[31m")
'red\\x1b[31m'
>>> restored(reversible("a\nb\\n")) == "a\nb\\n"
True
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BLANK = frozenset(
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2800, 0x3164, *range(0xFE00, 0xFE10),
              0xFFA0, *range(0xE0100, 0xE01F0)))
)  # fmt: skip
"""Characters that are invisible although Unicode counts them as letters and marks: fillers, joiners, selectors."""
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_LONG = {short: c for c, short in _SHORT.items()} | {r"\\": "\\"}
_ESCAPED = re.compile(r"\\(?:[\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def printable(text: str, keep: str = "") -> str:
    r"""Write out every character that would not show, or that a terminal would obey.

    Control characters, marks of direction, characters without width, line breaks and lone surrogates become `\x1b`,
    `\u202e` or `\n`. Letters of all scripts stay. Text that went through once stays as it is, so `\x1b` in four plain
    characters reads the same as an escape: `reversible` tells them apart.

    Args:
        text: any text.
        keep: characters to leave as they are, such as a newline between lines of one's own.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate({ord(c): _spelt(c) for c in set(text) if c not in keep and not _shows(c)})


def reversible(text: str) -> str:
    r"""Write as `printable` does, on one line and with every backslash doubled: `restored` gives the text back."""
    return printable(text.replace("\\", "\\\\"))


def restored(text: str) -> str:
    """Restore the text that `reversible` was given."""
    return _ESCAPED.sub(lambda match: _LONG.get(match[0]) or chr(int(match[0][2:], 16)), text)


def in_json(data: bytes) -> bytes:
    r"""Escape characters of JSON that do not show as `\u202e`, so that a terminal may print it. Line breaks stay."""
    return _inside(data, _utf16)


def in_toml(data: bytes) -> bytes:
    """Escape characters of TOML that do not show, as `in_json` does. Each string must be on one line."""
    return _inside(data, lambda c: f"\\U{ord(c):08x}")


def _inside(data: bytes, spell: Callable[[str], str]) -> bytes:
    text = data.decode(errors="surrogatepass")
    if text.isascii() and text.replace("\n", "").isprintable():
        return data
    return text.translate({ord(c): spell(c) for c in set(text) if c != "\n" and not _shows(c)}).encode()


def _utf16(c: str) -> str:
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _shows(c: str) -> bool:
    return c.isprintable() and c not in _BLANK


def _spelt(c: str) -> str:
    code = ord(c)
    return _SHORT.get(c) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )
