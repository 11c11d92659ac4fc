"""Records of a block whose wiring is known: its attention, its MLPs, its router, and the norms around them."""

from __future__ import annotations

from dataclasses import dataclass

from specdiag.architecture.wiring import Wiring
from specdiag.function.stored import StoredNorm, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Self-attention of a block.

    Attributes:
        q: queries; likewise k, v and o.
        heads: number of heads of queries.
        norm: in front; None where the raw stream is read.
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
    """

    gate: Weight | None
    up: Weight
    down: Weight
    norm: StoredNorm | None = None
    out: StoredNorm | None = None
    expert: int | None = None


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
    """

    path: str
    layer: int | None
    component: str | None
    wiring: Wiring
    attention: Attention | None
    mlps: tuple[Mlp, ...]
    router: tuple[Weight, StoredNorm | None] | None
