"""How conversions lay values anew: transposed, rotary halves and pairs, gains stored as 1 + g.

Hugging Face and litgpt rotate rows i and i + d/2 of a head together, Meta and GGUF's llama rows 2i and 2i + 1
(llama.cpp's convert_hf_to_gguf.py, `permute`; transformers' convert_llama_weights_to_hf.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specdiag.architecture import config as settings
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.spectra.float_types import RawArray
from specdiag.verification.values import Values

AS_STORED = "as stored"
TRANSPOSED = "transposed"
TO_PAIRS = "rotary halves to pairs"
TO_HALVES = "rotary pairs to halves"
PLUS_ONE = "1 + gain"
Scheme = Literal["gguf", "meta", "litgpt", "other"]
Rotary = Literal["halves", "pairs"]

_META = re.compile(r"(^|\.)layers\.\d+\.attention\.wq\.weight$")
_LITGPT = re.compile(r"(^|\.)h\.\d+\.(attn\.(attn|qkv)|norm_1)\.")
_HEAD_SIZES = (64, 128, 96, 80, 112, 256, 32, 48, 40, 72, 160, 192, 16, 8, 4)
_HEAD_DIM = ("head_dim", "attention.key_length", "head_size")


@dataclass(frozen=True, slots=True)
class Form:
    """How a checkpoint names and lays out its tensors.

    Attributes:
        scheme: whose names it has.
        rotary: the order of the rows of q and k, None where names and architecture leave it open.
        architecture: as its config says.
        head_sizes: sizes that its attention heads may have, the likeliest first.
    """

    scheme: Scheme
    rotary: Rotary | None
    architecture: str
    head_sizes: tuple[int, ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint, names: Collection[str]) -> Form:
        """Recognise the form of a checkpoint by its names and its config.

        Args:
            checkpoint: as it was opened.
            names: of its tensors.
        """
        architecture = (checkpoint.architecture or "").lower()
        scheme = _scheme(names)
        pairs = scheme == "meta" or (scheme == "gguf" and architecture == "llama")
        halves = scheme in ("litgpt", "other")
        return cls(scheme, "pairs" if pairs else "halves" if halves else None, architecture, _head_sizes(checkpoint))


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to lay the values of one matrix anew.

    Attributes:
        name: for the record.
        apply: gives the values in the order of the other side.
        is_right: whether the two forms ask for it; where they leave it open, every way is right.
    """

    name: str
    apply: Callable[[Values], Values]
    is_right: bool = True


def layouts(
    role: str | None,
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]],
    forms: tuple[Form, Form],
    *,
    renamed: bool,
    transposes: bool,
) -> Iterator[Layout]:
    """Yield the ways in which a conversion may have laid a piece, the likeliest first.

    Args:
        role: of the matrix; None for a vector.
        shapes: of the piece before and after, (slices, rows, cols).
        forms: of both checkpoints.
        renamed: whether the names differ by more than a prefix.
        transposes: whether matrices that are not square are transposed by this conversion.
    """
    before, after = shapes
    if before != after:
        if (before[0], before[2], before[1]) == after:
            yield Layout(TRANSPOSED, _transpose)
        return
    is_square = before[1] == before[2] and before[1] > 1
    turned = renamed and transposes and is_square
    if turned:
        yield Layout(TRANSPOSED, _transpose)
    elif role in ("q", "k") and renamed and forms[0].scheme != forms[1].scheme:
        yield from _rotary(before[1], forms)
        return
    yield Layout(AS_STORED, lambda values: values, not turned)
    if role is None and any(f.scheme == "gguf" and f.architecture.startswith("gemma") for f in forms):
        sign = 1.0 if forms[1].scheme == "gguf" else -1.0
        yield Layout(PLUS_ONE, lambda values: _shift(values, sign))


def rotary_orders(rows: int, head_sizes: Collection[int]) -> Iterator[tuple[str, Callable[[Values], Values]]]:
    """Yield the two rotary orders for each size that the heads may have.

    Args:
        rows: of q or k.
        head_sizes: the sizes to try.
    """
    for size in head_sizes:
        if size > 1 and size % 2 == 0 and rows % size == 0:
            yield TO_PAIRS, lambda values, size=size: _reorder(values, size, (2, size // 2))
            yield TO_HALVES, lambda values, size=size: _reorder(values, size, (size // 2, 2))


def _rotary(rows: int, forms: tuple[Form, Form]) -> Iterator[Layout]:
    before, after = (form.rotary for form in forms)
    is_open = before is None or after is None
    wanted = None if is_open else AS_STORED if before == after else TO_PAIRS if after == "pairs" else TO_HALVES
    sizes = forms[0].head_sizes or forms[1].head_sizes or _HEAD_SIZES
    ways = [(AS_STORED, lambda values: values), *rotary_orders(rows, sizes)]  # pyright: ignore[reportUnknownLambdaType]
    for name, apply in sorted(ways, key=lambda way: way[0] != wanted):
        yield Layout(name, apply, is_open or name == wanted)


def _transpose(values: Values) -> Values:
    return values.like(np.ascontiguousarray(values.raw.swapaxes(1, 2)))


def _reorder(values: Values, size: int, inner: tuple[int, int]) -> Values:
    n, rows, cols = values.raw.shape
    split: RawArray = values.raw.reshape(n, rows // size, *inner, cols)
    return values.like(np.ascontiguousarray(split.swapaxes(2, 3)).reshape(n, rows, cols))


def _shift(values: Values, by: float) -> Values:
    shifted = values.kind.narrow(values.wide() + by)
    return values.like(shifted.reshape(values.raw.shape))


def _scheme(names: Collection[str]) -> Scheme:
    if any(name.startswith("blk.") for name in names):
        return "gguf"
    if any(_META.search(name) for name in names):
        return "meta"
    return "litgpt" if any(_LITGPT.search(name) for name in names) else "other"


def _head_sizes(checkpoint: Checkpoint) -> tuple[int, ...]:
    chain: list[Mapping[str, object]] = settings.sections(checkpoint.config, None)
    size = settings.number(chain, _HEAD_DIM)
    heads, width = settings.number(chain, settings.HEADS), settings.number(chain, ("hidden_size", "n_embd", "dim"))
    if size is None and heads is not None and width is not None and width % heads == 0:
        size = width // heads
    return () if size is None else (size,)
