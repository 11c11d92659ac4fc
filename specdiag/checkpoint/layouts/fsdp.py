"""Files of FSDP, one a process: model_world_size_W_rank_R.pt of verl, pytorch_model_fsdp_rankR.bin of accelerate."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from msgspec.structs import replace

from specdiag.checkpoint.distributed.joining import Piece, join_pieces
from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.parallel import join
from specdiag.checkpoint.layouts.pieces import Place, TorchPart
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.sharded_tensors import RankPart, Shard
from specdiag.checkpoint.state_dict import find_weights
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import spelled_type
from specdiag.errors import SourceError
from specdiag.text.counts import counted
from specdiag.text.names import listed

_FILE = re.compile(r"(model_world_size_(?P<world>\d+)_|pytorch_model_fsdp_)rank_?(?P<rank>\d+)\.(pt|bin)")
_FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")
_SAVE = "save the model with torch.distributed.checkpoint.save and give that folder, or save its full state dict"


def read_ranks(place: Place) -> Listing:
    """Join the shards of all processes.

    Args:
        place: the folder.

    Returns:
        The tensors, and a note.

    Raises:
        SourceError: a process's file is missing or damaged, shards do not cover their tensor, or it is not told how a
            tensor was divided.
    """
    files = by_numbers(place, _FILE, "world", "rank")
    worlds = sorted({world for world, _ in files})
    if len(worlds) > 1:
        raise SourceError(
            f"{place.where} holds files of {worlds[0]} and of {worlds[1]} processes: delete the older ones"
        )
    ranks = {rank: name for (_, rank), name in files.items()}
    world = worlds[0] or 1 + max(ranks)
    missing = next((rank for rank in range(len(ranks) + 1) if rank < world and rank not in ranks), None)
    if missing is not None:
        raise SourceError(f"{place.where} lacks the file of rank {missing}, one of {world} processes: fetch it")
    parts = [place.open(ranks[rank]) for rank in sorted(ranks)]
    weights = [find_weights(part.content, part.label)[0] for part in parts]
    odd = next((name for state in weights[1:] for name in state.keys() ^ weights[0].keys()), None)
    if odd is not None:
        raise SourceError(
            f"{place.where} holds '{brief(odd)}' in only some of its files: they are not of one checkpoint"
        )
    flat = next((name for name in weights[0] if _FLAT.fullmatch(name)), None)
    if flat is not None:
        raise SourceError(
            f"{place.where} holds parameters that FSDP flattened into one vector, '{brief(flat)}', and nothing tells "
            f"them apart: {_SAVE}"
        )
    tensors = [_joined(name, [state[name] for state in weights], parts, place) for name in weights[0]]
    n_joined = sum(isinstance(tensor, RankPart) for tensor in weights[0].values())
    note = f"Joined {n_joined} of {counted(len(tensors), 'tensor')} from the shards of {world} processes."
    return Listing(tensors, (note,))


def _joined(name: str, values: Sequence[torch.Tensor], parts: Sequence[TorchPart], place: Place) -> StoredTensor:
    divided = [value for value in values if isinstance(value, RankPart)]
    if not divided:
        return join([part.stored(name, v) for part, v in zip(parts, values, strict=True)], name, None, place.where)
    first = divided[0]
    all_parts = [value if isinstance(value, RankPart) else _alone(value, first) for value in values]
    same = {(tuple(value.shape), value.dtype, value.axis) for value in all_parts}
    shards = _placed(all_parts) if len(same) == 1 else None
    if shards is None and len(first.placements) > 1:
        raise SourceError(
            f"{place.where} divides '{brief(name)}' over a mesh of processes of {len(first.placements)} axes "
            f"({listed(first.placements)}), which is not joined: {_SAVE}"
        )
    if shards is None:
        raise SourceError(f"{place.where} does not tell how '{brief(name)}' was divided among processes: {_SAVE}")
    stored = [
        (offsets, part.stored(name, shard))
        for part, group in zip(parts, shards, strict=True)
        for offsets, shard in group
    ]
    dtype = spelled_type(first.dtype)
    odd = next((tensor for _, tensor in stored if tensor.dtype != dtype), None)
    if odd is not None:
        raise SourceError(
            f"'{odd.file}' holds '{brief(name)}' as {odd.dtype}, and says that it is {dtype}: save it again"
        )
    pieces = [Piece(offsets, tensor.shape, tensor.read) for offsets, tensor in stored]
    nbytes = sum(tensor.nbytes for _, tensor in stored)
    joined = join_pieces(name, tuple(first.shape), dtype, pieces, nbytes=nbytes, label=place.where)
    return replace(joined, reason=next((t.reason for _, t in stored if t.reason is not None), joined.reason))


def _alone(values: torch.Tensor, other: RankPart) -> RankPart:
    """Make a part of a tensor that one process holds whole, as those of a single row."""
    return RankPart.holding(values.shape, values.dtype, "", [((0,) * values.dim(), values)], other.axis)


def _placed(values: Sequence[RankPart]) -> list[Sequence[Shard]] | None:
    """Give the shards of each process with their places; None where these are not told."""
    axis = values[0].axis
    if axis is None:
        return [value.shards for value in values] if any(value.shards for value in values) else None
    begin, found = 0, list[Sequence[Shard]]()
    for value in values:
        ((offsets, local),) = value.shards
        found.append((((*offsets[:axis], begin, *offsets[axis + 1 :]), local),))
        begin += local.shape[axis]
    return found
