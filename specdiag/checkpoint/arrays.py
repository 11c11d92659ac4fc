"""NumPy arrays as the tensors that they would be saved as: no copy where torch can share their memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from specdiag.spectra.float_types import RawArray

_CODES = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""Types that ml_dtypes adds to NumPy, and torch names alike."""


def with_tensors(state: Mapping[str, object]) -> dict[str, object]:
    """Replace the arrays of a state dict by tensors.

    Args:
        state: names, and arrays, tensors or anything else.

    Returns:
        The same, with a tensor for each array whose type torch has; everything else as it was.
    """
    return {name: _tensor(value) if isinstance(value, np.ndarray) else value for name, value in state.items()}


def _tensor(array: RawArray) -> object:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch shares no memory that is read-only, and none that is walked backwards.
    array = np.require(array, requirements=("C", "W"))
    if kind := _CODES.get(array.dtype.name):
        return torch.from_numpy(array.view(f"i{array.itemsize}")).view(kind)
    try:
        return torch.from_numpy(array)
    except TypeError:  # texts, objects, dates: no weights
        return array
