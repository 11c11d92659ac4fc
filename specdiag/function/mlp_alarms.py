"""The MLP of a block by what it can put out: bounds of its matrices, and what it writes to the stream."""

from __future__ import annotations

import numpy as np

from specdiag.function.activations import stated_activation
from specdiag.function.arrays import Array, living_ratio, norms, on_host, smaller
from specdiag.function.attention_alarms import Outputs, Setting, range_of, reader_range
from specdiag.function.balance import balance_neurons
from specdiag.function.bounds import (
    balanced_gate,
    down_bounds,
    gated_bounds,
    gated_down_bound,
    gated_down_bounds,
    plain_down_bounds,
    reader_bounds,
)
from specdiag.function.directions import Writer
from specdiag.function.folding import Reader, fold_reader, fold_writer
from specdiag.function.parts import Block, Mlp
from specdiag.function.stored import StoredNorm, finite

FP16 = 65504.0
"""Rows whose first bound exceeds this get a second one."""
_SOLVED, _FLOPS = 16, 2e12
"""Rows of a matrix that get a third bound, of eigenproblems of their own, at most; fewer where these take longer."""
_TAME = ("silu", "swish", "gelu", "mish", "tanh", "relu", "linear", "hardswish")
"""Activations with |a(x)| <= |x|, by the beginning of their names; gelu_new and the like are among them."""
_GROWING = ("relu2", "relu_squared", "relu^2")


def look_at_mlp(block: Block, mlp: Mlp, feeding: StoredNorm | None, setting: Setting) -> Outputs:
    """Bound the outputs of an MLP, and balance what it writes.

    Args:
        block: its block.
        mlp: of that block.
        feeding: the norm whose output it reads; None where it reads the raw stream, whose size nothing bounds.
        setting: of the piece.
    """
    device = setting.algebra.device
    norm = None if feeding is None else feeding.finite(device)
    down, up = finite(mlp.down, device), fold_reader(finite(mlp.up, device), norm)
    gate = None if mlp.gate is None else fold_reader(finite(mlp.gate, device), norm)
    written = fold_writer(down.weight, is_layer=block.wiring.norm == "layer")
    if mlp.power is not None:
        _, written = balance_neurons(up.weight, written, mlp.power)
    found = Outputs([], [], [Writer(mlp.down.matrix.key, block.layer, written)])
    found.row_norms = _row_norms(mlp, written)
    if norm is None:
        return found
    if gate is not None and mlp.gate is not None:
        found.ranges.append(reader_range(mlp.gate, gate, block, setting, "gate"))
    found.ranges.append(reader_range(mlp.up, up, block, setting, "up"))
    activation = stated_activation(setting.chain) or (block.wiring.activation if gate is None else None)
    if activation is not None and not is_tame(activation):
        found.note = f"outputs of its activation {activation} are not bounded by their inputs"
        return found
    inner = reader_bounds(up) if gate is None else gated_bounds(gate, up)
    found.ranges.append(range_of(mlp.down, block, setting, inner, None, "into down"))
    outer = down_bounds(down, inner)
    if gate is None:
        outer = smaller(outer, _plain_outer(down, up, setting, can_scale=mlp.power == 1))
    else:
        outer = _gated_outer(down, outer, gate, up, setting)
    found.ranges.append(range_of(mlp.down, block, setting, outer, down.bias, "down"))
    return found


def is_tame(activation: str) -> bool:
    """Tell whether no output of an activation exceeds its input in size.

    Args:
        activation: its name in the config.
    """
    name = activation.lower().removeprefix("gated-").removeprefix("quick_")
    return name.startswith(_TAME) and not name.startswith(_GROWING)


def _row_norms(mlp: Mlp, written: Array) -> Array:
    """Square norms of the rows; behind a norm of the output the scale of down is free and the norm's gain counts."""
    rows = on_host((written * written).sum(axis=1))
    if mlp.out is None:
        return rows
    return rows / max(float(rows.sum()), np.finfo(np.float64).tiny) * np.square(mlp.out.finite().gain)


def _plain_outer(down: Reader, up: Reader, setting: Setting, *, can_scale: bool) -> Array:
    """Bound the rows by the length of what enters; neurons that can be rescaled are in balance first."""
    if can_scale:
        even, _ = balance_neurons(up.weight, down.weight)
        scale = living_ratio(norms(even, 1), norms(up.weight, 1))
        up = Reader(up.weight * scale[:, None], None if up.bias is None else up.bias * scale)
        down = Reader(down.weight / scale, down.bias)
    return plain_down_bounds(down, up, setting.algebra)


def _gated_outer(down: Reader, first: Array, gate: Reader, up: Reader, setting: Setting) -> Array:
    """Bound the rows of which the first bound proves nothing again, the last few that fail by an eigenproblem each."""
    if first.max() <= FP16:
        return first
    even, scaled = balanced_gate(gate, up, down.weight)
    bias = np.zeros(len(first)) if down.bias is None else np.abs(on_host(down.bias))
    again = on_host(gated_down_bounds(scaled, gate, even, setting.algebra))
    found = np.minimum(on_host(first), again + bias)
    d, m = down.weight.shape
    n_solved = min(_SOLVED, max(1, int(_FLOPS / (4 * d * d * m))))
    for row in np.argsort(-found, kind="stable")[:n_solved]:
        if found[row] <= FP16:
            break
        found[row] = min(found[row], gated_down_bound(scaled[row], gate, even, setting.algebra) + bias[row])
        if found[row] > FP16:
            break
    return found
