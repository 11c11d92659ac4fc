"""Stage 3 of DeepSpeed ZeRO, in which every parameter is cut among all processes, padded to equal pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from msgspec.structs import replace

from specdiag.checkpoint.layouts.one_save import require_same
from specdiag.checkpoint.layouts.pieces import Place, TorchPart
from specdiag.checkpoint.layouts.strips import Strip, unflatten
from specdiag.checkpoint.layouts.zero_state import (
    FLAT_GROUPS,
    State,
    count_partitions,
    flat_vectors,
    param_shapes,
    parse_shapes,
    precision,
    shared_names,
    sizes_differ,
)
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted
from specdiag.text.names import listed


def read_stage_3(
    place: Place, models: Sequence[TorchPart], partitions: Sequence[TorchPart], states: Sequence[State]
) -> Listing:
    """Rebuild the fp32 weights.

    Args:
        place: the folder.
        models: the files of model states, which list the shapes, by process.
        partitions: the files of the optimizer by process.
        states: the optimizer's state in each.

    Returns:
        The tensors, and a note.

    Raises:
        SourceError: a file is missing, or files do not fit together.
    """
    if not partitions:
        raise SourceError(
            f"{place.where} lacks the files *_optim_states.pt, in which ZeRO-3 keeps the weights: fetch them"
        )
    world = count_partitions(place, partitions, states)
    if len(models) != world:
        raise SourceError(f"{place.where} holds {len(models)} of {world} files of model states: {_lost(models, world)}")
    require_same(models, (model.content.get("global_steps") for model in models), "global_steps")
    _require_same_shapes(models)
    shapes = {name: shape for group in param_shapes(models[0]) for name, shape in group.items()}
    ranks = [
        Strip.of((part, vector) for vector in flat_vectors(state, part, FLAT_GROUPS))
        for state, part in zip(states, partitions, strict=True)
    ]
    needed = sum(math.ceil(math.prod(shape) / world) for shape in shapes.values())
    wrong = next((len(rank) for rank in ranks if len(rank) != needed), None)
    if wrong is not None:
        raise sizes_differ(place, wrong, needed)
    masters = _cut(shapes, ranks)
    found = {**_buffers(models[0]), **masters, **_frozen(place, models)}
    shared = shared_names(models[0])
    found |= {alias: replace(found[name], name=alias) for alias, name in shared.items() if name in found}
    note = f"Rebuilt the {precision(masters.values())} weights from {counted(world, 'partition')} of ZeRO-3."
    return Listing(list(found.values()), (note,))


def _require_same_shapes(models: Sequence[TorchPart]) -> None:
    """Refuse model states that list other parameters, or the same in another order."""

    def declared(model: TorchPart) -> list[list[tuple[str, tuple[int, ...]]]]:
        frozen = parse_shapes(model.content.get("frozen_param_shapes"))
        return [list(group.items()) for group in (*param_shapes(model), frozen)]

    first = declared(models[0])
    odd = next((model for model in models[1:] if declared(model) != first), None)
    if odd is not None:
        raise SourceError(
            f"'{models[0].label}' and '{odd.label}' list different parameters: they are not of one checkpoint; fetch "
            "all files of one save"
        )


def _lost(models: Sequence[TorchPart], world: int) -> str:
    """Name the first file that is not there, where there are too few."""
    if len(models) > world:
        return "some are of another checkpoint; fetch all files of one save"
    names = (f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(world))
    lost = [name for name in names if not any(model.label.endswith(name) for model in models)]
    return f"fetch {listed(lost, 1)}"


def _cut(shapes: Mapping[str, tuple[int, ...]], ranks: Sequence[Strip]) -> dict[str, StoredTensor]:
    """Take piece r of each parameter from process r, at the same place of all vectors; the last ones are padded."""
    found: dict[str, StoredTensor] = {}
    begin = 0
    for name, shape in shapes.items():
        n_values = math.prod(shape)
        step = math.ceil(n_values / len(ranks))
        pieces: list[tuple[TorchPart, torch.Tensor]] = []
        for number, rank in enumerate(ranks):
            size = min(step, n_values - number * step)
            pieces += rank.cut(begin, begin + size) if size > 0 else ()
        found[name] = unflatten(name, shape, pieces or ranks[0].cut(0, 0))
        begin += step
    return found


def _buffers(model: TorchPart) -> dict[str, StoredTensor]:
    """List the buffers, which every process holds whole."""
    stated = model.content.get("buffer_names")
    names = set(map(str, cast("Sequence[object]", stated))) if isinstance(stated, (list, tuple)) else set[str]()
    return {name: tensor for name, tensor in model.tensors(model.content.get("module")).items() if name in names}


def _frozen(place: Place, models: Sequence[TorchPart]) -> dict[str, StoredTensor]:
    """Join the parameters that no optimizer holds, cut like the others."""
    found: dict[str, StoredTensor] = {}
    for name, shape in parse_shapes(models[0].content.get("frozen_param_shapes")).items():
        strip, needed = Strip.of((model, _fragment(model, name)) for model in models), math.prod(shape)
        if not needed <= len(strip) < needed + len(models):
            raise sizes_differ(place, len(strip), needed)
        found[name] = unflatten(name, shape, strip.cut(0, needed))
    return found


def _fragment(model: TorchPart, name: str) -> torch.Tensor:
    fragments = model.content.get("frozen_param_fragments")
    fragment = cast("Mapping[object, object]", fragments).get(name) if isinstance(fragments, Mapping) else None
    if not isinstance(fragment, torch.Tensor) or not fragment.is_contiguous():
        raise SourceError(f"'{model.label}' lacks its piece of the frozen '{brief(name)}': fetch it again")
    return fragment.view(-1)
