"""A tensor's name taken apart: its path, what its module is, its block, the piece of the model it lies in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from specdiag.checkpoint.rules import BUILTIN, Context

_CONTAINER = re.compile(r"(?:^|_)(?:layers?|blocks?|groups?|stages?|list|stack|h)$")
_WRAPPERS = ("linear", "base_layer", "default", "lora_a", "lora_b")
_CROSS = re.compile(r"cross_?att|x_?attn|enc_?dec|encoder_att|inter_att|crossattention", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Name:
    """What can be read off one name.

    Attributes:
        path: the module path with every index written `#` and a last `.weight` left out.
        parent: the path that holds the module, indices kept.
        context: `attention`, `mlp`, ... from the innermost segment that says so; `block` for anything else
            that lies in a block, and `` for the rest.
        stack: the path above the first index.
        indices: the indices of the nested blocks, outermost first.
        sequence: index in a sequential container, None for a named module.
        component: `vision`, `text`, ... or None.
        side: `encoder`, `decoder` or None.
        cross: whether the innermost segment that says so names cross-attention.
    """

    path: str
    parent: str
    context: str
    stack: str
    indices: tuple[int, ...]
    sequence: int | None
    component: str | None
    side: str | None
    cross: bool


def parse(name: str) -> Name:
    """Take a full name apart."""
    module = name.split(".")
    if module[-1] in ("weight", "weight_v"):
        module = module[:-1]
    elif module[-1] == "original1":
        module = module[:-3]
    while len(module) > 1 and module[-1].lower() in _WRAPPERS and segment_context(module[-2]) is None:
        module = module[:-1]
    sequence = int(module[-1]) if module[-1:] and module[-1].isdigit() else None
    last = max((i for i, segment in enumerate(module) if not segment.isdigit()), default=0)
    above = module[:last]
    stack, indices = _blocks(above)
    return Name(
        path=".".join("#" if segment.isdigit() else segment for segment in module),
        parent=".".join(above),
        context=_innermost(above) or ("block" if indices else ""),
        stack=stack,
        indices=indices,
        sequence=sequence,
        component=next((found for segment in above if (found := _labelled(segment, "component"))), None),
        side=next((found for segment in above if (found := _labelled(segment, "side"))), None),
        cross=_is_cross(above),
    )


def numbered(name: str) -> str:
    """A full name with every index written `#`."""
    return ".".join("#" if segment.isdigit() else segment for segment in name.split("."))


def children(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """For every module path the names of the modules and parameters right below it."""
    found: dict[str, set[str]] = {}
    for name in names:
        segments = name.split(".")
        for depth, segment in enumerate(segments):
            found.setdefault(".".join(segments[:depth]), set()).add(segment)
    return {parent: frozenset(below) for parent, below in found.items()}


def _innermost(above: list[str]) -> str:
    """The context of a module below the segments `above`."""
    weak = ""
    for i in range(len(above) - 1, -1, -1):
        context = segment_context(above[i])
        if context is not None and context.name in ("attention", "mlp") and _is_container(above, i):
            continue
        if context is not None and not context.weak:
            return context.name
        weak = weak or (context.name if context is not None else "")
    return weak


def _is_container(segments: list[str], i: int) -> bool:
    """Whether segment i is a list of blocks, which does not say what they hold: cross_attn_layers.3.mlp."""
    indexed = i + 1 < len(segments) and segments[i + 1].isdigit()
    return indexed and _CONTAINER.search(snake(segments[i])) is not None


def _blocks(above: list[str]) -> tuple[str, tuple[int, ...]]:
    """The path above the first block index, and the indices of the nested blocks."""
    stack: str | None = None
    indices: list[int] = []
    for i, segment in enumerate(above):
        if not segment.isdigit():
            context = segment_context(segment)
            if context is not None and context.name in ("attention", "mlp") and not _is_container(above, i):
                break
        elif (
            above[i - 2 : i - 1]
            and above[i - 2].isdigit()
            and above[i - 3] == "block"
            and above[i - 1] == "layer"
        ):
            continue  # T5: encoder.block.3.layer.0 is the first sublayer of block 3
        elif i and not (stack is None and _says_no_block(above, i - 1)):
            stack = ".".join(above[:i]) if stack is None else stack
            indices.append(int(segment))
    return stack or "", tuple(indices)


def _says_no_block(above: list[str], i: int) -> bool:
    return not _is_container(above, i) and segment_context(above[i]) is not None


def _is_cross(above: list[str]) -> bool:
    for segment in reversed(above):
        if _CROSS.search(segment):
            return True
        if "self" in snake(segment).split("_") and len(segment) > len("self"):
            return False
    return False


@lru_cache(maxsize=4096)
def segment_context(segment: str) -> Context | None:
    """What a segment says about everything below it: the context of its last word that means something."""
    best: tuple[int, int, Context] | None = None
    for context in BUILTIN.contexts:
        for match in context.pattern.finditer(snake(segment)):
            found = (match.end(), match.end() - match.start(), context)
            best = found if best is None or found[:2] > best[:2] else best
    return None if best is None else best[2]


@lru_cache(maxsize=4096)
def _labelled(segment: str, kind: str) -> str | None:
    labels = BUILTIN.components if kind == "component" else BUILTIN.sides
    return next((label.name for label in labels if label.pattern.fullmatch(snake(segment))), None)


@lru_cache(maxsize=4096)
def snake(segment: str) -> str:
    """`DenseReluDense` as `dense_relu_dense`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", segment).lower()
