"""Signs that the files of several processes come from one save: steps, and settings that all processes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.layouts.pieces import TorchPart
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError


def require_same(files: Sequence[TorchPart], values: Iterable[object], name: str) -> None:
    """Refuse files of different saves.

    Args:
        files: of all processes.
        values: what each says; None where it says nothing, and anything but a number or text counts as nothing.
        name: of that, for messages.

    Raises:
        SourceError: two of them differ.
    """
    said = [(file, value) for file, value in zip(files, values, strict=True) if isinstance(value, (int, float, str))]
    first, value = said[0] if said else (None, None)
    odd = next(((file, other) for file, other in said if other != value), None)
    if first is not None and odd is not None:
        raise SourceError(
            f"'{first.label}' has {name} {brief(repr(value))}, and '{odd[0].label}' has {brief(repr(odd[1]))}: they "
            "are not of one checkpoint; fetch all files of one save"
        )


def optimizer_step(state: Mapping[object, object], part: TorchPart) -> float | None:
    """Read how many steps an optimizer of DeepSpeed ZeRO has made; None where it is not said.

    Args:
        state: the optimizer's state in a file of a partition.
        part: that file.
    """
    base = state.get("base_optimizer_state", state.get("optimizer_state_dict"))
    inner = cast("Mapping[object, object]", base) if isinstance(base, Mapping) else {}
    places = (base, inner.get("param_groups"), inner.get("state"))
    said = [_entry(_first(place), "step") for place in places] + [state.get("base_optimizer_state_step")]
    return next((step for value in said if (step := _number(value, part)) is not None), None)


def _first(holder: object) -> object:
    if isinstance(holder, Mapping):
        return next(iter(cast("Mapping[object, object]", holder).values()), None)
    return holder[0] if isinstance(holder, (list, tuple)) and holder else None


def _entry(holder: object, key: str) -> object:
    return cast("Mapping[object, object]", holder).get(key) if isinstance(holder, Mapping) else None


def _number(value: object, part: TorchPart) -> float | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        stored = part.stored("step", value)
        return float(stored.read(None).reshape(()).item()) if stored.dtype in ("F32", "F64", "I64", "I32") else None
    return float(value) if isinstance(value, (int, float)) and abs(value) < 1 << 53 else None
