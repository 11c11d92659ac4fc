"""The state that DeepSpeed ZeRO saves: the shapes of its parameters, and the partitions of its optimizer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.one_save import optimizer_step, require_same
from specdiag.checkpoint.layouts.pieces import LARGEST, Place, TorchPart
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

MODEL = re.compile(r"mp_rank_(?P<model>\d+)_model_states\.pt")
DIVIDED = re.compile(r"zero_pp_rank_(?P<data>\d+)_mp_rank_(?P<model>\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(bf16_|fp16_)?zero_pp_rank_(?P<data>\d+)_mp_rank_(?P<model>\d+)_optim_states\.pt")
EXPERT = re.compile(r"layer_(?P<layer>\d+)_expert_(?P<expert>\d+)_mp_rank_(?P<model>\d+)_model_states\.pt")
GROUPS = "single_partition_of_fp32_groups"
"""Key of the vectors of stages 1 and 2, one a group of parameters."""
FLAT_GROUPS = "fp32_flat_groups"
"""Key of the vectors of stage 3, which lie end to end."""
REBUILD = "rebuild it with its zero_to_fp32.py"

State = Mapping[object, object]
Shapes = dict[str, tuple[int, ...]]


def by_rank(place: Place, pattern: re.Pattern[str]) -> dict[int, str]:
    """Find the files of a kind by the number of their process, in the order of these numbers.

    Args:
        place: the folder.
        pattern: of their names, with a group `data`.

    Raises:
        SourceError: two files are of one process.
    """
    return {rank: name for (rank,), name in by_numbers(place, pattern, "data").items()}


def optimizer_state(partition: TorchPart) -> State:
    """Give the optimizer's state in a file of a partition; empty where there is none."""
    state = partition.content.get("optimizer_state_dict")
    return cast("State", state) if isinstance(state, Mapping) else {}


def partition_count(state: State) -> int | None:
    """Read into how many partitions the optimizer was divided; None where groups differ, or it is not said."""
    count = state.get("partition_count")
    counts = cast("Sequence[object]", count) if isinstance(count, (list, tuple)) else [count]
    numbers = {count if type(count) is int else None for count in counts} or {None}
    only = next(iter(numbers))
    return only if len(numbers) == 1 and only is not None and 0 < only < 1 << 20 else None


def count_partitions(place: Place, partitions: Sequence[TorchPart], states: Sequence[State]) -> int:
    """Compare the number of files with the number of partitions that they name, and the steps of all.

    Args:
        place: the folder.
        partitions: the files of the optimizer.
        states: the optimizer's state in each.

    Returns:
        The number of partitions.

    Raises:
        SourceError: it is not said, a file is missing, or some are of another checkpoint.
    """
    counts = {partition_count(state) for state in states}
    world = next(iter(counts))
    if len(counts) > 1 or world is None:
        raise SourceError(
            f"'{partitions[0].label}' does not say into how many partitions the optimizer was divided "
            f"(partition_count): {REBUILD}"
        )
    there = list(by_rank(place, OPTIMIZER))
    missing = [rank for rank in range(world) if rank not in there]
    if missing:
        name = re.sub(r"pp_rank_\d+", f"pp_rank_{missing[0]}", partitions[0].label)
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        whole = next((place.label(name) for name in place.names if MODEL.fullmatch(name)), None)
        or_else = f"; '{whole}' has the 16-bit weights" if whole else ""
        raise SourceError(
            f"{place.where} holds {len(there)} of {world} partitions of the fp32 weights: '{name}'{more} is missing; "
            f"fetch it{or_else}"
        )
    if len(there) != world:
        raise SourceError(
            f"{place.where} holds {len(there)} partitions, and each says that they are {world}: some are of an older "
            "checkpoint; delete those"
        )
    steps = [optimizer_step(state, part) for state, part in zip(states, partitions, strict=True)]
    require_same(partitions, steps, "optimizer step")
    return world


def flat_vectors(state: State, part: TorchPart, key: str) -> list[torch.Tensor]:
    """Give the vectors of a partition, which hold its parameters one after another.

    Args:
        state: the optimizer's state.
        part: the file that holds it.
        key: of the vectors.

    Raises:
        SourceError: there are none.
    """
    groups = state.get(key)
    vectors = list(cast("Sequence[object]", groups)) if isinstance(groups, (list, tuple)) else []
    if not vectors or not all(isinstance(vector, torch.Tensor) and vector.dim() == 1 for vector in vectors):
        raise SourceError(f"'{part.label}' holds no vectors under {key}: {REBUILD}")
    found = cast("list[torch.Tensor]", vectors)
    odd = next((vector.dtype for vector in found if not vector.is_floating_point()), None)
    if odd is not None:
        raise SourceError(f"'{part.label}' holds values of {odd} under {key}, which are no weights: save it again")
    return found


def param_shapes(model: TorchPart) -> list[Shapes]:
    """Read the parameters of each optimizer group, in the order in which they are flattened.

    Args:
        model: a file of model states.

    Raises:
        SourceError: it does not list them, or a shape is none.
    """
    listed = model.content.get("param_shapes")
    groups = cast("Sequence[object]", listed) if isinstance(listed, (list, tuple)) else [listed]
    if not groups or not all(isinstance(group, Mapping) for group in groups):
        raise SourceError(f"'{model.label}' does not list the shapes of its parameters (param_shapes): {REBUILD}")
    shapes = [parse_shapes(group) for group in groups]
    if len({name for group in shapes for name in group}) != sum(map(len, shapes)):
        raise SourceError(f"'{model.label}' lists a parameter in two groups: {REBUILD}")
    return shapes


def parse_shapes(group: object) -> Shapes:
    """Check the names and shapes of a group of parameters; none where it is no dictionary.

    Args:
        group: as the file holds it.

    Raises:
        SourceError: a shape is none.
    """
    entries = cast("State", group).items() if isinstance(group, Mapping) else ()
    shapes: Shapes = {}
    for name, size in entries:
        sizes = cast("tuple[object, ...]", size) if isinstance(size, tuple) else (None,)
        if not all(type(n) is int and n >= 0 for n in sizes) or math.prod(cast("tuple[int, ...]", sizes)) > LARGEST:
            raise SourceError(f"param_shapes gives {brief(repr(name))} the shape {brief(repr(size))}: {REBUILD}")
        shapes[str(name)] = cast("tuple[int, ...]", sizes)
    return shapes


def shared_names(model: TorchPart) -> dict[str, str]:
    """Read further names of parameters, with the name under which each is stored."""
    pairs = model.content.get("shared_params")
    entries = cast("State", pairs).items() if isinstance(pairs, Mapping) else ()
    return {alias: name for alias, name in entries if isinstance(alias, str) and isinstance(name, str)}


def sizes_differ(place: Place, there: int, needed: int) -> SourceError:
    """Make the error of files that hold more or fewer values than their shapes.

    Args:
        place: the folder.
        there: number of values that the files hold.
        needed: number of values that the shapes have.
    """
    return SourceError(
        f"{place.where} holds {there} values where param_shapes needs {needed}: its files are not of one checkpoint; "
        "save it again, or fetch it again"
    )


def precision(tensors: Iterable[StoredTensor]) -> str:
    """Name the types of weights, as a rule fp32; DeepSpeed has a setting that keeps them in fp16.

    Args:
        tensors: rebuilt from an optimizer.
    """
    kinds = dict.fromkeys(tensor.dtype for tensor in tensors)
    return "fp32" if list(kinds) == ["F32"] else ", ".join(kinds)
