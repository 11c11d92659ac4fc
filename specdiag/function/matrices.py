"""The function of a checkpoint as matrices to measure: heads, down times up, and the stored ones in balance.

They are weight matrices like any other, but computed when they are read, a block at a time. Of a product of two factors
a small core with the same singular values is computed, as of an adapter's update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, takewhile
from math import prod

import numpy as np
from msgspec import structs

from specdiag.architecture.split import Slicer, whole
from specdiag.checkpoint.tensors import Checkpoint, Rounding, StoredTensor, WeightMatrix
from specdiag.function import effective
from specdiag.function.blocks import find_blocks
from specdiag.function.folding import Array
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import Weight
from specdiag.records import AnyRole, Family, ModuleRole
from specdiag.spectra.float_types import FLOAT_TYPES

_COPIES = 3
"""Copies of the weights in float64 that are held at once: read, folded, and balanced or decomposed."""
_DECOMPOSED = 6.0
"""Time of a decomposition into Q and R over that of a product as large: R alone, in LAPACK on one core."""
_ARITHMETIC = 2.0**-32
"""Relative error that is allowed to folding, of which a mean much larger than the rest may leave so much."""


@dataclass(frozen=True, slots=True)
class Function:
    """The function of a checkpoint.

    Attributes:
        rows: QK and OV of each head, and the effective matrices of MLPs and routers.
        balanced: the balanced form of each stored matrix that has one, by the key of that.
        notes: sentences on what is left out.
    """

    rows: tuple[WeightMatrix, ...]
    balanced: Mapping[str, WeightMatrix]
    notes: tuple[str, ...]


def function_of(checkpoint: Checkpoint) -> Function:
    """Make the matrices of a checkpoint's function. No values are read.

    Args:
        checkpoint: an open one.
    """
    blocks, notes = find_blocks(checkpoint)
    rows = [row for block in blocks for row in _rows(block)]
    balanced = {key: matrix for block in blocks for key, matrix in _balanced(block)}
    return Function(tuple(rows), balanced, tuple(notes))


def _rows(block: Block) -> Iterator[WeightMatrix]:
    for attention in (block.attention, block.cross):
        if attention is not None:
            yield from _heads(block, attention)
    for mlp in block.mlps:
        yield from _mlp(block, mlp)
    if block.router is not None:
        weight, norm = block.router
        compute = partial(effective.router, weight, norm)
        yield _row(block, "router", "other", [weight], weight.shape, compute)


def _heads(block: Block, attention: Attention) -> Iterator[WeightMatrix]:
    """QK and OV of each head, the cores of all heads in one tensor."""
    width = attention.q.shape[1]
    n = min(width, attention.head_dim)
    name = _common_path([attention.q, attention.k, attention.v, attention.o])
    products: tuple[tuple[AnyRole, list[Weight], Callable[[], Array]], ...] = (
        ("qk", [attention.q, attention.k], partial(effective.qk, block, attention)),
        ("ov", [attention.v, attention.o], partial(effective.ov, block, attention)),
    )
    for role, weights, compute in products:
        triangles = sum(prod(weight.shape) for weight in weights) * n * _DECOMPOSED
        tensor = _tensor(name, (attention.heads, n, n), weights, compute, products=triangles)
        for head in range(attention.heads):
            yield WeightMatrix(
                name=name,
                module=structs.replace(
                    _module(block, role, "attention", f"head={head}.{role}", head),
                    cross_attention=attention is block.cross,
                ),
                shape=(width, width),
                n_slices=1,
                tensor=tensor,
                slicer=Slicer((1, n, n), select=(head,)),
                rank=n,
                ratios=(n / width, n / width),
            )


def _mlp(block: Block, mlp: Mlp) -> Iterator[WeightMatrix]:
    """DU and the gate where neurons can be rescaled; else up and down, which have no freedom but their order."""
    m, width = mlp.up.shape
    expert = None if mlp.expert is None else f"expert={mlp.expert}"
    held = [weight for weight in (mlp.gate, mlp.up, mlp.down) if weight is not None]

    def row(role: AnyRole, shape: tuple[int, int], compute: Callable[[], Array], products: float = 0) -> WeightMatrix:
        found = _row(block, role, "mlp", held, shape, compute, products)
        is_apart = expert is None or mlp.up.matrix.module.part is None
        part = role if is_apart else f"{expert}.{role}"
        return replace(found, module=structs.replace(found.module, part=part))

    if mlp.power is None:
        yield row("up", (m, width + _has_bias(mlp.up, mlp)), partial(effective.read, mlp.up, mlp.norm))
        yield row("down", (width, m), partial(effective.write, block, mlp))
        return
    if mlp.gate is not None:
        yield row("gate", (m, width + _has_bias(mlp.gate, mlp)), partial(effective.read, mlp.gate, mlp.norm))
    n = min(m, width)
    product = row("du", (n, n), partial(effective.du, block, mlp), float(m) * width * n)
    ratios = (width / m, 1.0) if m >= width else (m / width, m / width)
    yield replace(product, shape=(width, width), rank=n, ratios=ratios)


def _has_bias(weight: Weight, mlp: Mlp) -> bool:
    return weight.bias is not None or (mlp.norm is not None and mlp.norm.bias is not None)


def _row(
    block: Block,
    role: AnyRole,
    family: Family,
    held: list[Weight],
    shape: tuple[int, int],
    compute: Callable[[], Array],
    products: float = 0.0,
) -> WeightMatrix:
    """Make a matrix with a tensor of its own, under the path that its weights share."""
    name = _common_path(held)
    return WeightMatrix(
        name=name,
        module=_module(block, role, family, role),
        shape=shape,
        n_slices=1,
        tensor=_tensor(name, shape, held, compute, is_product=role == "du", products=products),
        slicer=whole(shape),
    )


def _module(block: Block, role: AnyRole, family: Family, part: str, head: int | None = None) -> ModuleRole:
    return ModuleRole(
        role=role,
        family=family,
        layer=block.layer,
        component=block.component,
        part=part,
        form="function",
        head=head,
    )


def _common_path(weights: Sequence[Weight]) -> str:
    """The longest dotted path that the names of weights share."""
    names = [weight.matrix.name.split(".") for weight in weights]
    shared = takewhile(lambda segments: len(set(segments)) == 1, zip(*names, strict=False))
    return ".".join(segments[0] for segments in shared)


def _balanced(block: Block) -> Iterator[tuple[str, WeightMatrix]]:
    """Each stored matrix of a block in balance, beside the key of the stored one."""
    for attention in (block.attention, block.cross):
        if attention is not None and attention.head_dim <= attention.q.shape[1]:
            halves = (prod(attention.v.shape) + prod(attention.o.shape)) * attention.head_dim * 2.0 * _DECOMPOSED
            yield from _together([attention.q, attention.k], partial(effective.balanced_scoring, block, attention))
            yield from _together(
                [attention.v, attention.o], partial(effective.balanced_moving, block, attention), halves
            )
    for mlp in block.mlps:
        held = [weight for weight in (mlp.gate, mlp.up, mlp.down) if weight is not None]
        yield from _together(held, partial(effective.balanced_mlp, block, mlp))
    if block.router is not None:
        yield from _together([block.router[0]], partial(effective.router, *block.router))


def _together(
    weights: Sequence[Weight], compute: Callable[[], Array], products: float = 0.0
) -> Iterator[tuple[str, WeightMatrix]]:
    """Cut matrices that are computed one above the other, those that write to the stream transposed."""
    width = weights[0].shape[1]
    sizes = [prod(weight.shape) // width for weight in weights]
    tensor = _tensor(weights[0].matrix.name, (sum(sizes), width), weights, compute, products=products)
    for weight, end in zip(weights, accumulate(sizes), strict=True):
        size = prod(weight.shape) // width
        stored = weight.matrix
        part = "balanced" if stored.module.part is None else f"{stored.module.part}.balanced"
        slicer = Slicer((1, size, width), select=(slice(end - size, end),))
        module = structs.replace(stored.module, part=part)
        yield stored.key, replace(stored, module=module, shape=(size, width), tensor=tensor, slicer=slicer)


def _tensor(
    name: str,
    shape: tuple[int, ...],
    weights: Sequence[Weight],
    compute: Callable[[], Array],
    *,
    is_product: bool = True,
    products: float = 0.0,
) -> StoredTensor:
    """Make a tensor that is computed from others when it is read; not finite where they are not.

    A matrix that is no product is held to the noise of its storage type, as the stored matrix is.
    """

    def read(_: int | None) -> Array:
        with np.errstate(all="ignore"):
            try:
                values = compute().reshape(shape)
            except np.linalg.LinAlgError:
                return np.full(shape, np.nan)
        return values if np.isfinite(values).all() else np.full(shape, np.nan)

    first = weights[0].matrix.tensor
    is_dequantised = first.rounding is not None
    by_type = 0.0 if is_product or is_dequantised else 2 * FLOAT_TYPES[first.values_dtype].eps
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=first.dtype,
        nbytes=sum(weight.matrix.stored_bytes for weight in weights),
        file=first.file,
        read=read,
        values="F64",
        rounding=Rounding(relative=max(_ARITHMETIC, by_type), is_computed=not is_dequantised),
        scratch=_COPIES * 8 * sum(prod(weight.shape) for weight in weights),
        products=products,
    )
