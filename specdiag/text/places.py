"""The places of many matrices in a model, in a few words.

>>> model = [(f"h.{layer}.{role}", layer, role) for layer in range(3) for role in ("q", "k")] + [("head", None, "head")]
>>> places([name for name, layer, _ in model if layer != 1], model)
'all of layers 0 and 2, head'
>>> places(["h.0.q", "h.1.q", "h.2.q"], model)
'every q'
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from specdiag.text.printable import printable

_NAMED, _RUNS = 3, 8
"""Names, and ranges of layers, at most."""
_NUMBER = re.compile(r"([^0-9]{1,100}?)\.([0-9]{1,5})\.")
"""The name of a stack of layers, and the number of a layer."""
T = TypeVar("T")
Place = tuple[str, int | None, str]
"""Name, layer (None outside of the layers) and role of a matrix."""


def places(chosen: Iterable[str], model: Sequence[Place]) -> str:
    """Name the layers and the roles that some matrices fill.

    Args:
        chosen: names of the matrices.
        model: every matrix, of one stack of layers.

    Returns:
        Empty where they fill no layer and no role, leave too many to name, or are the whole model.
    """
    chosen = set(chosen)
    others = [name for name, _, _ in model if name not in chosen]
    if len(others) <= min(_NAMED, len(model) // 4):
        return f"all but {', '.join(map(printable, others))}" if others else ""
    left = [place for place in model if place[0] in chosen]
    layers = _filled(left, [place for place in model if place[1] is not None], lambda place: place[1])
    whole = set(layers)
    left = [place for place in left if place[1] not in whole]
    roles = _filled(left, [place for place in model if place[1] is not None], lambda place: place[2])
    left = [place for place in left if place[1] is None or place[2] not in roles]
    runs = list(_runs(layers))
    if not (layers or roles) or len(runs) > _RUNS:
        return ""
    parts = [f"all of layer{'s' if len(layers) > 1 else ''} {_joined(runs)}"] if layers else []
    parts += [f"every {_joined(roles)}"] if roles else []
    outside = [place for place in model if place[1] is None]
    if left and left == outside and len(left) > 1:
        return ", ".join([*parts, "all outside of the layers"])
    if len(left) > _NAMED:
        return ""
    return ", ".join([*parts, *(printable(name) for name, _, _ in left)])


def stacks(names: Iterable[str]) -> str:
    """Name the layers and other modules that some tensors lie in, whether or not they fill them.

    >>> stacks(["h.0.q", "h.2.q", "h.0.k", "head"])
    'h 0 and 2, head'

    Args:
        names: of the tensors.

    Returns:
        Empty where they lie in too many places to name.
    """
    layers: dict[str, set[int]] = defaultdict(set)
    outside = list[str]()
    for name in names:
        found = _NUMBER.match(name)
        if found is None:
            outside.append(name)
        else:
            layers[found[1]].add(int(found[2]))
    runs = {stack: list(_runs(numbers)) for stack, numbers in layers.items()}
    if not runs or sum(map(len, runs.values())) > _RUNS or len(outside) > _NAMED:
        return ""
    return ", ".join(
        [*(f"{printable(stack)} {_joined(found)}" for stack, found in runs.items()), *map(printable, outside)]
    )


def _filled(chosen: Sequence[Place], model: Sequence[Place], key: Callable[[Place], T]) -> list[T]:
    """Find the keys of more than one matrix all of whose matrices are chosen."""
    names = {name for name, _, _ in chosen}
    lacking = {key(place) for place in model if place[0] not in names}
    counts = Counter(key(place) for place in model)
    return [k for k, n in counts.items() if n > 1 and k not in lacking]


def _runs(layers: Iterable[int | None]) -> Iterator[str]:
    """Write layers that follow one another as a range."""
    ordered = sorted(layer for layer in layers if layer is not None)
    for _, run in groupby(enumerate(ordered), lambda pair: pair[1] - pair[0]):
        numbers = [layer for _, layer in run]
        yield from (f"{numbers[0]} to {numbers[-1]}",) if len(numbers) > 2 else map(str, numbers)


def _joined(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
