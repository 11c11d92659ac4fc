"""Recognising by its content what a training script saves beside weights: optimizers, schedules, gradient scalers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from msgspec.structs import replace

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted
from specdiag.text.names import listed

MOMENTS = frozenset(
    (
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_diff"),
        *("exp_avg_slow", "exp_avg_fast", "momentum_buffer", "square_avg", "grad_avg", "acc_delta", "row_var"),
        *("col_var", "qmap1", "qmap2", "absmax1", "absmax2"),
    )
)
"""Names that optimizers give to what they keep for each parameter, and that no module has."""
_ADAM = frozenset(("mu", "nu"))
"""The two moments of Adam, as optax names them. Modules may be called so, but no two with the same tensors."""
_ROOTS = frozenset(("opt_state", "optimizer", "optimizer_state", "optimizer_weights"))
"""First segments of the names below which a file of arrays keeps an optimizer's state."""
_DEPTH = 4
_PARTITIONS = ("fp32_flat_groups", "single_partition_of_fp32_groups", "base_optimizer_state")
OPTIMIZER = "an optimizer's state"
_PARTITION = "an optimizer's state, partitioned by DeepSpeed ZeRO"
_SCHEDULE = "a learning-rate schedule's state"
_SCALER = "a gradient scaler's state"


def training_state(value: object) -> str | None:
    """Recognise the state of an optimizer, a schedule or a gradient scaler.

    Args:
        value: a container of a torch file. Only its own keys and those of its first entry are looked at.

    Returns:
        A name for it, for messages; None for anything else.
    """
    if not isinstance(value, Mapping):
        return None
    entries = cast("Mapping[object, object]", value)
    if _has_groups(entries) or _is_moments(entries) or _is_moments(next(iter(entries.values()), None)):
        return OPTIMIZER
    if any(name in entries for name in _PARTITIONS):
        return _PARTITION
    if "last_epoch" in entries and ("_step_count" in entries or "base_lrs" in entries or "_last_lr" in entries):
        return _SCHEDULE
    return _SCALER if "growth_factor" in entries and "backoff_factor" in entries else None


def refuse_training_state(content: Mapping[object, object], label: str) -> None:
    """Refuse a file that holds the state of an optimizer, a schedule or a gradient scaler, and nothing else.

    Args:
        content: of the file.
        label: its name in messages.

    Raises:
        SourceError: it is such a file.
    """
    kind = training_state(content)
    if kind is not None:
        raise SourceError(f"'{label}' is {kind}, not a model: give the file of the weights")


def mark_moments(tensors: Sequence[StoredTensor], where: str) -> tuple[list[StoredTensor], list[str]]:
    """Leave out an optimizer's tensors, recognised by the ends of their names, whatever the format of their file.

    Args:
        tensors: all tensors of a checkpoint.
        where: what holds them, for messages.

    Returns:
        The tensors, moments with the reason why they are no matrices; one note, or none.

    Raises:
        SourceError: all tensors are an optimizer's.
    """
    last = [tensor.name.rpartition(".")[2] for tensor in tensors]
    states = [end in MOMENTS or _is_below(tensor.name) for tensor, end in zip(tensors, last, strict=True)]
    if not any(states):
        return list(tensors), []
    if all(is_state or end == "step" for is_state, end in zip(states, last, strict=True)):
        raise SourceError(f"{where} is {OPTIMIZER} ({listed(dict.fromkeys(last))}): give the file of the weights")
    marked = [
        replace(tensor, reason=OPTIMIZER) if is_state else tensor
        for tensor, is_state in zip(tensors, states, strict=True)
    ]
    return marked, [f"Left out {counted(sum(states), 'tensor')} of {OPTIMIZER}."]


def _is_below(name: str) -> bool:
    """Tell whether a name begins as those do under which Flax and Keras keep an optimizer's state."""
    first, dot, _ = name.partition(".")
    return bool(dot) and first in _ROOTS


def _has_groups(entries: Mapping[object, object]) -> bool:
    groups = entries.get("param_groups")
    return isinstance(groups, (Sequence, Mapping)) and ("state" in entries or _lists_parameters(groups))


def _lists_parameters(groups: object) -> bool:
    first = cast("Sequence[object]", groups)[0] if isinstance(groups, (list, tuple)) and groups else None
    return isinstance(first, Mapping) and "params" in first


def _is_moments(value: object) -> bool:
    """Tell moments, of one parameter or of all, from a dictionary that holds the weights beside them."""
    if not isinstance(value, Mapping):
        return False
    entries = cast("Mapping[object, object]", value)
    first, second = entries.get("mu"), entries.get("nu")
    are_adams = isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys()
    names = MOMENTS | _ADAM if are_adams else MOMENTS
    return not names.isdisjoint(entries) and not any(
        isinstance(one, Mapping) and name not in names and _has_tensors(cast("Mapping[object, object]", one))
        for name, one in entries.items()
    )


def _has_tensors(value: Mapping[object, object], depth: int = _DEPTH) -> bool:
    """Tell whether there are tensors below, by their shape: torch takes seconds to import."""
    return any(
        _has_tensors(cast("Mapping[object, object]", one), depth - 1)
        if isinstance(one, Mapping) and depth
        else hasattr(one, "shape")
        for one in value.values()
    )
