"""Checks that model and optimizer are finite, because no run recovers from NaN or a negative second moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import SourceError
from specdiag.live.parameters import live_parameters, untied
from specdiag.system.gathering import is_sharded

_AT_ONCE = 1 << 24
"""Values that are checked in one pass."""
_SECOND_MOMENTS = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_inf", "square_avg", "acc_delta", "sum",
)  # fmt: skip
"""State of Adam, Adafactor, Adamax, RMSprop, Adadelta and Adagrad that is never negative."""
_BACK = "go back to an earlier checkpoint, resume=CHECKPOINT with out=DIR"


def check_model(model: nn.Module, label: str) -> None:
    """Raise SourceError if a Parameter or buffer of a model is not finite.

    Args:
        model: model with the weights that a run is about to train.
        label: source of the weights, for the message.
    """
    defect = model_defect(model)
    if defect is not None:
        raise SourceError(f"the weights of {label} cannot be trained on: {defect}; {_BACK}")


def check_state(state: Mapping[str, Mapping[str, object]], label: str) -> None:
    """Raise SourceError if a value of an optimizer's state is not finite, or a second moment is negative.

    Args:
        state: state by parameter name.
        label: file of the state, for the message.
    """
    defect = next(_state_defects(state), None)
    if defect is not None:
        raise SourceError(f"{label} cannot be continued: {defect}; {_BACK}, or start from the weights alone with "
                          "fresh_optimizer=True")  # fmt: skip


def check_plain(content: object, label: str) -> None:
    """Raise SourceError if a number in nested dictionaries and lists is not finite, such as an lr.

    Args:
        content: dictionaries and lists of plain values; tensors are skipped.
        label: file of the content, for the message.
    """
    defect = next(_plain_defects(content), None)
    if defect is not None:
        raise SourceError(f"{label} cannot be continued: {defect}; {_BACK}")


def model_defect(model: nn.Module) -> str | None:
    """Describe the first Parameter or buffer with a value that is not finite; None if all are finite.

    A buffer of zeros and minus infinities is a mask, and is accepted.
    """
    tensors = [*live_parameters(model).items(), *((n, b) for n, b in model.named_buffers() if not _is_mask(b))]
    return next((defect for name, tensor in tensors if (defect := _defect(name, tensor)) is not None), None)


def live_defect(model: nn.Module, optimizer: Optimizer) -> str | None:
    """Describe the first value of a model or of its optimizer's state that is not finite; None if all are finite.

    Args:
        model: model to be saved.
        optimizer: its optimizer.
    """
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    states: Mapping[torch.Tensor, Mapping[str, Any]] = cast("Any", optimizer).state
    states_by_name = {names[p]: state for p, state in states.items() if p in names}
    return model_defect(model) or next(_state_defects(states_by_name), None)


def _state_defects(state: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, values in state.items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                defect = _defect(f"{key} of {name}", value, signed=key not in (*_SECOND_MOMENTS, "step"))
                yield from () if defect is None else (defect,)
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{key} of {name} is {value}"


def _plain_defects(content: Any, path: str = "") -> Iterator[str]:
    stack: list[tuple[str, Any]] = [(path, content)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, Mapping):
            stack += [(f"{place}.{key}".lstrip("."), inner) for key, inner in cast("Mapping[Any, Any]", value).items()]
        elif isinstance(value, (list, tuple)):
            stack += [(f"{place}[{i}]", inner) for i, inner in enumerate(cast("list[Any]", value))]
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{place} is {value}"


def _defect(name: str, tensor: torch.Tensor, *, signed: bool = True) -> str | None:
    """Describe a defect in the values of a tensor, in one pass and without a copy; None if there is none.

    Only the shard of this process is looked at.
    """
    if is_sharded(tensor):
        tensor = cast("Any", tensor.detach()).to_local()
    for chunk in _chunks(tensor):
        least, most = (float(end) for end in torch.aminmax(chunk))
        if not (math.isfinite(least) and math.isfinite(most)):
            return _counted(name, tensor)
        if not signed and least < 0:
            return f"{name} has negative values (the least is {least:.3g}), and a mean of squares has none"
    return None


def _counted(name: str, tensor: torch.Tensor) -> str:
    """Count the values that are not finite, and name the first of them."""
    n_bad, first = 0, math.nan
    for chunk in _chunks(tensor):
        bad_values = chunk[~chunk.isfinite()]
        first = float(bad_values[0]) if not n_bad and len(bad_values) else first
        n_bad += len(bad_values)
    return f"{name} has {n_bad} of {tensor.numel()} values that are not finite (the first is {first})"


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the values of a floating tensor in flat pieces; nothing for another type."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach())
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return
    for chunk in tensor.detach().reshape(-1).split(_AT_ONCE):
        yield chunk.float() if chunk.element_size() < 2 else chunk  # torch has no comparisons of 8 bits


def _is_mask(buffer: torch.Tensor) -> bool:
    return buffer.is_floating_point() and bool(((buffer == 0) | (buffer == -math.inf)).all())
