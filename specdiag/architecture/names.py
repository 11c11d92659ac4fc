"""Taking a tensor's name apart: its path, its module's context, its block, the piece of the model that it lies in."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from sys import intern

from msgspec import Struct

from specdiag.architecture.rules import BUILTIN, Context

KERNEL = "kernel"
"""The name of a weight in Flax and Keras: stored [in, out], a convolution's [*kernel, in, out]."""

_LONGEST_INDEX = 5  # digits: figures and audits have a place for every layer up to the last
_INDEX = re.compile(rf"(?<![^.])[0-9]{{1,{_LONGEST_INDEX}}}(?![^.])")
_SUBLAYERS = ("attention", "mlp")
_BLOCKS = re.compile(r"(?:^|_)(?:layers?|blocks?|groups?|stages?|list|stack|h)$")
_NUMBERED = re.compile(r"(\w*(?:layer|block|stage)s?|h)_([0-9]{1,5})", re.IGNORECASE)
"""encoder_layer_3, or Flax's encoderblock_3 and layers_3, as others write layers.3."""
_WRAPPERS = ("linear", "convolution", "base_layer", "default", "lora_a", "lora_b")
_GROUPED = re.compile(rf"weight[0-9]{{1,{_LONGEST_INDEX}}}")  # one for each expert
_SECOND = "attn2"
_ASKS = re.compile(r"(?:^|\.)(?:attn2|multihead_attn)(?:\.|$)|(?:^|\.)w(?:eight[0-9]+)?$")
"""Fits the names of which only the modules beside them tell what they are."""
_CROSS = re.compile(
    r"cross_?att|^attn2$|x_?attn|enc_?dec|encoder_att|inter_att|crossattention|^(?:src|context)_attn$", re.IGNORECASE
)


class Name(Struct, frozen=True, gc=False):
    """A name taken apart.

    Attributes:
        path: the module path with every index written `#` and a last `.weight` or `.kernel` left out.
        parent: the path that holds the module, indices kept.
        context: `attention`, `mlp`, ... from the innermost segment that says so; `block` for anything else
            that lies in a block, and `` for the rest.
        stack: the path above the first block index.
        block: the path of the innermost block, `` outside of all.
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
    block: str
    indices: tuple[int, ...]
    sequence: int | None
    component: str | None
    side: str | None
    cross: bool


class Neighbours:
    """The children of each module path of a checkpoint."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._below: dict[str, frozenset[str]] = {}

    def below(self, path: str) -> frozenset[str]:
        """Find the names of the modules and parameters right below a path.

        Args:
            path: of a module; empty for the top.
        """
        if path not in self._below:
            start = f"{path}." if path else ""
            self._below[path] = frozenset(name[len(start) :].partition(".")[0] for name in self._starting(start))
        return self._below[path]

    def has(self, path: str) -> bool:
        """Tell whether there is such a module."""
        return next(self._starting(f"{path}."), None) is not None

    def _starting(self, start: str) -> Iterator[str]:
        for place in range(bisect_left(self._names, start), len(self._names)):
            if not self._names[place].startswith(start):
                return
            yield self._names[place]


def parse(name: str, neighbours: Neighbours) -> Name:
    """Take a full name apart.

    Args:
        name: the name of a tensor.
        neighbours: all names of the same checkpoint.
    """
    form = (None if "#" in name else _shared_form(numbered(name))) or _form(name, neighbours)
    segments, blocks = name.split("."), form.blocks
    return Name(
        path=form.path,
        parent=".".join(segments[: form.parent]),
        context=form.context,
        stack=_above_block(segments, blocks[0]) if blocks else "",
        block=".".join(segments[: blocks[-1] + 1]) if blocks else "",
        indices=tuple([int(segments[i].rpartition("_")[2]) for i in blocks]),
        sequence=None if form.sequence is None else int(segments[form.sequence]),
        component=form.component,
        side=form.side,
        cross=form.cross,
    )


