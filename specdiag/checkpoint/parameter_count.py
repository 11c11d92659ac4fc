"""How many of the stored values are parameters: no buffers, masks, codes' scales, tied copies or averages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from specdiag.architecture.names import numbered
from specdiag.architecture.rules import find_skip
from specdiag.checkpoint.tensors import StoredTensor

_NO_PARAMETER = re.compile(
    r"(buffer|integer buffer|boolean buffer|tied to|averaged or lagging copy|an optimizer's state|scale of a quantised|"
    r"quantisation data)\b.*|part of a weight \((pruning|spectral norm)\)"
)
"""Reasons of what nothing trains. The gain of a weight norm is trained, and so is a vector."""


def count_parameters(tensors: Sequence[StoredTensor], reasons: Mapping[str, str]) -> int:
    """Count the values of parameters, as far as it is known what is none.

    Args:
        tensors: everything that a checkpoint stores.
        reasons: why tensors hold no weight matrix, by name.
    """
    return sum(math.prod(t.shape) for t in tensors if not is_no_parameter(t, reasons.get(t.name)))


def is_no_parameter(tensor: StoredTensor, reason: str | None) -> bool:
    """Tell a tensor that nothing trains, by why it is left out, and a vector by its name, such as a running mean.

    Args:
        tensor: stored.
        reason: why it holds no weight matrix; None where it holds one.
    """
    if reason is None:
        return False
    if len(tensor.shape) < 2 and _is_of_no_parameter(find_skip(numbered(tensor.name)) or ""):
        return True
    return _is_of_no_parameter(reason)


@lru_cache(1024)  # most tensors share a few reasons
def _is_of_no_parameter(reason: str) -> bool:
    return _NO_PARAMETER.fullmatch(reason) is not None
