"""Pairs of matrices whose names have nothing in common: one model in Meta's, GGUF's and Hugging Face's names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from specdiag.comparison.sides import Entry

_EXPERT = re.compile(r"expert=([0-9]+)|\bexperts\.([0-9]{1,9})\.")
_ENOUGH = 0.9
"""Share of the matrices in blocks that must find a counterpart: two models of one size share fewer."""
_TRUNK = (None, "text")

Identity = tuple[object, ...]


def match_by_role(a: Mapping[str, Entry], b: Mapping[str, Entry]) -> dict[str, str]:
    """Pair matrices that have the same role, layer and shape, each of them once on both sides.

    Args:
        a: the matrices before that have no counterpart by name.
        b: likewise after.

    Returns:
        Keys after by those before; empty where too few pair up for one model.
    """
    one_piece = any(len({entry.component for entry in side.values()}) < 2 for side in (a, b))
    of_a, of_b = (_identities(side, trunk=one_piece) for side in (a, b))
    pairs = {of_a[identity]: of_b[identity] for identity in of_a if identity in of_b}
    wanted = [sum(entry.layer is not None for entry in _trunk(side, one_piece)) for side in (a, b)]
    found = sum(a[key].layer is not None for key in pairs)
    return pairs if found >= _ENOUGH * max(wanted) or min(wanted) == 0 else {}


def _trunk(side: Mapping[str, Entry], one_piece: bool) -> list[Entry]:
    return [entry for entry in side.values() if entry.role is not None and (not one_piece or entry.component in _TRUNK)]


def _identities(side: Mapping[str, Entry], *, trunk: bool) -> dict[Identity, str]:
    """List keys by what their matrices are, without those that are not alone in it."""
    found: dict[Identity, list[str]] = defaultdict(list)
    for key, entry in side.items():
        if entry.role is None or entry.role == "other" or (trunk and entry.component not in _TRUNK):
            continue
        piece = None if trunk else entry.component
        found[piece, entry.layer, entry.role, entry.cross_attention, _expert(key), _is_shared(key), entry.shape].append(
            key
        )
    return {identity: keys[0] for identity, keys in found.items() if len(keys) == 1}


def _expert(key: str) -> str | None:
    match = _EXPERT.search(key)
    return None if match is None else match[1] or match[2]


def _is_shared(key: str) -> bool:
    return "shared" in key or "shexp" in key


def reordered(pairs: Mapping[str, str], a: Mapping[str, Entry]) -> Collection[str]:
    """List the keys before whose rows may lie in another order after: rotary layouts differ between formats.

    Args:
        pairs: as `match_by_role` gave them.
        a: the matrices before.
    """
    return frozenset(key for key in pairs if a[key].role in ("q", "k"))
