"""Tensors of two models, paired: by name, by role and place, by what names stand for, and by content."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from specdiag.architecture.split import Slicer
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.comparison.identities import match_by_role
from specdiag.comparison.matching import match
from specdiag.comparison.sides import Side
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.content import digest
from specdiag.verification.norms import meaning
from specdiag.verification.records import MatchedBy
from specdiag.verification.values import Piece


@dataclass(frozen=True, slots=True)
class Pair:
    """A piece of the first model and its counterpart."""

    before: Piece
    after: Piece
    by: MatchedBy


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs, and the tensors of either side of which a part at least is in none."""

    pairs: tuple[Pair, ...]
    only_before: tuple[StoredTensor, ...]
    only_after: tuple[StoredTensor, ...]

    @property
    def transposes(self) -> bool:
        """True where a matrix that is not square lies transposed after."""
        shapes = [(p.before.shape, p.after.shape) for p in self.pairs]
        return any(b != a and (b[0], b[2], b[1]) == a for b, a in shapes)


def pair_up(before: Checkpoint, after: Checkpoint, tensors: Mapping[str, StoredTensor]) -> Pairs:
    """Pair the tensors of two models.

    Args:
        before: the first model.
        after: the model that is verified.
        tensors: what the first model's tensors should have become, by name.

    Returns:
        The pairs in the order of the first model, and what is left.

    Raises:
        SourceError: a tensor that only its content can tell cannot be read.
    """
    stored = {tensor.name: tensor for tensor in after.stored or ()}
    roles = _roles(before) | {name: role for name, role in _roles(after).items() if name not in tensors}
    named = match(tensors, stored, lambda a, b: _is_alike(tensors[a], stored[b]))
    pairs = [
        Pair(Piece(a, tensors[a], role=roles.get(a)), Piece(b, stored[b], role=roles.get(a)), "name")
        for a, b, _ in named.pairs
        if _is_alike(tensors[a], stored[b]) or a == b
    ]
    done = {pair.before.tensor.name for pair in pairs}, {pair.after.tensor.name for pair in pairs}
    pairs += _by_role(before, after, tensors, *done)
    rest_a, rest_b = _uncovered(tensors.values(), pairs, "before"), _uncovered(stored.values(), pairs, "after")
    pairs += _by_meaning(rest_a, rest_b)
    rest_a, rest_b = _uncovered(tensors.values(), pairs, "before"), _uncovered(stored.values(), pairs, "after")
    pairs += _by_content(rest_a, rest_b)
    order = {name: i for i, name in enumerate(tensors)}
    pairs.sort(key=lambda pair: order[pair.before.tensor.name])
    return Pairs(
        tuple(pairs),
        tuple(_uncovered(tensors.values(), pairs, "before")),
        tuple(_uncovered(stored.values(), pairs, "after")),
    )


def _by_role(
    before: Checkpoint,
    after: Checkpoint,
    tensors: Mapping[str, StoredTensor],
    done_a: Collection[str],
    done_b: Collection[str],
) -> Iterator[Pair]:
    """Pair matrices by role and layer, and their biases with them. Either may lie transposed."""
    sides = [
        {key: entry._replace(shape=tuple(sorted(entry.shape))) for key, entry in Side(None, side).listing().items()
         if entry.role is not None and entry.name not in done}
        for side, done in ((before, done_a), (after, done_b))
    ]  # fmt: skip
    found = match_by_role(*sides)
    of_a, of_b = ({m.key: m for m in side.matrices} for side in (before, after))
    names_b = {tensor.name: tensor for tensor in after.stored or ()}
    for key_a, key_b in found.items():
        a, b = of_a[key_a], of_b[key_b]
        if a.name not in tensors:
            continue
        yield Pair(_piece(a, tensors[a.name]), _piece(b, b.tensor), "role")
        biases = tensors.get(_bias(a.name)), names_b.get(_bias(b.name))
        if biases[0] is not None and biases[1] is not None and not {biases[0].name} & set(done_a):
            pieces = _bias_piece(a, biases[0]), _bias_piece(b, biases[1])
            if pieces[0] is not None and pieces[1] is not None and pieces[0].shape == pieces[1].shape:
                yield Pair(pieces[0], pieces[1], "role")


