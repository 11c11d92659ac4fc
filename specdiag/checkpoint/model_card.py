"""The front matter of a README.md beside a model: the models that it was made from, and its licence."""

from __future__ import annotations

import re
from typing import NamedTuple

from specdiag.checkpoint.folder import reopened
from specdiag.checkpoint.tensors import Checkpoint

_NAME = "README.md"
_FRONT = re.compile(r"\A---\s*\n(.{0,100000}?)\n---", re.DOTALL)
_ITEM = re.compile(r"^\s*-\s+(\S.*)$")


class Card(NamedTuple):
    """The front matter of a model card.

    Attributes:
        base: the models that it was made from.
        licence: its name; None where it is not said.
    """

    base: tuple[str, ...] = ()
    licence: str | None = None


def read_card(checkpoint: Checkpoint) -> Card:
    """Read the model card beside a checkpoint: of the hub's repository, or of its folder.

    Args:
        checkpoint: as it was opened.

    Returns:
        The facts that it states; nothing where there is no card.

    Raises:
        SourceError: it cannot be read.
    """
    folder = reopened(checkpoint)
    if folder is None or not folder.has(_NAME):
        return Card()
    folder.files.fetch([_NAME])
    front = _FRONT.match(folder.files.read(_NAME, folder.label(_NAME)).decode(errors="replace"))
    if front is None:
        return Card()
    lines = front[1].splitlines()
    return Card(tuple(_values(lines, "base_model")), next(iter(_values(lines, "license")), None))


def _values(lines: list[str], key: str) -> list[str]:
    """Collect the value, or the items of the list, under a key at the top."""
    for i, line in enumerate(lines):
        if line.startswith(f"{key}:"):
            if own := line.partition(":")[2].strip():
                return [word for part in own.strip("[]").split(",") if (word := _plain(part))]
            items: list[str] = []
            for following in lines[i + 1 :]:
                if (item := _ITEM.match(following)) is None:
                    break
                items.append(_plain(item[1]))
            return items
    return []


def _plain(text: str) -> str:
    return text.strip().strip("'\"").strip()[:200]
