"""Mixtures of experts by structure: how many a module or a tensor holds, and which matrix chooses among them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from specdiag.architecture.members import Member
from specdiag.architecture.names import numbered
from specdiag.architecture.rules import Rule
from specdiag.architecture.widths import Width

Shape = tuple[int, ...]

_EXPERTS = re.compile(r"(?P<holder>.*?)\.(?P<list>\w*experts)(?:\.(?P<index>\d{1,5})(?=\.|$)|\.|$)", re.IGNORECASE)
_WORD = "experts"
_IN_ONE = re.compile(r"experts\.(mlp\.)?\w+(\.weight)?")
"""The name, below a module with a router, of a parameter that holds one matrix of every expert."""
_ALIKE = re.compile(r"w[123]|v1")
"""Names of the same right below that module, where the first and the last matrices of an MLP have one shape."""
_FIRST = "weight1"
"""Megatron's first matrices of all experts: [d, experts * width] by its shape, [experts, d, width] in memory."""
_LEVELS = 3


def mixture_sizes(shapes: Mapping[str, Shape], rules: Mapping[str, Rule | None]) -> dict[str, frozenset[int]]:
    """Count the experts of each module that holds any: those of each list, or along the first axis of each stack.

    Args:
        shapes: of the tensors that may hold weight matrices.
        rules: the rule of each by its name, None where no rule knows it.

    Returns:
        The counts by the path of the module; none where they cannot be told.
    """
    lists: dict[tuple[str, str], set[int]] = {}
    for name, shape in shapes.items():
        match = _EXPERTS.match(name) if _WORD in name.lower() else None
        if match is not None:
            found = lists.setdefault((match["holder"], match["list"]), set())
            if match["index"] is not None:
                found.add(int(match["index"]) + 1)
            elif len(shape) == 3:
                found.add(shape[0])
        elif len(shape) == 3 and (rule := rules[name]) is not None and rule.role in ("gate", "up", "down"):
            lists.setdefault((name.removesuffix(".weight").rpartition(".")[0], ""), set()).add(shape[0])
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


def merged_experts(shapes: Mapping[str, Shape], rules: Mapping[str, Rule | None]) -> dict[str, Shape]:
    """Find tensors of two axes that hold one matrix of every expert, which the router beside them counts.

    Args:
        shapes: of the tensors that may hold weight matrices.
        rules: the rule of each by its name, None where no rule knows it.

    Returns:
        (experts, rows, cols) of each as it lies in memory.
    """
    sizes: dict[str, Shape] = {}
    for name, shape in shapes.items():
        rule = rules[name]
        if rule is not None and rule.role == "router" and len(shape) == 2 and 1 < min(shape) < max(shape):
            sizes |= dict.fromkeys(_above(name), (min(shape), max(shape)))
    if not sizes:
        return {}
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        holder = next((path for path in _above(name) if path in sizes), None)
        if holder is None or len(shape) != 2:
            continue
        below = name[len(holder) + 1 :]
        is_alike = _ALIKE.fullmatch(below) and shape == shapes.get(f"{holder}.w1") == shapes.get(f"{holder}.w2")
        if is_alike or (_IN_ONE.fullmatch(below) and numbered(below) == below):
            view = _view(name, shape, *sizes[holder])
            if view is not None:
                found[name] = view
    return found


def _above(name: str) -> list[str]:
    """List the paths above a tensor, the innermost first."""
    path = name.removesuffix(".weight").split(".")
    return [".".join(path[:end]) for end in range(len(path) - 1, max(0, len(path) - 1 - _LEVELS), -1)]


def _view(name: str, shape: Shape, n_experts: int, width: int) -> Shape | None:
    """Divide a tensor among its experts: [experts * f, d], [experts * d, f], or Megatron's; None where none fits."""
    rows, cols = shape
    if name.endswith(f".{_FIRST}"):
        return (n_experts, width, cols // n_experts) if rows == width and cols % n_experts == 0 else None
    if (cols == width or rows == n_experts * width) and rows % n_experts == 0:
        return n_experts, rows // n_experts, cols
    return None
