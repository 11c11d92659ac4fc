"""Records of a block whose wiring is known: its attention, its MLPs, its router, and the norms around them."""

from __future__ import annotations

from dataclasses import dataclass

from specdiag.architecture.wiring import UnknownWiring, Wiring
from specdiag.function.stored import StoredNorm, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention of a block, or its cross-attention.

    Attributes:
        q: queries; likewise k, v and o.
        heads: number of heads of queries.
        norm: in front; None where the raw stream is read.
        kv_norm: in front of keys and values: the same, but in cross-attention the last norm of the encoder.
        out: the norm behind the output; None without one.
        head_norms: the norms of queries and of keys; None without them.
        n_rotated: rows of a head that are rotated.
    """

    q: Weight
    k: Weight
    v: Weight
    o: Weight
    heads: int
    norm: StoredNorm | None = None
    kv_norm: StoredNorm | None = None
    out: StoredNorm | None = None
    head_norms: tuple[StoredNorm, StoredNorm] | None = None
    n_rotated: int = 0

    @property
    def head_dim(self) -> int:
        """Rows of a head."""
        return self.q.shape[0] // self.heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """An MLP of a block, or one of its experts.

    Attributes:
        gate: None where there is none.
        up: reads the stream.
        down: writes to it.
        norm: in front; None where the raw stream is read.
        out: the norm behind it; None without one.
        expert: its number among the experts; None for the only MLP.
        power: p where a neuron computes the same with up times s and down times s^-p for any s > 0: 1 in a gated MLP
            and with ReLU, 2 with its square. None where neurons cannot be rescaled.
    """

    gate: Weight | None
    up: Weight
    down: Weight
    norm: StoredNorm | None = None
    out: StoredNorm | None = None
    expert: int | None = None
    power: int | None = None

    def __post_init__(self) -> None:
        """Refuse matrices that are not those of one MLP.

        Raises:
            UnknownWiring: their numbers of neurons differ.
        """
        sizes = [self.up.shape[0], self.down.shape[1], *([] if self.gate is None else [self.gate.shape[0]])]
        if len(set(sizes)) > 1:
            raise UnknownWiring(f"its matrices have {', '.join(map(str, sizes))} neurons")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block whose wiring is known.

    Attributes:
        path: of the block.
        layer: its index.
        component: the piece of the model.
        wiring: of its architecture.
        attention: None where there is none, or it is left out.
        mlps: the MLP, or all experts.
        router: its weight and the norm in front of it.
        cross: cross-attention; None where there is none, or it is left out.
    """

    path: str
    layer: int | None
    component: str | None
    wiring: Wiring
    attention: Attention | None
    mlps: tuple[Mlp, ...]
    router: tuple[Weight, StoredNorm | None] | None
    cross: Attention | None = None
