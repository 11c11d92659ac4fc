"""Calls of an optimizer's step: one that raises, and one that comes from the step of a subclass."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import MethodType
from typing import cast

from torch.optim import Optimizer


def guarded_step(optimizer: Optimizer, take_back: Callable[[Optimizer], None]) -> MethodType:
    """Return the step of an optimizer with a call where it raises; torch has no hook for that.

    Args:
        optimizer: whose `step` is returned anew.
        take_back: called with the optimizer after an exception.
    """
    step = optimizer.step

    @functools.wraps(step)
    def guarded(stepped: Optimizer, *args: object, **kwargs: object) -> object:
        try:
            return cast("Callable[..., object]", step)(*args, **kwargs)
        except BaseException:
            take_back(stepped)
            raise

    return MethodType(guarded, optimizer)


def is_within_its_step(optimizer: Optimizer) -> bool:
    """Recognise a hook that comes from a `super().step()`: torch runs the hooks once for the step of each class.

    It looks through the stack. A count of entries and exits would go wrong after a step that raises.

    Args:
        optimizer: whose hook asks; it must ask directly.
    """
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    hooked, frame = frame.f_code, frame.f_back
    while frame is not None:
        if frame.f_code is hooked and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False
