"""The blocks of a checkpoint with what stands around their matrices, as far as config, names and shapes tell it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from specdiag.architecture import config as settings
from specdiag.architecture.biases import bias_name
from specdiag.architecture.names import Neighbours, is_kernel, parse
from specdiag.architecture.wiring import UnknownWiring, Wiring, find_wiring, rotated_rows
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.function.norms import Norms
from specdiag.function.parts import Attention, Block, Mlp
from specdiag.function.stored import StoredNorm, Weight, has_cut
from specdiag.spectra.float_types import FLOAT_TYPES

_READERS = ("q", "k", "v", "gate", "up", "router")
_WRITERS = ("o", "down")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_ACTIVATION = ("hidden_act", "activation_function", "hidden_activation", "activation")
T = TypeVar("T")
_EXPERT = re.compile(r"(?:^|\.)experts?\.(\d+)\.")


@dataclass(slots=True)
class _LeftOut:
    """Parts of blocks that are left out, by reason."""

    reasons: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def sentences(self) -> list[str]:
        return [
            f"{what} of {_and_more(paths)} is left out of the function: {reason}."
            for (what, reason), paths in self.reasons.items()
        ]


def _and_more(paths: Sequence[str]) -> str:
    n_more = len(paths) - 1
    return f"{paths[0]} and {n_more} more block{'s' if n_more > 1 else ''}" if n_more else paths[0]


def find_blocks(checkpoint: Checkpoint) -> tuple[list[Block], list[str]]:
    """Find the blocks of a checkpoint whose wiring is known.

    Args:
        checkpoint: an open one; no values are read.

    Returns:
        The blocks in stored order, and sentences on what is left out.
    """
    stored = {tensor.name: tensor for tensor in checkpoint.stored or ()}
    neighbours = Neighbours(stored)
    grouped: dict[str, list[WeightMatrix]] = defaultdict(list)
    for matrix in checkpoint.matrices:
        role = matrix.module.role
        is_known = matrix.rank is None and matrix.n_slices == 1 and role in (*_READERS, *_WRITERS)
        if is_known and (path := parse(matrix.name, neighbours).block):
            grouped[path].append(matrix)
    blocks: list[Block] = []
    unknown: dict[str, None] = {}
    left_out = _LeftOut()
    for path, matrices in grouped.items():
        component = matrices[0].module.component
        try:
            finder = _Finder(path, matrices, checkpoint.config, find_wiring(checkpoint.config, component), stored)
        except UnknownWiring as error:
            unknown[str(error)] = None
            continue
        blocks.append(finder.block(left_out))
    if not grouped:
        unknown["no block with attention or an MLP was found"] = None
    notes = [f"{reason[0].upper()}{reason[1:]}: QK, OV, DU and gauge_shift are left out." for reason in unknown]
    return blocks, notes + left_out.sentences()


class _Finder:
    """The search for the parts of one block."""

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
        self._width = settings.number(self._chain, _WIDTH)
        self._norms = Norms(path, wiring, stored, self._width)

    def block(self, left_out: _LeftOut) -> Block:
        own = [m for m in self._matrices if m.module.family == "attention"]
        if any(m.module.cross_attention for m in own):
            left_out.reasons["Cross-attention", "its keys and values read another stream"].append(self._path)

        def unless_unknown(what: str, find: Callable[[], T]) -> T | None:
            try:
                self._norms.require_no_others()
                return find()
            except UnknownWiring as error:
                left_out.reasons[what, str(error)].append(self._path)
                return None

        return Block(
            path=self._path,
            layer=self._layer,
            component=self._component,
            wiring=self._wiring,
            attention=unless_unknown("Attention", self._attention),
            mlps=unless_unknown("The MLP", self._mlps) or (),
            router=unless_unknown("The router", self._router),
        )

    def _attention(self) -> Attention | None:
        matrices = [m for m in self._matrices if m.module.family == "attention" and not m.module.cross_attention]
        if not matrices:
            return None
        q, k, v, o = (self._only(role, matrices) for role in ("q", "k", "v", "o"))
        side = (self._component or "").rpartition(".")[2]
        heads = settings.number(self._chain, (*settings.HEADS, f"{side}_attention_heads"))
        if heads is None:
            raise UnknownWiring("the config does not say how many heads it has")
        head_dim, rest = divmod(q.shape[0], heads)
        stated = settings.number(self._chain, ("head_dim",))
        groups = k.shape[0] // max(head_dim, 1)
        is_whole = not rest and head_dim > 0 < groups and k.shape[0] == v.shape[0] == groups * head_dim
        is_stated = stated in (None, head_dim) and settings.number(self._chain, settings.KEY_VALUE_HEADS) in (
            None,
            groups,
        )
        if not is_whole or not is_stated or heads % groups or o.shape[1] != q.shape[0]:
            raise UnknownWiring(f"its shapes are not those of {heads} heads")
        head_norms = self._norms.find_head_norms((head_dim, q.shape[0]), (head_dim, k.shape[0]))
        return Attention(
            q=q,
            k=k,
            v=v,
            o=o,
            heads=heads,
            norm=self._norms.find(self._wiring.attn_in),
            out=self._norms.find(self._wiring.attn_out),
            head_norms=head_norms,
            n_rotated=rotated_rows(self._wiring, self._chain, head_dim),
        )

    def _mlps(self) -> tuple[Mlp, ...]:
        matrices = [m for m in self._matrices if m.module.family == "mlp"]
        by_expert: dict[int | None, list[WeightMatrix]] = defaultdict(list)
        for matrix in matrices:
            by_expert[_expert(matrix)].append(matrix)
        if matrices and (activation := self._rescaled_activation()):
            raise UnknownWiring(f"neurons of activation {activation} can be rescaled, which is not taken out yet")
        norm, out = self._norms.find(self._wiring.mlp_in), self._norms.find(self._wiring.mlp_out)
        return tuple(
            Mlp(
                gate=self._only("gate", held) if any(m.module.role == "gate" for m in held) else None,
                up=self._only("up", held),
                down=self._only("down", held),
                norm=norm,
                out=out,
                expert=expert,
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
        weight, reads = Weight(matrix, transposed, bias), role in _READERS
        if weight.shape[1 if reads else 0] != self._width:
            raise UnknownWiring(f"{matrix.key} does not {'read' if reads else 'write'} the width of the config")
        return weight

    def _is_transposed(self) -> bool:
        """Tell how the block's matrices lie, by those of which one side alone is the width."""
        votes = {vote for m in self._matrices if (vote := _lies_transposed(m, self._width)) is not None}
        if len(votes) > 1:
            raise UnknownWiring("its matrices lie both ways, (out, in) and (in, out)")
        return votes.pop() if votes else is_kernel(self._matrices[0].name)

    def _rescaled_activation(self) -> str | None:
        """Name the activation where it lets a neuron be rescaled: ReLU and its powers."""
        for part in self._chain:
            for key in _ACTIVATION:
                if isinstance(value := part.get(key), str):
                    return value if "relu" in value.lower() else None
        return None


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
        return (rows if role in _READERS else cols) == width
    if role not in _READERS or len(matrix.tensor.shape) != 2 or matrix.shape == matrix.tensor.shape:
        return None
    return slicer.view is None and len(slicer.select) > 1
