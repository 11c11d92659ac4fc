"""Files of a layout by the numbers in their names, such as those of processes. No two files have the same ones."""

from __future__ import annotations

import re

from specdiag.checkpoint.layouts.pieces import Place
from specdiag.errors import SourceError


def by_numbers(place: Place, pattern: re.Pattern[str], *groups: str) -> dict[tuple[int, ...], str]:
    """Find the files of a kind by their numbers.

    Args:
        place: the folder.
        pattern: of their names.
        groups: of the pattern, each a number; 0 where it takes no part in a match.

    Returns:
        The files by these numbers, in the order of these.

    Raises:
        SourceError: two files have the same numbers.
    """
    found: dict[tuple[int, ...], str] = {}
    for name in place.names:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        numbers = tuple(int(match[group] or 0) for group in groups)
        if numbers in found:
            raise SourceError(
                f"{place.where} holds both '{found[numbers]}' and '{name}', and one process writes one of them: they "
                "are of two checkpoints; delete the older one"
            )
        found[numbers] = name
    return dict(sorted(found.items()))
