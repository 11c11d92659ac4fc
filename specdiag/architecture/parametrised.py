"""Weights that a network computes from other Parameters: which tensors of a checkpoint belong together, by their names.

torch writes them in two ways: `weight_g`, `weight_v` (torch.nn.utils.weight_norm) and
`parametrizations.weight.original0` (torch.nn.utils.parametrizations). None of the parts is a weight by itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Shape = tuple[int, ...]
Kind = Literal["weight norm", "spectral norm", "pruning"]

_NEW = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<leaf>\w+)\.(?P<part>original[01]?|\d+\..+)")
_ORIGINAL = re.compile(r"(?:\.original|_orig)$")
_REASON = "part of a parametrised weight"


@dataclass(frozen=True, slots=True)
class Parametrised:
    """A weight that is computed.

    Attributes:
        name: of the weight, as the network uses it.
        kind: how it is computed; None where the checkpoint does not tell, as where it holds the weight too, or parts
            of two kinds.
        parts: names of the stored tensors; the first has the shape of the weight.
    """

    name: str
    kind: Kind | None
    parts: tuple[str, ...]


def find_parametrised(shapes: Mapping[str, Shape]) -> list[Parametrised]:
    """Find the weights of a checkpoint that are computed from others.

    Args:
        shapes: the shape of every tensor by its name.
    """
    found = [*_in_new_style(shapes), *_in_old_style(shapes)]
    times = Counter(weight.name for weight in found)
    return [
        replace(weight, kind=None) if weight.name in shapes or times[weight.name] > 1 else weight for weight in found
    ]


def parts_with_reasons(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Say of each part of a parametrised weight why it is no weight matrix.

    Args:
        shapes: the shape of every tensor by its name.
    """
    return {part: _REASON for weight in find_parametrised(shapes) for part in weight.parts}


def parametrised_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes of computed weights by their names, as the network uses them: they tell what lies beside them.

    A parametrisation that the file does not tell is taken to keep the shape of the tensor that it starts from.

    Args:
        shapes: the shape of every tensor by its name.
    """
    found = ((weight, _base(weight)) for weight in find_parametrised(shapes))
    return {weight.name: shapes[base] for weight, base in found if base is not None and weight.name not in shapes}


def _base(weight: Parametrised) -> str | None:
    """Choose the part that has the shape of the weight."""
    if weight.kind is not None:
        return weight.parts[0]
    return next((part for part in weight.parts if _ORIGINAL.search(part)), None)


def _in_old_style(shapes: Mapping[str, Shape]) -> Iterator[Parametrised]:
    for name, shape in shapes.items():
        if not name.endswith(("_v", "_orig")):
            continue
        stem, _, part = name.rpartition("_")
        if shapes.get(stem, shape) != shape:
            continue
        if part == "v" and _is_normed(stem, shapes.get(f"{stem}_g"), shape):
            yield Parametrised(stem, "weight norm", (name, f"{stem}_g"))
        if part == "orig":
            vectors = (f"{stem}_u", f"{stem}_v")
            if shapes.get(f"{stem}_mask") == shape:
                yield Parametrised(stem, "pruning", (name, f"{stem}_mask"))
            elif all(vector in shapes for vector in vectors):
                kind = "spectral norm" if _axis(shape, *(shapes[vector] for vector in vectors)) is not None else None
                yield Parametrised(stem, kind, (name, *vectors))


def _is_normed(stem: str, lengths: Shape | None, directions: Shape) -> bool:
    """Tell weight norm from Parameters that are called v and g, such as those of a gated attention.

    Where the name does not say that it is a weight, g must be shorter than v: one of its size normalises nothing.
    """
    is_weight = "weight" in stem.rpartition(".")[2]
    is_shorter = lengths is not None and math.prod(lengths) < math.prod(directions)
    return (is_weight or is_shorter) and _scales_directions(lengths, directions)


def _in_new_style(shapes: Mapping[str, Shape]) -> Iterator[Parametrised]:
    found: dict[str, dict[str, str]] = {}
    for name in shapes:
        match = _NEW.fullmatch(name) if "parametrizations." in name else None
        if match is not None:
            found.setdefault(match["module"] + match["leaf"], {})[match["part"]] = name
    for weight, parts in found.items():
        kind, order = _new_kind(parts, shapes)
        rest = [name for name in parts.values() if name not in order]
        yield Parametrised(weight, kind, (*order, *rest))


def _new_kind(parts: Mapping[str, str], shapes: Mapping[str, Shape]) -> tuple[Kind | None, tuple[str, ...]]:
    match sorted(parts):
        case ["original0", "original1"]:
            direction, length = parts["original1"], parts["original0"]
            if _scales_directions(shapes[length], shapes[direction]):
                return "weight norm", (direction, length)
        case ["0._u", "0._v", "original"]:
            order = (parts["original"], parts["0._u"], parts["0._v"])
            if _axis(*(shapes[name] for name in order)) is not None:
                return "spectral norm", order
        case _:
            pass
    return None, ()


def _scales_directions(lengths: Shape | None, directions: Shape) -> bool:
    """Tell whether g has one length for each direction of v: one of its axes is that of v, and the others are 1."""
    if lengths is None or len(directions) < 2:
        return False
    if math.prod(lengths) == 1:
        return True
    axes = [axis for axis, size in enumerate(lengths) if size != 1]
    return len(lengths) == len(directions) and len(axes) == 1 and lengths[axes[0]] == directions[axes[0]]


def spectral_axis(weight: Shape, u: Shape, v: Shape) -> int:
    """Find the axis of a weight that the left singular vector belongs to.

    Args:
        weight: shape of the weight.
        u: shape of the left vector, one value for each index of that axis.
        v: shape of the right vector, one value for each of the others together.

    Raises:
        ValueError: the vectors are those of another weight.
    """
    axis = _axis(weight, u, v)
    if axis is None:
        raise ValueError(f"vectors of shapes {u} and {v} do not belong to a weight of shape {weight}")
    return axis


def _axis(weight: Shape, u: Shape, v: Shape) -> int | None:
    if len(weight) < 2 or len(u) != 1 or len(v) != 1:
        return None
    fitting = (axis for axis, size in enumerate(weight) if (u[0], v[0]) == (size, math.prod(weight) // max(size, 1)))
    return next(fitting, None)
