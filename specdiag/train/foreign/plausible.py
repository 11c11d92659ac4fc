"""Checks of the values in a saved Adam: what no optimizer writes is damage, and would go into a run without a word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch

from specdiag.errors import SourceError

_NUMBERS = ("lr", "initial_lr", "eps", "weight_decay")
_FLAGS = ("amsgrad", "maximize", "fused", "foreach", "capturable", "differentiable", "decoupled_weight_decay")
_LARGEST_STEP = 1 << 53


def check_options(label: str, groups: Iterable[Mapping[str, object]]) -> None:
    """Check the options of parameter groups.

    Args:
        label: name of the file, for messages.
        groups: as they were saved.

    Raises:
        SourceError: a rate is no finite number from 0 on, betas are no two numbers from 0 to below 1, or a flag is
            neither true nor false.
    """
    for group in groups:
        for key in group.keys() & _NUMBERS:
            number = _number(group[key])
            if number is None or not 0 <= number < math.inf:
                raise _damaged(label, key, group[key], "a number from 0 on")
        for key in group.keys() & _FLAGS:
            if not isinstance(group[key], bool | None):
                raise _damaged(label, key, group[key], "true or false")
        betas = group.get("betas", (0.0, 0.0))
        pair = list(cast("Iterable[object]", betas)) if isinstance(betas, list | tuple) else []
        if len(pair) != 2 or not all((b := _number(value)) is not None and 0 <= b < 1 for value in pair):
            raise _damaged(label, "betas", betas, "two numbers from 0 to below 1")


def check_step(label: str, step: object) -> int:
    """Read a step counter.

    Args:
        label: name of the file, for messages.
        step: as it was saved.

    Raises:
        SourceError: it is no whole number from 0 on.
    """
    number = _number(step)
    if number is None or not 0 <= number < _LARGEST_STEP or number != int(number):
        raise _damaged(label, "step", step, "a whole number from 0 on")
    return int(number)


def check_moment(label: str, name: str, key: str, moment: torch.Tensor) -> None:
    """Check the values of a moment.

    Args:
        label: name of the file, for messages.
        name: of the parameter.
        key: `exp_avg` or `exp_avg_sq`.
        moment: its values.

    Raises:
        SourceError: they are no floating-point numbers, not finite, or negative where they are means of squares.
    """
    if not moment.is_floating_point():
        kind = str(moment.dtype).removeprefix("torch.")
        raise SourceError(f"{label} stores {key} of {name} as {kind}, which holds no moments: it is damaged")
    if not moment.numel():
        return
    low, high = (float(end) for end in torch.aminmax(moment.detach().reshape(-1)))
    if not -math.inf < low <= high < math.inf:
        raise SourceError(
            f"{label} has NaN or infinite values in {key} of {name}: the run diverged, or the file is damaged; name an "
            "earlier checkpoint"
        )
    if key == "exp_avg_sq" and low < 0:
        raise SourceError(f"{label} has {low:g} in {key} of {name}, a mean of squares: it is damaged")


def _number(value: object) -> float | None:
    """Read a number, also of a tensor with one element; None for anything else."""
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _damaged(label: str, key: str, value: object, right: str) -> SourceError:
    shown = f"{value:g}" if isinstance(value, float) else _brief(value)
    return SourceError(f"{label} has {shown} for {key}, which is {right}: it is damaged")


def _brief(value: object) -> str:
    """Write plain values; of containers, which may be endless, only the kind."""
    if isinstance(value, torch.Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"
    return f"{value!r:.40}" if isinstance(value, str | int | None) else f"a {type(value).__name__}"
