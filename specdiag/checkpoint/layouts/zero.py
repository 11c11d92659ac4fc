"""Folders of DeepSpeed ZeRO: 16-bit weights in model states, fp32 ones in the partitions of the optimizer.

Stages 1 and 2 flatten the parameters of an optimizer group one after another and cut the vector among the processes;
stage 3 cuts every parameter. `param_shapes` lists the parameters of each group in that order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from msgspec.structs import replace

from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.pieces import Place, TorchPart
from specdiag.checkpoint.layouts.strips import Strip, unflatten
from specdiag.checkpoint.layouts.zero_stage3 import read_stage_3
from specdiag.checkpoint.layouts.zero_state import (
    DIVIDED,
    EXPERT,
    GROUPS,
    MODEL,
    OPTIMIZER,
    REBUILD,
    Shapes,
    State,
    by_rank,
    count_partitions,
    flat_vectors,
    optimizer_state,
    param_shapes,
    partition_count,
    precision,
    shared_names,
    sizes_differ,
)
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.parts import refuse_counted_part
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted


def read_zero(place: Place) -> Listing:
    """List the weights of a ZeRO folder: the fp32 partitions where they are whole, else the 16-bit weights.

    Args:
        place: the folder.

    Returns:
        The tensors, and notes on which copy was read.

    Raises:
        SourceError: files are missing or damaged, are not of one save, or the model is cut for tensor parallelism too.
    """
    patterns = (MODEL, DIVIDED, OPTIMIZER, EXPERT)
    ranks = {int(m["model"]) for name in place.names for pattern in patterns if (m := pattern.fullmatch(name))}
    if ranks != {0}:
        raise SourceError(
            f"{place.where} is cut among {max(ranks) + 1} model-parallel processes, and says nothing of the axes: "
            "convert it with DeepSpeed's ds_to_universal.py, whose folder is read"
        )
    divided, whole = by_rank(place, DIVIDED), by_numbers(place, MODEL, "model")
    if divided and whole:
        raise SourceError(
            f"{place.where} holds both '{whole[0,]}' and '{next(iter(divided.values()))}', which different stages of "
            "ZeRO write: they are of two checkpoints; delete the older one"
        )
    partitions = [place.open(name) for name in by_rank(place, OPTIMIZER).values()]
    states = [optimizer_state(partition) for partition in partitions]
    if divided:
        return read_stage_3(place, [place.open(name) for name in divided.values()], partitions, states)
    if not whole:
        raise SourceError(f"{place.where} lacks mp_rank_00_model_states.pt, which names its parameters: fetch it")
    return _read_stages_1_and_2(place, whole[0,], partitions, states)


def _read_stages_1_and_2(place: Place, name: str, partitions: Sequence[TorchPart], states: Sequence[State]) -> Listing:
    model = place.open(name)
    refuse_counted_part(model.content, model.label)
    weights = model.tensors(model.content.get("module"))
    if not weights:
        raise SourceError(f"'{model.label}' holds no weights under 'module': {REBUILD}")
    _require_experts(place, model)
    experts = [place.open(name) for name in place.names if EXPERT.fullmatch(name)]
    for part in experts:
        found = part.tensors(part.content)
        twice = min(weights.keys() & found.keys(), default=None)
        if twice is not None:
            raise SourceError(f"'{part.label}' and another file hold '{brief(twice)}': delete those of an older save")
        weights |= found
    reason = "experts have partitions of their own" if experts else _unusable(states)
    if not states or reason is not None:
        kinds = ", ".join(dict.fromkeys(t.dtype for t in weights.values() if t.dtype.startswith(("F", "BF"))))
        why = f"; the fp32 partitions beside them were not read: {reason}" if states else ""
        return Listing(list(weights.values()), (f"Read the weights of {name} ({kinds}){why}.",))
    masters = _masters(place, model, partitions, states)
    note = (
        f"Read the {precision(masters.values())} weights of {counted(len(states), 'partition')} of the optimizer in "
        f"place of the 16-bit ones of {name}."
    )
    return Listing(_with_masters(weights, masters, shared_names(model)), (note,))


def _require_experts(place: Place, model: TorchPart) -> None:
    """Refuse experts without their last layer, or without a layer's last expert: the others say nothing of them."""
    listed = model.content.get("num_experts")
    counts = cast("Sequence[object]", listed) if isinstance(listed, (list, tuple)) else ()
    there = {(layer, expert) for layer, expert in by_numbers(place, EXPERT, "layer", "expert")}
    for layer, count in enumerate(counts):
        n_there = sum(of == layer for of, _ in there)
        if type(count) is int and count > 1 and n_there != count:
            raise SourceError(
                f"{place.where} holds {n_there} experts of its expert layer {layer}, and num_experts in "
                f"'{model.label}' says {count}: fetch all layer_{layer}_expert_* files of one save"
            )