class _Form(Struct, frozen=True, gc=False):
    """Traits of all names that differ in indices alone, as those of one matrix in all layers and experts do.

    Attributes:
        path: as that of a name, and so are context, component, side and cross.
        parent: the number of segments in the path that holds the module.
        blocks: the places of the segments that number the nested blocks, outermost first.
        sequence: the place of the index in a sequential container, None for a named module.
    """

    path: str
    parent: int
    context: str
    blocks: tuple[int, ...]
    sequence: int | None
    component: str | None
    side: str | None
    cross: bool


def _form(name: str, neighbours: Neighbours) -> _Form:
    module = name.split(".")
    if module[-1] in ("weight", "weight_v", KERNEL) or _is_weight(module, neighbours):
        module = module[:-1]
    elif module[-1] == "original1":
        module = module[:-3]
    while _is_wrapped(module):
        module = module[:-1]
    last = next((i for i in reversed(range(len(module))) if not is_index(module[i])), 0)
    above = module[:last]
    blocks = _blocks(above)
    if not blocks and len(module) - last > 3:  # net.0.3.2: block 0 of a list of blocks that have no names inside
        above = module[:-1]
        blocks = _blocks(above)
    labelled = _above_block(module, blocks[0]).split(".") if blocks else above
    return _Form(
        path=numbered(".".join(module)),
        parent=len(above),
        context=_innermost(above) or ("block" if blocks else ""),
        blocks=blocks,
        sequence=len(module) - 1 if module[-1:] and is_index(module[-1]) else None,
        component=_first_label(labelled, "component"),
        side=_first_label(labelled, "side"),
        cross=_is_cross(module[: last + 1], neighbours),
    )


@lru_cache(maxsize=65536)
def _shared_form(pattern: str) -> _Form | None:
    """Give the form of all names that are alike but for their indices; None where a name asks for its neighbours."""
    return None if _ASKS.search(pattern) else _form(pattern.replace("#", "0"), Neighbours(()))


def _above_block(segments: Sequence[str], place: int) -> str:
    """Give the path of the list of blocks: layers of layers.3, encoder_layer of encoder_layer_3."""
    own = segments[place].rpartition("_")[0]
    return ".".join((*segments[:place], own) if own else segments[:place])


def _is_weight(module: list[str], neighbours: Neighbours) -> bool:
    """Tell whether a tensor is a module's weight by another name: Haiku's w, or Transformer Engine's weight0."""
    above, last = ".".join(module[:-1]), module[-1]
    if last == "w":
        return len(module) > 2 and neighbours.below(above) <= {"w", "b"}
    return _GROUPED.fullmatch(last) is not None and "weight0" in neighbours.below(above)


@lru_cache(maxsize=1 << 17)  # every rule asks for it
def numbered(name: str) -> str:
    """Write every index of a full name as `#`."""
    return intern(_INDEX.sub("#", name))


def one_of_each(names: Iterable[str]) -> list[str]:
    """Choose one name of all that differ in indices alone, for what no index decides.

    Args:
        names: of tensors.
    """
    return list({numbered(name): name for name in names}.values())


def is_kernel(name: str) -> bool:
    """Tell whether a tensor lies as Flax and Keras store it, with its outputs along the last axis.

    Args:
        name: its full name.
    """
    return name.rpartition(".")[2] == KERNEL


def is_index(segment: str) -> bool:
    """Tell whether a segment is an index: ASCII digits, at most as many as a list of modules needs."""
    return segment.isdigit() and len(segment) <= _LONGEST_INDEX and segment.isascii()


def _is_wrapped(module: list[str]) -> bool:
    """Tell whether the last segment only wraps the module above it: q_proj.linear, but not mlp.linear."""
    if len(module) < 3 or module[-1].lower() not in _WRAPPERS:
        return False
    is_block = _NUMBERED.fullmatch(module[-2]) or (is_index(module[-2]) and _is_stack(module, len(module) - 3))
    if is_block:
        return False
    wrapped, within = segment_context(module[-2]), segment_context(module[-3])
    if wrapped is not None and wrapped.name == "norm":  # of a norm that adapts
        return False
    return wrapped is None or wrapped.weak or (within is not None and within.name in _SUBLAYERS)


