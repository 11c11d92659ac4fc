"""Checks that model and optimizer are finite: no run recovers from NaN or a negative second moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.errors import SourceError
from specdiag.live.parameters import live_parameters, untied

_AT_ONCE = 1 << 24
"""Values that are looked at together."""
_SECOND_MOMENTS = (
    "exp_avg_sq", "max_exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "exp_inf", "square_avg", "acc_delta", "sum",
)  # fmt: skip
"""Second moments of Adam, Adafactor, Adamax, RMSprop, Adadelta and Adagrad, none of which is negative."""
_BACK = "go back to an earlier checkpoint, resume=CHECKPOINT with out=DIR"


def check_model(model: nn.Module, label: str) -> None:
    """Raise SourceError if a Parameter or buffer of a model is not finite.

    Args:
        model: with the weights that a run is about to train.
        label: where they come from, for the message.
    """
    found = model_defect(model)
    if found is not None:
        raise SourceError(f"the weights of {label} cannot be trained on: {found}; {_BACK}")


def check_state(state: Mapping[str, Mapping[str, object]], label: str) -> None:
    """Raise SourceError if a value of an optimizer's state is not finite, or a second moment is negative.

    Args:
        state: by parameter name.
        label: the file that it was read from.
    """
    found = next(_state_defects(state), None)
    if found is not None:
        raise SourceError(f"{label} cannot be continued: {found}; {_BACK}, or start from the weights alone with "
                          "fresh_optimizer=True")  # fmt: skip


def check_plain(content: object, label: str) -> None:
    """Raise SourceError if a number in nested dictionaries and lists is not finite, such as an lr.

    Args:
        content: dictionaries and lists of plain values; tensors are passed over.
        label: the file that it was read from.
    """
    found = next(_plain_defects(content), None)
    if found is not None:
        raise SourceError(f"{label} cannot be continued: {found}; {_BACK}")


def model_defect(model: nn.Module) -> str | None:
    """The first Parameter or buffer with a value that is not finite, in words; None where all are.

    A buffer of zeros and minus infinities is a mask, and right.
    """
    held = [*live_parameters(model).items(), *((n, b) for n, b in model.named_buffers() if not _is_mask(b))]
    return next((found for name, tensor in held if (found := _defect(name, tensor)) is not None), None)


def live_defect(model: nn.Module, optimizer: Optimizer) -> str | None:
    """The same of a model and of its optimizer's state, as a checkpoint would hold them."""
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    held: Mapping[torch.Tensor, Mapping[str, Any]] = cast("Any", optimizer).state
    named = {names[p]: state for p, state in held.items() if p in names}
    return model_defect(model) or next(_state_defects(named), None)


def _state_defects(state: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, own in state.items():
        for key, value in own.items():
            if isinstance(value, torch.Tensor):
                found = _defect(f"{key} of {name}", value, signed=key not in (*_SECOND_MOMENTS, "step"))
                yield from () if found is None else (found,)
            elif isinstance(value, float) and not math.isfinite(value):
                yield f"{key} of {name} is {value}"


def _plain_defects(content: Any, path: str = "") -> Iterator[str]:
    stack: list[tuple[str, Any]] = [(path, content)]
    while stack:
        at, held = stack.pop()
        if isinstance(held, Mapping):
            stack += [(f"{at}.{key}".lstrip("."), inner) for key, inner in cast("Mapping[Any, Any]", held).items()]
        elif isinstance(held, (list, tuple)):
            stack += [(f"{at}[{i}]", inner) for i, inner in enumerate(cast("list[Any]", held))]
        elif isinstance(held, float) and not math.isfinite(held):
            yield f"{at} is {held}"


def _defect(name: str, tensor: torch.Tensor, *, signed: bool = True) -> str | None:
    """Describe a defect in the values of a tensor, in one pass and without a copy."""
    for chunk in _chunks(tensor):
        least, most = (float(end) for end in torch.aminmax(chunk))
        if not (math.isfinite(least) and math.isfinite(most)):
            return _counted(name, tensor)
        if not signed and least < 0:
            return f"{name} has negative values (the least is {least:.3g}), and a mean of squares has none"
    return None


def _counted(name: str, tensor: torch.Tensor) -> str:
    """The number of values that are not finite, and the first of them."""
    bad, first = 0, math.nan
    for chunk in _chunks(tensor):
        odd = chunk[~chunk.isfinite()]
        first = float(odd[0]) if not bad and len(odd) else first
        bad += len(odd)
    return f"{name} has {bad} of {tensor.numel()} values that are not finite (the first is {first})"


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The values of a tensor of floating type, flat; none of another type."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach())
    if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
        return
    for chunk in tensor.detach().reshape(-1).split(_AT_ONCE):
        yield chunk.float() if chunk.element_size() < 2 else chunk  # torch has no comparisons of 8 bits


def _is_mask(buffer: torch.Tensor) -> bool:
    return buffer.is_floating_point() and bool(((buffer == 0) | (buffer == -math.inf)).all())