def _unusable(states: Sequence[State]) -> str | None:
    """Say why the fp32 partitions cannot be put together although the 16-bit weights are whole; None where they can."""
    if not all(GROUPS in state for state in states):
        return f"they have no {GROUPS}"
    if any(partition_count(state) is None for state in states):
        return "they do not say how many they are (partition_count)"
    return None


def _masters(
    place: Place, model: TorchPart, partitions: Sequence[TorchPart], states: Sequence[State]
) -> dict[str, StoredTensor]:
    """Cut the parameters of each group out of its vectors."""
    world = count_partitions(place, partitions, states)
    shapes = param_shapes(model)
    vectors = [flat_vectors(state, part, GROUPS) for state, part in zip(states, partitions, strict=True)]
    if any(len(groups) != len(shapes) for groups in vectors):
        raise SourceError(
            f"'{model.label}' lists {len(shapes)} groups of parameters, and the partitions hold others: {REBUILD}"
        )
    masters: dict[str, StoredTensor] = {}
    for number, group in enumerate(shapes):
        strip = Strip.of((part, groups[number]) for part, groups in zip(partitions, vectors, strict=True))
        masters |= _one_after_another(place, group, strip, world)
    return masters


def _one_after_another(place: Place, shapes: Shapes, strip: Strip, world: int) -> dict[str, StoredTensor]:
    """Cut the parameters of a group out of its vectors, which lie end to end. Padding is at the end, or cut off."""
    needed = sum(math.prod(shape) for shape in shapes.values())
    if not 0 <= len(strip) - needed < 2 * world:
        raise sizes_differ(place, len(strip), needed)
    _require_equal_lengths(strip, needed)
    found: dict[str, StoredTensor] = {}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape)
        found[name] = unflatten(name, shape, strip.cut(begin, end))
        begin = end
    return found


def _require_equal_lengths(strip: Strip, needed: int) -> None:
    """Refuse partitions of different lengths, but for those from which the padding was cut off."""
    lengths = [vector.numel() for _, vector in strip.vectors]
    longest = max(lengths)
    for number, length in enumerate(lengths):
        without_padding = min(max(needed - number * longest, 0), longest)
        if length not in (longest, without_padding):
            raise SourceError(
                f"'{strip.vectors[number][0].label}' holds {length} values of a group of parameters where another "
                f"partition holds {longest}: they are not of one checkpoint; fetch all files of one save"
            )


def _with_masters(
    weights: Mapping[str, StoredTensor], masters: Mapping[str, StoredTensor], shared: Mapping[str, str]
) -> list[StoredTensor]:
    """Put the fp32 copies in the place of the 16-bit weights, also for further names of the same memory."""
    owners = {weights[name].storage: name for name in masters if name in weights}
    found: list[StoredTensor] = []
    for name, tensor in weights.items():
        owner = name if name in masters else shared.get(name)
        if owner not in masters and tensor.storage is not None:
            owner = owners.get(tensor.storage)
        master = None if owner is None else masters.get(owner)
        if master is not None and master.shape != tensor.shape:
            raise SourceError(
                f"'{tensor.file}' holds '{brief(name)}' with shape {tensor.shape}, and param_shapes says "
                f"{master.shape}: they are not of one checkpoint"
            )
        found.append(tensor if master is None else replace(master, name=name))
    return [*found, *(tensor for name, tensor in masters.items() if name not in weights)]