def _innermost(above: list[str]) -> str:
    """Find the context of a module below the segments `above`."""
    weak = ""
    for i in range(len(above) - 1, -1, -1):
        context = segment_context(above[i])
        if _is_stack(above, i):
            break
        if context is not None and not context.weak:
            return context.name
        weak = weak or (context.name if context is not None else "")
    return weak


def _is_stack(segments: list[str], i: int) -> bool:
    """Tell whether segment i lists blocks, so that it does not describe their modules: cross_attn_layers.3.mlp."""
    if not segments[i + 1 : i + 2] or not is_index(segments[i + 1]):
        return False
    context = segment_context(segments[i])
    return context is None or (context.name in _SUBLAYERS and _BLOCKS.search(snake(segments[i])) is not None)


def _blocks(above: list[str]) -> tuple[int, ...]:
    """Find the places of the segments that number the nested blocks."""
    found: list[int] = []
    for i, segment in enumerate(above):
        context = segment_context(segment)
        is_stack = _is_stack(above, i)
        if found and context is not None and context.name in _SUBLAYERS and not is_stack:
            break
        if is_stack and not _is_sublayer(above, i):
            found.append(i + 1)
        elif not found and context is None and _NUMBERED.fullmatch(segment) is not None:
            found.append(i)
    return tuple(found)


def _is_sublayer(above: list[str], i: int) -> bool:
    """Tell whether segment i is T5's list of sublayers: block.3.layer.0 is the first sublayer of block 3."""
    return above[i] == "layer" and above[max(i - 2, 0)] == "block"


def _is_cross(path: list[str], neighbours: Neighbours) -> bool:
    """Tell whether a module belongs to cross-attention, such as torch's `multihead_attn` beside a `self_attn`."""
    for i in range(len(path) - 1, -1, -1):
        if path[i] == _SECOND and _is_second_of_self(path[:i], neighbours):
            return False
        if _CROSS.search(path[i]):
            return True
        if path[i] == "multihead_attn" and neighbours.has(".".join((*path[:i], "self_attn"))):
            return True
        if "self" in snake(path[i]).split("_")[:-1]:
            return False
    return False


def _is_second_of_self(above: list[str], neighbours: Neighbours) -> bool:
    """Tell MMDiT-X, whose attn2 attends to the image as attn does, from blocks with attn1 and a cross-attention."""
    first, joint = (neighbours.has(".".join((*above, name))) for name in ("attn1", "attn"))
    return joint and not first


def _first_label(segments: list[str], kind: str) -> str | None:
    """Find the outermost label. Segments such as cross_attn_image name no tower of images."""
    for segment in segments:
        context = segment_context(segment)
        if (context is None or context.name not in _SUBLAYERS) and (label := _labelled(segment, kind)):
            return label
    return None


def segment_context(segment: str) -> Context | None:
    """Look up the context that a segment gives everything below it, by the last of its words that has one.

    Args:
        segment: of a name, between two dots.
    """
    return None if segment.isdigit() else _context(segment)


@lru_cache(maxsize=4096)
def _context(segment: str) -> Context | None:
    best: tuple[int, int, Context] | None = None
    for context in BUILTIN.contexts:
        for match in context.pattern.finditer(snake(segment)):
            candidate = (match.end(), match.end() - match.start(), context)
            best = candidate if best is None or candidate[:2] > best[:2] else best
    return None if best is None else best[2]


@lru_cache(maxsize=4096)
def _labelled(segment: str, kind: str) -> str | None:
    labels = BUILTIN.components if kind == "component" else BUILTIN.sides
    return next((label.name for label in labels if label.pattern.fullmatch(snake(segment))), None)


@lru_cache(maxsize=4096)
def snake(segment: str) -> str:
    """Write a segment in snake case: `DenseReluDense` becomes `dense_relu_dense`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", segment).lower()
