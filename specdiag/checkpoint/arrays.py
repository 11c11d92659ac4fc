"""NumPy arrays as the tensors that they would be saved as. Arrays that are read-only or not in C order are copied."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from specdiag.errors import UsageError
from specdiag.spectra.float_types import RawArray
from specdiag.text import checks

_CODES = {
    name: getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
}
"""Types that ml_dtypes adds to NumPy, and torch names alike."""


def with_tensors(state: Mapping[str, object]) -> dict[str, object]:
    """Replace the arrays of a state dict by tensors.

    Args:
        state: names, and arrays, tensors or anything else.

    Returns:
        The same, with a tensor for each array of numbers; everything else as it was.

    Raises:
        UsageError: an array is masked, or its numbers are of a type that torch lacks.
    """
    return {name: _tensor(name, value) if isinstance(value, np.ndarray) else value for name, value in state.items()}


def _tensor(name: str, array: RawArray) -> object:
    if isinstance(array, np.ma.MaskedArray):
        raise UsageError(f"{checks.shown(name)} is a masked array, which no checkpoint holds: give its .filled(0)")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch shares no memory that is read-only, and none that is walked backwards.
    array = np.require(array, requirements=("C", "W"))
    if kind := _CODES.get(array.dtype.name):
        return torch.from_numpy(array.view(f"i{array.itemsize}")).view(kind)
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        if array.dtype.kind not in "fcV":  # texts, objects, dates: no weights
            return array
        raise UsageError(
            f"{checks.shown(name)} is an array of {array.dtype}, for which torch has no type: convert it, as with "
            ".astype('float32')"
        ) from error
