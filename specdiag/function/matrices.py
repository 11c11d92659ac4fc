"""The function of a checkpoint as matrices to measure: heads, down times up, and the stored ones in balance.

They are weight matrices like any other, but computed when they are read, a block at a time. Of a product of two factors
a small core with the same singular values is computed, as of an adapter's update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, takewhile
from math import prod
from typing import Literal

import numpy as np
from msgspec import structs

from specdiag.architecture.split import Slicer, whole
from specdiag.checkpoint.tensors import Checkpoint, Rounding, StoredTensor, WeightMatrix
from specdiag.function import effective
from specdiag.function.arrays import Array, computed
from specdiag.function.blocks import find_blocks
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import Weight
from specdiag.records import AnyRole, Family, ModuleRole
from specdiag.spectra.arithmetic import COARSE
from specdiag.spectra.float_types import FLOAT_TYPES

Compute = Callable[[str], Array]
"""Computes a matrix on a device."""
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


def function_of(checkpoint: Checkpoint, device: str = "cpu") -> Function:
    """Make the matrices of a checkpoint's function. No values are read.

    Args:
        checkpoint: an open one.
        device: on which they are computed when they are read, in float64; MPS has none, and leaves it to the CPU.
    """
    blocks, notes = find_blocks(checkpoint)
    rows: list[WeightMatrix] = []
    balanced: dict[str, WeightMatrix] = {}
    for block in blocks:
        for attention in (block.attention, block.cross):
            if attention is not None:
                rows += _heads(block, attention, device)
                balanced |= _balanced_heads(block, attention, device)
        for mlp in block.mlps:
            own = list(_mlp(block, mlp, device))
            rows += own
            balanced |= _balanced_mlp(block, mlp, own, device)
        if block.router is not None:
            weight, norm = block.router
            compute = partial(effective.router, weight, norm)
            rows.append(_row(block, "router", "other", [weight], weight.shape, compute, device))
            balanced[weight.matrix.key] = rows[-1]
    return Function(tuple(rows), balanced, tuple(notes))


def _heads(block: Block, attention: Attention, device: str) -> Iterator[WeightMatrix]:
    """QK and OV of each head, the cores of all heads in one tensor."""
    width = attention.q.shape[1]
    n = min(width, attention.head_dim)
    name = _common_path([attention.q, attention.k, attention.v, attention.o])
    products: tuple[tuple[AnyRole, list[Weight], Compute], ...] = (
        ("qk", [attention.q, attention.k], partial(effective.qk, block, attention)),
        ("ov", [attention.v, attention.o], partial(effective.ov, block, attention)),
    )
    for role, weights, compute in products:
        triangles = sum(prod(weight.shape) for weight in weights) * n * _DECOMPOSED
        tensor = _tensor(name, (attention.heads, n, n), weights, compute, device, products=triangles)
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


def _mlp(block: Block, mlp: Mlp, device: str) -> Iterator[WeightMatrix]:
    """DU and the gate where neurons can be rescaled; else up and down, which have no freedom but their order."""
    m, width = mlp.up.shape
    expert = None if mlp.expert is None else f"expert={mlp.expert}"
    held = [weight for weight in (mlp.gate, mlp.up, mlp.down) if weight is not None]

    def row(role: AnyRole, shape: tuple[int, int], compute: Compute, products: float = 0) -> WeightMatrix:
        found = _row(block, role, "mlp", held, shape, compute, device, products)
        is_apart = expert is None or mlp.up.matrix.module.part is None
        part = role if is_apart else f"{expert}.{role}"
        return structs.replace(found, module=structs.replace(found.module, part=part))

    if mlp.power is None:
        yield row("up", (m, width + _has_bias(mlp.up, mlp)), partial(effective.read, mlp.up, mlp.norm))
        yield row("down", (width, m), partial(effective.write, block, mlp))
        return
    if mlp.gate is not None:
        yield row("gate", (m, width + _has_bias(mlp.gate, mlp)), partial(effective.read, mlp.gate, mlp.norm))
    n = min(m, width)
    product = row("du", (n, n), partial(effective.du, block, mlp), float(m) * width * n)
    ratios = (width / m, 1.0) if m >= width else (m / width, m / width)
    yield structs.replace(product, shape=(width, width), rank=n, ratios=ratios)


def _has_bias(weight: Weight, mlp: Mlp) -> bool:
    return weight.bias is not None or (mlp.norm is not None and mlp.norm.bias is not None)


def _row(
    block: Block,
    role: AnyRole,
    family: Family,
    held: list[Weight],
    shape: tuple[int, int],
    compute: Compute,
    device: str,
    products: float = 0.0,
) -> WeightMatrix:
    """Make a matrix with a tensor of its own, under the path that its weights share."""
    name = _common_path(held)
    return WeightMatrix(
        name=name,
        module=_module(block, role, family, role),
        shape=shape,
        n_slices=1,
        tensor=_tensor(name, shape, held, compute, device, is_product=role == "du", products=products),
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


def _balanced_heads(block: Block, attention: Attention, device: str) -> dict[str, WeightMatrix]:
    """Each stored matrix of attention in balance, by the key of the stored one."""
    if attention.head_dim > attention.q.shape[1]:
        return {}
    halves = (prod(attention.v.shape) + prod(attention.o.shape)) * attention.head_dim * 2.0 * _DECOMPOSED
    scoring, moving = (partial(f, block, attention) for f in (effective.balanced_scoring, effective.balanced_moving))
    of_scoring = _together([attention.q, attention.k], scoring, device)
    return of_scoring | _together([attention.v, attention.o], moving, device, halves)


def _balanced_mlp(block: Block, mlp: Mlp, rows: Sequence[WeightMatrix], device: str) -> dict[str, WeightMatrix]:
    """Each stored matrix of an MLP in balance; a row of the function where that is the same."""
    found: dict[str, WeightMatrix] = {}
    by_role = {row.module.role: row for row in rows}
    same = {"gate": mlp.gate is not None and not _has_bias(mlp.gate, mlp), "down": mlp.power is None and not mlp.out}
    same["up"] = mlp.power is None and not _has_bias(mlp.up, mlp)
    left: list[Weight] = []
    for role, weight in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
        if weight is not None and same[role]:
            found[weight.matrix.key] = by_role[role]
        elif weight is not None:
            left.append(weight)
    roles = tuple(role for role in ("gate", "up", "down") if not same[role])
    return found | (_together(left, partial(effective.balanced_mlp, block, mlp, roles), device) if left else {})


def _together(
    weights: Sequence[Weight], compute: Compute, device: str, products: float = 0.0
) -> dict[str, WeightMatrix]:
    """Cut matrices that are computed one after the other."""
    found: dict[str, WeightMatrix] = {}
    sizes = [prod(weight.shape) for weight in weights]
    first = weights[0].matrix
    eps = COARSE if first.dequantized else FLOAT_TYPES[first.tensor.values_dtype].eps
    values = "F32" if eps >= COARSE else "F64"
    tensor = _tensor(first.name, (sum(sizes),), weights, compute, device, products=products, values=values)
    for weight, size, end in zip(weights, sizes, accumulate(sizes), strict=True):
        stored = weight.matrix
        part = "balanced" if stored.module.part is None else f"{stored.module.part}.balanced"
        slicer = Slicer((1, *weight.shape), select=(slice(end - size, end),))
        module = structs.replace(stored.module, part=part)
        found[stored.key] = structs.replace(
            stored, module=module, shape=weight.shape, tensor=tensor, slicer=slicer, balanced_eps=eps
        )
    return found


def _tensor(
    name: str,
    shape: tuple[int, ...],
    weights: Sequence[Weight],
    compute: Compute,
    device: str,
    *,
    is_product: bool = True,
    products: float = 0.0,
    values: Literal["F32", "F64"] = "F64",
) -> StoredTensor:
    """Make a tensor that is computed from others when it is read; not finite where they are not.

    A matrix that is no product is held to the noise of its storage type, as the stored matrix is.
    """

    def read(_: int | None) -> Array:
        with np.errstate(all="ignore"):
            try:
                found = computed(compute, device, name).reshape(shape).astype(stored_as, copy=False)
            except np.linalg.LinAlgError:
                return np.full(shape, np.nan, stored_as)
        return found if np.isfinite(found).all() else np.full(shape, np.nan, stored_as)

    stored_as = FLOAT_TYPES[values].storage
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
        values=values,
        rounding=Rounding(relative=max(_ARITHMETIC, by_type), is_computed=not is_dequantised),
        scratch=_COPIES * 8 * sum(prod(weight.shape) for weight in weights),
        computed_from=tuple((weight.matrix.tensor, weight.matrix.slicer.index) for weight in weights),
        products=products,
    )
