"""Names that fit into a narrow table: without the parts that they share, and none like another.

>>> shorten([f"encoder.layer.{i}.attention.self.{m}.weight" for i in (1, 2) for m in ("key", "value")], 24)
['…1.attention.self.key…', '…1.attention.self.value…', '…2.attention.self.key…', '…2.attention.self.value…']
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

from rich.cells import cell_len

_PART = re.compile(r"(?=[./\[])")
_GAP = "…"
_SUFFIXES = ("weight", "bias")
_MOST = 32
"""Kinds of parts that are tried: the names of a model have a dozen."""


def shorten(names: Sequence[str], width: int, gap: str = _GAP) -> list[str]:
    """Leave out of wide names the kinds of parts that most names share, as few as they need. Numbers stay.

    Args:
        names: of one column.
        width: characters that each may take.
        gap: stands for what is left out.

    Returns:
        Names in the same order, different where they were. What cannot be made to fit is wider.
    """
    parts = [_PART.split(name) for name in names]
    kinds = [{_bare(part) for part in name} for name in parts]
    counts = Counter(kind for held in kinds for kind in held if kind and not kind.isdigit())
    last = {_last(name) for name in parts}
    shared = [kind for kind, _ in counts.most_common(_MOST) if kind not in last]
    edge = {kind: min(_to_the_edge(name, kind) for name in parts) for kind in shared}
    gone: set[str] = set()
    short = list(names)
    for kind in sorted(shared, key=lambda kind: (-counts[kind], min(edge[kind], 2), -len(kind))):
        if all(cell_len(name) <= width for name, held in zip(short, kinds, strict=True) if kind in held):
            continue
        tried = [_without(name, gone | {kind}, gap) for name in parts]
        if _as_many(tried, names):
            gone.add(kind)
            short = tried
    cut = [_cut(name, width, gap) for name in short]
    cut = cut if _as_many(cut, names) else short
    whole = [name if cell_len(name) <= width else less for name, less in zip(names, cut, strict=True)]
    return whole if _as_many(whole, names) else cut


def _last(parts: Sequence[str]) -> str:
    """Return the last part that says what a tensor is: the role of a matrix stays in its name."""
    told = [bare for part in parts if (bare := _bare(part)) and bare not in _SUFFIXES]
    return told[-1] if told else ""


def _to_the_edge(parts: Sequence[str], kind: str) -> int:
    """Parts between this one and an end of the name, where a name says least."""
    places = [i for i, part in enumerate(parts) if _bare(part) == kind]
    return min((min(i, len(parts) - 1 - i) for i in places), default=len(parts))


def _bare(part: str) -> str:
    return part.strip("./[]")


def _without(parts: Sequence[str], gone: Collection[str], gap: str) -> str:
    kept = [gap if _bare(part) in gone else part for part in parts]
    text = "".join(part for i, part in enumerate(kept) if part != gap or i == 0 or kept[i - 1] != gap)
    return text.replace(f"{gap}.", gap)


def _cut(name: str, width: int, gap: str) -> str:
    room = width - len(gap)
    if len(name) <= width or room < len(gap):
        return name
    return f"{name[: room // 3]}{gap}{name[len(name) - room + room // 3 :]}"


def _as_many(short: Sequence[str], names: Sequence[str]) -> bool:
    return len(set(short)) == len(set(names))
