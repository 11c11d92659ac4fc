"""Outputs of a block beyond products: what attention puts out whatever it reads, and an MLP on given inputs."""

from __future__ import annotations

from specdiag.function.arrays import Array, filled, inner, larger, repeated
from specdiag.function.effective import moves, read, write
from specdiag.function.folding import Norm, Reader, fold_reader, fold_writer
from specdiag.function.mlp import centred_router, homogeneous
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight


def constant(block: Block, attention: Attention, device: str) -> Array:
    """Compute what attention puts out whatever it reads: sum of O_h b_h over heads and the bias of the output.

    Args:
        block: wiring.
        attention: of that block.
        device: on which it is computed.

    Returns:
        Shape [d].
    """
    values = fold_reader(attention.v.read(device), _norm(attention.kv_norm, device))
    heads = moves(block, attention, device)
    found = _bias(block, attention.o.read(device).bias, attention.out, heads.o[0, :, 0], device)
    if values.bias is None:
        return found
    by_head = repeated(values.bias.reshape(-1, attention.head_dim), attention.heads // len(heads.v))
    return found + (heads.o * by_head[:, None]).sum(axis=(0, 2))


def response(block: Block, mlp: Mlp, inputs: Array, device: str) -> Array:
    """Compute what an MLP puts out behind its norm, over the size of what down times up makes of the same inputs.

    Its activation is max(x, 0), and max(x, 0)^p where up times s and down times s^-p compute the same.

    Args:
        block: wiring.
        mlp: of that block.
        inputs: what the norm gives before its gain, shape [d, n].
        device: on which it is computed.

    Returns:
        Shape [d, n].
    """
    norm, down = _norm(mlp.norm, device), write(block, mlp, device)
    up = fold_reader(mlp.up.read(device), norm)
    hidden = _applied(up, inputs)
    if mlp.gate is None:
        hidden = larger(hidden, filled(hidden, 0.0)) ** (mlp.power or 1)
    else:
        gate = _applied(fold_reader(mlp.gate.read(device), norm), inputs)
        hidden = hidden * larger(gate, filled(gate, 0.0))
    bias = _bias(block, mlp.down.read(device).bias, mlp.out, inputs[:, 0], device)
    product = homogeneous(up.weight, down, mlp.power or 1) @ (up.weight @ inputs)
    size = inner(product, product) ** 0.5
    return (down @ hidden + bias[:, None]) / (size or 1.0)


def router_with_bias(weight: Weight, norm: StoredNorm | None, device: str) -> Array:
    """Compute a router with its bias as the last column, without what a softmax does not see.

    Args:
        weight: of the router.
        norm: in front of it.
        device: on which it is computed.
    """
    return centred_router(read(weight, norm, device))


def _applied(reader: Reader, inputs: Array) -> Array:
    found = reader.weight @ inputs
    return found if reader.bias is None else found + reader.bias[:, None]


def _bias(block: Block, bias: Array | None, out: StoredNorm | None, like: Array, device: str) -> Array:
    """Fold what follows into a bias of outputs, shape [d]; zeros without one."""
    if bias is None:
        return filled(like, 0.0)
    gain = None if out is None else out.read(device).gain
    return fold_writer(bias[:, None], is_layer=block.wiring.norm == "layer", gain=gain)[:, 0]


def _norm(norm: StoredNorm | None, device: str) -> Norm | None:
    return None if norm is None else norm.read(device)
