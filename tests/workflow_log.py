"""A log as the runner of GitHub Actions reads it: which lines are workflow commands."""

from __future__ import annotations

import re

COMMANDS = "error|warning|notice|add-mask|debug|group|endgroup|echo|stop-commands|save-state|set-output|add-matcher"
_NEW = re.compile(rf"\s*::({COMMANDS})(?: ([^:]*?))?::(.*)", re.DOTALL)
_OLD = re.compile(rf"##\[({COMMANDS})(?: ([^\]]*))?\](.*)", re.DOTALL)


def commands(*streams: str) -> list[tuple[str, dict[str, str], str]]:
    """Name, properties and message of every command in the output of a step.

    A command is a line that begins with `::name`, after blanks, or one that has `##[name` anywhere.
    """
    found = []
    for line in "\n".join(streams).splitlines():
        match = _NEW.match(line) or _OLD.search(line)
        if match is not None:
            pairs = (pair.partition("=") for pair in (match[2] or "").split(",") if pair)
            found.append((match[1], {name: _unescaped(value) for name, _, value in pairs}, _unescaped(match[3])))
    return found


def _unescaped(text: str) -> str:
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        text = text.replace(code, character)
    return text