def _by_meaning(before: Sequence[StoredTensor], after: Sequence[StoredTensor]) -> Iterator[Pair]:
    """Pair norms and their biases by what the names of several formats call them."""
    sides = [defaultdict[tuple[object, ...], list[StoredTensor]](list) for _ in range(2)]
    for side, tensors in zip(sides, (before, after), strict=True):
        own = [tensor.name for tensor in tensors]
        for tensor in tensors:
            if (meant := meaning(tensor.name, own)) is not None:
                side[(*meant, prod(tensor.shape))].append(tensor)
    for meant, found in sides[0].items():
        others = sides[1].get(meant, [])
        if len(found) == len(others) == 1:
            yield Pair(Piece(found[0].name, found[0]), Piece(others[0].name, others[0]), "role")


def _by_content(before: Sequence[StoredTensor], after: Sequence[StoredTensor]) -> Iterator[Pair]:
    """Pair tensors of one size that hold the same values, in whatever order. Those of equal content go in order."""
    wanted = [tensor for tensor in after if _is_plain(tensor)]
    for kind in dict.fromkeys(tensor.values_dtype for tensor in wanted):
        of_kind = [tensor for tensor in wanted if tensor.values_dtype == kind]
        sizes = {prod(tensor.shape) for tensor in of_kind}
        held: dict[tuple[int, int], list[StoredTensor]] = defaultdict(list)
        for tensor in reversed(before):
            size = prod(tensor.shape)
            if size in sizes and tensor.reason is None and tensor.values_dtype in FLOAT_TYPES:
                held[size, digest(tensor, FLOAT_TYPES[kind])].append(tensor)
        for tensor in of_kind:
            candidates = held.get((prod(tensor.shape), digest(tensor, FLOAT_TYPES[kind])))
            if candidates:
                found = candidates.pop()
                yield Pair(Piece(found.name, found), Piece(tensor.name, tensor), "content")


def _uncovered(tensors: Iterable[StoredTensor], pairs: Sequence[Pair], side: str) -> list[StoredTensor]:
    """List the tensors that no pair holds, or not all of."""
    held: dict[str, int] = defaultdict(int)
    for pair in pairs:
        piece: Piece = getattr(pair, side)
        held[piece.tensor.name] += prod(piece.shape)
    return [tensor for tensor in tensors if held.get(tensor.name, 0) < max(1, prod(tensor.shape))]


def _piece(matrix: WeightMatrix, tensor: StoredTensor) -> Piece:
    return Piece(matrix.key, tensor, matrix.slicer, matrix.module.role)


def _bias(weight: str) -> str:
    return f"{weight.removesuffix('weight')}bias"


def _bias_piece(matrix: WeightMatrix, bias: StoredTensor) -> Piece | None:
    """Cut the bias of a part as the part is cut; None where its cut does not tell."""
    slicer = matrix.slicer
    key = f"{bias.name}[{matrix.module.part}]" if matrix.module.part else bias.name
    if not slicer.select and slicer.index is None and matrix.n_slices == 1:
        return Piece(key, bias)
    if slicer.axes is not None or slicer.index is not None or len(bias.shape) != 1:
        return None
    if slicer.view is not None:
        rows = slicer.shape[1]
        return Piece(key, bias, replace(slicer, shape=(1, rows, 1), view=(*slicer.view[:-1], 1)))
    select = slicer.select[-1]
    if not isinstance(select, slice):
        return None
    size = len(range(*select.indices(bias.shape[0])))
    return Piece(key, bias, Slicer((1, size, 1), select=(select,)))


def _roles(checkpoint: Checkpoint) -> dict[str, str]:
    return {m.name: m.module.role for m in checkpoint.matrices if m.module.part is None}


def _is_alike(a: StoredTensor, b: StoredTensor) -> bool:
    """Tell whether two tensors have the same axes, but for those of length 1 and their order."""
    shapes = (sorted(size for size in tensor.shape if size != 1) for tensor in (a, b))
    first, second = shapes
    return first == second


def _is_plain(tensor: StoredTensor) -> bool:
    return tensor.values_dtype in FLOAT_TYPES and tensor.reason is None and tensor.rounding is None


BUFFER = re.compile(r"rope_(freqs|factors)|rotary_emb|inv_freq|position_ids|masked_bias|\.attn\.bias$")
"""Names of tensors that a model computes from its config."""
