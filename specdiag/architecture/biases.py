"""Biases of two axes or more: one for each head or expert, stored as a Parameter beside its weight."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from functools import lru_cache

Shape = tuple[int, ...]

BIAS = "bias"
"""As a report lists it, whether the name or the weight beside it tells."""

_NAME = re.compile(r"(?P<word>b|bias)(?P<rest>_\w+|\d*|[A-Z]\w*)")
_WEIGHTS = {"b": ("w", "W"), "bias": ("weight", "kernel", "w", "W")}


def find_biases(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Find the tensors of two axes or more that are biases by the weight beside them.

    `b_Q` [heads, head_dim] lies beside `W_Q` [heads, width, head_dim] and has its axes but for the one that is summed
    over. A factor of an update that is called so, [width, rank], has as many axes as the weight.

    Args:
        shapes: the shape of every tensor by its name.

    Returns:
        Why each is no weight matrix.
    """
    return {name: BIAS for name, shape in shapes.items() if len(shape) > 1 and _is_bias(name, shape, shapes)}


def bias_beside(name: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """Find the shape of the bias of a weight: of `fc1.bias` for `fc1.weight`, of `b_in` for `W_in`.

    Args:
        name: of the weight.
        shapes: the shape of every tensor by its name.

    Returns:
        None where there is none.
    """
    bias = bias_name(name, shapes)
    return None if bias is None else shapes[bias]


def bias_name(name: str, names: Container[str]) -> str | None:
    """Find the name of the bias of a weight; None where there is none.

    Args:
        name: of the weight.
        names: of every tensor.
    """
    path, dot, leaf = name.rpartition(".")
    spelled = (f"{path}{dot}{bias}" for bias in _biases_of(leaf))
    return next((bias for bias in spelled if bias in names), None)


@lru_cache(maxsize=4096)
def _biases_of(leaf: str) -> tuple[str, ...]:
    """List what the bias of a weight may be called, by the last segment of the weight's name."""
    return tuple(
        bias + leaf[len(weight) :]
        for bias, weights in _WEIGHTS.items()
        for weight in weights
        if leaf.startswith(weight)
    )


def _is_bias(name: str, shape: Shape, shapes: Mapping[str, Shape]) -> bool:
    path, dot, leaf = name.rpartition(".")
    match = _NAME.fullmatch(leaf) if leaf.startswith("b") else None
    if match is None:
        return False
    beside = (shapes.get(f"{path}{dot}{word}{match['rest']}") for word in _WEIGHTS[match["word"]])
    return any(weight is not None and _lacks_one_axis(shape, weight) for weight in beside)


def _lacks_one_axis(bias: Shape, weight: Shape) -> bool:
    return any(weight[:axis] + weight[axis + 1 :] == bias for axis in range(len(weight)))
