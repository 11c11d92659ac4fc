"""The parts of one block with what stands around its matrices, as far as config, names and shapes tell it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from specdiag.architecture import config as settings
from specdiag.architecture.biases import bias_name
from specdiag.architecture.names import is_kernel
from specdiag.architecture.wiring import UnknownWiring, Wiring, rotated_rows
from specdiag.checkpoint.tensors import StoredTensor, WeightMatrix
from specdiag.function.activations import power_of, stated_activation
from specdiag.function.norms import Norms
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight, has_cut
from specdiag.spectra.float_types import FLOAT_TYPES

READERS = ("q", "k", "v", "gate", "up", "router")
WRITERS = ("o", "down")
"""Roles of matrices that read the stream, and of those that write to it."""
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
_ANGLES = re.compile(r"(?:.*\.)?(?:rope\.freqs|rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq)")
_EXPERT = re.compile(r"(?:^|\.)experts?\.(\d+)\.")
T = TypeVar("T")


class Finder:
    """The search for the parts of one block.

    Args:
        path: of the block.
        matrices: its matrices, at least one.
        config: config.json.
        wiring: of its architecture.
        stored: every tensor of the checkpoint.
    """

    def __init__(
        self,
        path: str,
        matrices: Sequence[WeightMatrix],
        config: Mapping[str, object],
        wiring: Wiring,
        stored: Mapping[str, StoredTensor],
    ) -> None:
        module = matrices[0].module
        self._path, self._wiring, self._stored = path, wiring, stored
        self._layer, self._component = module.layer, module.component
        self._chain = settings.sections(config, (module.component or "text").partition(".")[0])
        self._matrices = matrices
        self._width = settings.number(self._chain, _WIDTH) or _common_side(matrices)
        self._norms = Norms(path, wiring, stored, self._width)

    def block(self, leave_out: Callable[[str, str], None]) -> Block:
        """Find its parts.

        Args:
            leave_out: called with a part that is left out, and the reason.
        """

        strange = self._norms.strange()

        def unless_unknown(what: str, find: Callable[[], T]) -> T | None:
            try:
                found = find()
            except UnknownWiring as error:
                leave_out(what, strange or str(error))
                return None
            if found and strange is not None:
                leave_out(what, strange)
                return None
            return found

        return Block(
            path=self._path,
            layer=self._layer,
            component=self._component,
            wiring=self._wiring,
            attention=unless_unknown("Attention", self._attention),
            mlps=unless_unknown("The MLP", self._mlps) or (),
            router=unless_unknown("The router", self._router),
            cross=unless_unknown("Cross-attention", self._cross),
        )

    def _attention(self) -> Attention | None:
        found = self._heads(is_cross=False)
        if found is None:
            raise UnknownWiring("none of its matrices was recognised")
        kinds = [part["position_embedding_type"] for part in self._chain if "position_embedding_type" in part]
        if kinds and str(kinds[0]).startswith("relative_key"):
            raise UnknownWiring(f"position embeddings of type {kinds[0]} multiply its queries and keys")
        norm = self._norms.find(self._wiring.attn_in)
        return replace(
            found,
            norm=norm,
            kv_norm=norm,
            out=self._norms.find(self._wiring.attn_out),
            head_norms=self._norms.find_head_norms(
                (found.head_dim, found.q.shape[0]), (found.head_dim, found.k.shape[0])
            ),
            n_rotated=rotated_rows(self._wiring, self._chain, found.head_dim),
        )

    def _cross(self) -> Attention | None:
        """Cross-attention: no positions rotate it, and its keys and values read what the encoder's last norm gives."""
        found = self._heads(is_cross=True)
        if found is None:
            return None
        if self._wiring.stream == "post":
            return found
        if self._wiring.cross_in is None or self._wiring.memory is None:
            raise UnknownWiring("its wiring does not name the norms in front of it, cross_in and memory")
        return replace(
            found, norm=self._norms.find(self._wiring.cross_in), kv_norm=self._norms.find_outside(self._wiring.memory)
        )

    def _heads(self, *, is_cross: bool) -> Attention | None:
        """Cut attention into heads, its norms not yet found."""
        matrices = [
            m for m in self._matrices if m.module.family == "attention" and m.module.cross_attention == is_cross
        ]
        if not matrices:
            return None
        q, k, v, o = (self._only(role, matrices) for role in ("q", "k", "v", "o"))
        heads = self._number_of_heads(q)
        head_dim, rest = divmod(q.shape[0], heads)
        stated = settings.number(self._chain, ("head_dim", "d_kv"))
        groups = k.shape[0] // max(head_dim, 1)
        is_whole = not rest and head_dim > 0 < groups and k.shape[0] == v.shape[0] == groups * head_dim
        is_stated = stated in (None, head_dim) and settings.number(self._chain, settings.KEY_VALUE_HEADS) in (
            None,
            groups,
        )
        if not is_whole or not is_stated or heads % groups or o.shape[1] != q.shape[0]:
            raise UnknownWiring(f"its shapes are not those of {heads} heads")
        return Attention(q=q, k=k, v=v, o=o, heads=heads)

    def _number_of_heads(self, q: Weight) -> int:
        """Find how many heads there are: the wiring, the config, or a table of rotary angles tells it."""
        side = (self._component or "").rpartition(".")[2]
        heads = self._wiring.heads or settings.number(self._chain, (*settings.HEADS, f"{side}_attention_heads"))
        if heads is not None:
            return heads
        sizes = {2 * t.shape[0] for n, t in self._stored.items() if len(t.shape) == 1 and _ANGLES.fullmatch(n)}
        if len(sizes) == 1 and self._wiring.rope is not None and self._wiring.rotary is None:
            return max(q.shape[0] // sizes.pop(), 1)
        raise UnknownWiring("neither the config nor a role map says how many heads it has")

    def _mlps(self) -> tuple[Mlp, ...]:
        matrices = [m for m in self._matrices if m.module.family == "mlp"]
        if not matrices:
            raise UnknownWiring("none of its matrices was recognised")
        by_expert: dict[int | None, list[WeightMatrix]] = defaultdict(list)
        for matrix in matrices:
            by_expert[_expert(matrix)].append(matrix)
        norm, out = self._norms.find(self._wiring.mlp_in), self._norms.find(self._wiring.mlp_out)
        return tuple(
            Mlp(
                gate=self._only("gate", held) if any(m.module.role == "gate" for m in held) else None,
                up=self._only("up", held),
                down=self._only("down", held),
                norm=norm,
                out=out,
                expert=expert,
                power=power_of(
                    stated_activation(self._chain),
                    self._wiring.activation,
                    is_gated=any(m.module.role == "gate" for m in held),
                ),
            )
            for expert, held in by_expert.items()
        )

    def _router(self) -> tuple[Weight, StoredNorm | None] | None:
        matrices = [m for m in self._matrices if m.module.role == "router"]
        if not matrices:
            return None
        if self._wiring.router is None:
            raise UnknownWiring("the wiring does not say what follows its scores")
        return self._only("router", matrices), self._norms.find(self._wiring.mlp_in)

    def _only(self, role: str, matrices: Iterable[WeightMatrix]) -> Weight:
        found = [m for m in matrices if m.module.role == role]
        if len(found) != 1:
            raise UnknownWiring(
                f"it has {len(found) or 'no'} {'matrix' if len(found) < 2 else 'matrices'} of role {role}"
            )
        matrix = found[0]
        transposed = self._is_transposed()
        name = bias_name(matrix.name, self._stored)
        bias = None if name is None else self._stored[name]
        if bias is not None:
            n_out = matrix.tensor.shape[1 if transposed else 0]
            is_beside = bias.shape == (n_out,) and bias.values_dtype in FLOAT_TYPES
            if not is_beside or not has_cut(matrix, transposed=transposed):
                raise UnknownWiring(f"the bias of {matrix.name} cannot be laid beside its outputs")
        weight, reads = Weight(matrix, transposed, bias), role in READERS
        if weight.shape[1 if reads else 0] != self._width:
            raise UnknownWiring(f"{matrix.key} does not {'read' if reads else 'write'} the width of the config")
        return weight

    def _is_transposed(self) -> bool:
        """Tell how the block's matrices lie, by those of which one side alone is the width."""
        votes = {vote for m in self._matrices if (vote := _lies_transposed(m, self._width)) is not None}
        if len(votes) > 1:
            raise UnknownWiring("its matrices lie both ways, (out, in) and (in, out)")
        return votes.pop() if votes else is_kernel(self._matrices[0].name)


def _common_side(matrices: Sequence[WeightMatrix]) -> int | None:
    """Find the width of the stream as the one size that every matrix of a block has; None where there are two."""
    common = set[int].intersection(*({*m.shape} for m in matrices))
    return common.pop() if len(common) == 1 else None


def _expert(matrix: WeightMatrix) -> int | None:
    part = matrix.module.part or ""
    if part.startswith("expert="):
        return int(part.removeprefix("expert=").partition(".")[0])
    found = _EXPERT.search(matrix.name)
    return None if found is None else int(found[1])


def _lies_transposed(matrix: WeightMatrix, width: int | None) -> bool | None:
    """Tell whether a matrix lies (in, out), by its shape or by the side that is fused; None where neither tells."""
    rows, cols = matrix.shape
    role, slicer = matrix.module.role, matrix.slicer
    if rows != cols:
        return (rows if role in READERS else cols) == width
    if role not in READERS or len(matrix.tensor.shape) != 2 or matrix.shape == matrix.tensor.shape:
        return None
    return slicer.view is None and len(slicer.select) > 1
