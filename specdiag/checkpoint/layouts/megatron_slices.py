"""Megatron's slices: which axis of a matrix tensor parallelism cuts, and gated MLPs, whose slices hold two halves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from specdiag.checkpoint.layouts.parallel import Tensors, join_slices, require_same_names
from specdiag.checkpoint.layouts.pieces import concatenate
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra.float_types import RawArray

_ROWS = re.compile(
    r"(.*\.)?(word_embeddings|output_layer|final_linear|linear_qkv|linear_q|linear_kv|linear_fc1|query_key_value|query|"
    r"key_value|dense_h_to_4h)\.(weight|bias)"
)
_COLUMNS = re.compile(r"(.*\.)?(linear_proj|linear_fc2|dense_4h_to_h|(self_|inter_|cross)?attention\.dense)\.weight")
_DOUBLED = re.compile(r"(?P<before>(.*\.)?)(?P<first>linear_fc1|dense_h_to_4h)\.(weight|bias)")
_SECOND = {"linear_fc1": "linear_fc2", "dense_h_to_4h": "dense_4h_to_h"}
_GROUPED = re.compile(r"(.*\.)?experts\.weight[12]")


def cut_axis(name: str) -> int | None:
    """Tell along which axis Megatron, and GPT-NeoX after it, cuts a tensor.

    Args:
        name: of the tensor.

    Returns:
        0 or 1; None where each process holds a copy, or the name is not known.
    """
    return 0 if _ROWS.fullmatch(name) else 1 if _COLUMNS.fullmatch(name) else None


def join_ranks(ranks: Sequence[Tensors], where: str) -> Tensors:
    """Join the slices of one stage. A gated MLP has [gates; ups] in each of them, which are taken apart first.

    Args:
        ranks: the tensors of each tensor-parallel process, in order.
        where: the checkpoint, for messages.

    Raises:
        SourceError: they do not fit together, or it is not known how a tensor was cut.
    """
    if len(ranks) == 1:
        return dict(ranks[0])
    require_same_names(ranks, where)
    grouped = next((name for name in ranks[0] if _GROUPED.fullmatch(name)), None)
    if grouped is not None:
        raise SourceError(
            f"{where} holds experts in groups, '{brief(grouped)}', cut into {len(ranks)} parts, which are not joined: "
            "save it as torch_dist, or merge it with the program that wrote it"
        )
    gated = {name for name in ranks[0] if _is_gated(name, ranks[0], where)}
    plain = join_slices([{n: t for n, t in rank.items() if n not in gated} for rank in ranks], cut_axis, where)
    return {name: _join_gated(name, ranks) if name in gated else plain[name] for name in ranks[0]}


def _is_gated(name: str, rank: Mapping[str, StoredTensor], where: str) -> bool:
    """Tell whether the first matrix of an MLP, or its bias, has twice as many rows as the second one has columns.

    Raises:
        SourceError: it has neither as many nor twice as many, or there is no second one.
    """
    match = _DOUBLED.fullmatch(name)
    if match is None:
        return False
    second = rank.get(f"{match['before']}{_SECOND[match['first']]}.weight")
    rows, columns = rank[name].shape[:1], second.shape[1:] if second is not None else ()
    if rows == columns:
        return False
    if len(columns) != 1 or rows != (2 * columns[0],):
        raise SourceError(
            f"{where} holds a part of '{brief(name)}' of shape {rank[name].shape}, and no {_SECOND[match['first']]} of "
            "as many or half as many columns tells whether it is gated: merge the parts with the program that wrote "
            "them"
        )
    return True


def _join_gated(name: str, ranks: Sequence[Tensors]) -> StoredTensor:
    halves = [_half(rank[name], number) for number in (0, 1) for rank in ranks]
    return concatenate(name, halves, 0)


def _half(tensor: StoredTensor, number: int) -> StoredTensor:
    """Cut the first or the second half of a tensor's rows; the whole slice is read for it."""
    rows = tensor.shape[0] // 2

    def read(index: int | None = None) -> RawArray:
        if index is not None:
            return tensor.read(number * rows + index)
        return tensor.read(None)[number * rows : (number + 1) * rows]

    return replace(tensor, shape=(rows, *tensor.shape[1:]), nbytes=tensor.nbytes // 2, read=read, storage=None)
