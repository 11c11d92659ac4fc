"""Mixtures of experts by structure: how many experts a module holds, and which of its matrices chooses among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from specdiag.architecture.members import Member
from specdiag.architecture.rules import Rule
from specdiag.architecture.widths import Width

Shape = tuple[int, ...]

_EXPERTS = re.compile(r"(?P<holder>.*?)\.(?P<list>\w*experts)(?:\.(?P<index>\d{1,5})(?=\.|$)|\.|$)", re.IGNORECASE)


def mixture_sizes(shapes: Mapping[str, Shape]) -> dict[str, frozenset[int]]:
    """Count the experts of each module that holds any: those of each list, or along the first axis of each stack.

    Args:
        shapes: of the tensors that may hold weight matrices.

    Returns:
        The counts by the path of the module; none where they cannot be told.
    """
    lists: dict[tuple[str, str], set[int]] = {}
    for name, shape in shapes.items():
        match = _EXPERTS.match(name)
        if match is not None:
            found = lists.setdefault((match["holder"], match["list"]), set())
            if match["index"] is not None:
                found.add(int(match["index"]) + 1)
            elif len(shape) == 3:
                found.add(shape[0])
    sizes: dict[str, frozenset[int]] = {}
    for (holder, _), found in lists.items():
        sizes[holder] = sizes.get(holder, frozenset()) | {max(found, default=0)}
    return sizes


def routers(members: Sequence[Member], width: Width, mixtures: Mapping[str, frozenset[int]]) -> dict[str, Rule]:
    """Find what reads the residual stream and writes one value for each expert beside it.

    Args:
        members: the matrices of a block.
        width: its residual width.
        mixtures: the numbers of experts by the path of the module that holds them.

    Returns:
        The rule of each matrix whose name decides nothing.
    """
    if width.size is None or not mixtures:
        return {}
    expected = (lambda n: (width.size, n)) if width.transposed else (lambda n: (n, width.size))
    return {
        member.key: Rule("", role="router")
        for member in members
        if member.is_open and any(n > 1 and member.shape == expected(n) for n in mixtures.get(member.holder, ()))
    }
