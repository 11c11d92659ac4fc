"""Workflow commands of GitHub Actions: annotations, and text of strangers that must not become one."""

from __future__ import annotations

import os
from collections.abc import Mapping

MOST = 10
"""Annotations of one type that a step shows."""


def is_on() -> bool:
    """True in a step of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def inert(text: str) -> str:
    r"""The text without the marks that make a line of the log a command: `::` at its start, and `##[` anywhere.

    Outside of GitHub Actions it stays as it is; inside, `a::b` is shown as `a:\x3ab`.
    """
    if "::" not in text and "##[" not in text:
        return text
    return text.replace("::", r":\x3a").replace("##[", r"##\x5b") if is_on() else text


def annotation(kind: str, message: str, properties: Mapping[str, str | None]) -> str:
    """The command that shows a message beside a file.

    Args:
        kind: error, warning or notice.
        message: one line.
        properties: `file` and `title`; None for one that is not known.
    """
    named = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value is not None)
    return f"::{kind} {named}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
