"""The attention of a block by what it can put out: bounds of its matrices and scores, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specdiag.architecture.wiring import UnknownWiring
from specdiag.function.alarm_records import OutputRange, ScoreBound
from specdiag.function.algebra import Algebra
from specdiag.function.arrays import Array, on_host, permuted, repeated
from specdiag.function.attention import HeadNorm, Moving, Scoring, scoring
from specdiag.function.balance import balance_moving
from specdiag.function.bounds import least_of_reader, moved_bounds, reader_bounds
from specdiag.function.directions import Writer
from specdiag.function.folding import Reader, fold_reader, fold_writer
from specdiag.function.parts import Attention, Block
from specdiag.function.score_scale import OFFSETS, Chain, frequencies, score_scale
from specdiag.function.scores import Rotation, bounds_at, bounds_everywhere, bounds_of_norms
from specdiag.function.stored import StoredNorm, Weight, finite

LARGEST = {"F16": 65504.0, "BF16": 3.3895313892515355e38, "F32": 3.4028234663852886e38}
"""Largest finite value of the types in which outputs are computed."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of all blocks of a piece of a model.

    Attributes:
        chain: sections of config.json.
        dtype: type in which outputs are computed, where it is known.
        algebra: that computes.
        has_own_frequencies: whether the file holds rotary frequencies that replace those of the config.
    """

    chain: Chain
    dtype: str | None
    algebra: Algebra
    has_own_frequencies: bool = False


@dataclass(slots=True)
class Outputs:
    """Figures of one part of a block."""

    ranges: list[OutputRange]
    scores: list[ScoreBound]
    writers: list[Writer]
    row_norms: Array | None = None
    """Squared norms of the rows of down, in balance, shape [d]."""
    note: str | None = None


def range_of(
    weight: Weight, block: Block, setting: Setting, bounds: Array, bias: Array | None, role: str, least: float = 0.0
) -> OutputRange:
    """Describe the outputs of a matrix by bounds of each.

    Args:
        weight: the matrix.
        block: its block.
        setting: of the piece.
        bounds: shape [n]; an output whose bias exceeds its reach has at least 2|b_i| - bound_i.
        bias: shape [n]; None without one.
        role: in the record.
        least: proven otherwise of the largest output.
    """
    bounds = on_host(bounds)
    row = int(bounds.argmax())
    by_bias = 0.0 if bias is None else float((2 * np.abs(on_host(bias)) - bounds).max())
    return OutputRange(
        key=weight.matrix.key,
        role=role,
        component=block.component,
        layer=block.layer,
        dtype=setting.dtype,
        bound=float(bounds[row]),
        row=row,
        least=max(by_bias, least, 0.0),
    )


def reader_range(weight: Weight, folded: Reader, block: Block, setting: Setting, role: str) -> OutputRange:
    """Describe the outputs of a matrix behind a norm.

    Args:
        weight: the matrix.
        folded: its values with the norm.
        block: its block.
        setting: of the piece.
        role: in the record.
    """
    least = least_of_reader(folded, LARGEST.get(setting.dtype or "", np.inf))
    return range_of(weight, block, setting, reader_bounds(folded), folded.bias, role, least)


def look_at_attention(
    block: Block, attention: Attention, feeding: StoredNorm | None, of_keys: StoredNorm | None, setting: Setting
) -> Outputs:
    """Bound the outputs and scores of a block's attention, and balance what it writes.

    Args:
        block: its block.
        attention: of that block.
        feeding: the norm whose output it reads; None where it reads the raw stream, whose size nothing bounds.
        of_keys: the norm whose output keys and values read: the same, but in cross-attention.
        setting: of the piece.
    """
    device = setting.algebra.device
    norm, kv_norm = (None if given is None else given.finite(device) for given in (feeding, of_keys))
    width, kv_width, head_dim = attention.o.shape[0], attention.v.shape[1], attention.head_dim
    v, o = finite(attention.v, device), finite(attention.o, device)
    folded = fold_reader(v, kv_norm)
    is_layer = block.wiring.norm == "layer"

    def moving(written: Array) -> Moving:
        outputs = permuted(written.reshape(width, attention.heads, head_dim), 1, 0, 2)
        return Moving(v=folded.weight.reshape(-1, head_dim, kv_width), o=outputs)

    centred = fold_writer(o.weight, is_layer=is_layer)
    written = permuted(balance_moving(moving(centred)).o, 1, 0, 2).reshape(width, -1)
    found = Outputs([], [], [Writer(attention.o.matrix.key, block.layer, written)])
    q, k = finite(attention.q, device), finite(attention.k, device)
    queries, keys = fold_reader(q, norm), fold_reader(k, kv_norm)
    rope = block.wiring.rope if attention.n_rotated else None
    heads = scoring(queries, keys, attention.heads, rope=rope, n_rotated=attention.n_rotated)
    try:
        found.scores = _scores(block, attention, heads, setting, has_norm=None not in (norm, kv_norm))
    except UnknownWiring as error:
        found.note = str(error)
    if norm is None or kv_norm is None:
        return found
    bias = _output_bias(attention, folded, o)
    found.ranges = [
        reader_range(attention.q, queries, block, setting, "q"),
        reader_range(attention.k, keys, block, setting, "k"),
        reader_range(attention.v, folded, block, setting, "v"),
        range_of(attention.o, block, setting, moved_bounds(moving(o.weight), kv_width, bias), bias, "o"),
    ]
    return found


def _output_bias(attention: Attention, v: Reader, o: Reader) -> Array | None:
    """Bias of the output with that of the values moved into it."""
    if v.bias is None:
        return o.bias
    per_group = v.bias.reshape(-1, attention.head_dim)
    moved = o.weight @ repeated(per_group, attention.heads // len(per_group)).reshape(-1)
    return moved if o.bias is None else moved + o.bias


def _scores(
    block: Block, attention: Attention, heads: Scoring, setting: Setting, *, has_norm: bool
) -> list[ScoreBound]:
    width, algebra = attention.q.shape[1], setting.algebra
    if attention.k.shape[1] != width:
        raise UnknownWiring("its keys read a stream of another width")
    scale = score_scale(setting.chain, attention.head_dim, block.layer)
    at = None
    if attention.head_norms is not None:
        q, k = attention.head_norms
        bounds = bounds_of_norms(heads, HeadNorm(q_gain=q.finite().gain, k_gain=k.finite().gain), scale)
    elif not has_norm:
        raise UnknownWiring("it reads the raw stream, whose size nothing bounds")
    else:
        bounds = bounds_everywhere(heads, width, scale, algebra)
        turning = None if setting.has_own_frequencies else frequencies(setting.chain, attention.n_rotated)
        if attention.n_rotated and turning is not None:
            at = bounds_at(heads, width, scale, Rotation(turning, OFFSETS), algebra)
    path = attention.q.matrix.name.rpartition(".")[0].rpartition(".")[0] or block.path
    return [
        ScoreBound(
            key=f"{path}[head={head}.qk]",
            component=block.component,
            layer=block.layer,
            head=head,
            bound=float(bounds[head]),
            at_positions=None if at is None else float(min(at[head], bounds[head])),
        )
        for head in range(attention.heads)
    ]
