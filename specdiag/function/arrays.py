"""Arrays of float64 where they are computed: NumPy's on the CPU, torch's tensors on a CUDA device.

Both are annotated as NumPy's, whose operators, indices, `reshape`, `sum`, `mean`, `cumsum`, `trace` and `T` they share.
The rest is here, and goes by the kind of its argument. MPS has no float64: the CPU computes in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_log = logging.getLogger("specdiag")

Array = NDArray[np.float64]


def is_numpy(values: object) -> bool:
    """Tell NumPy's arrays from torch's tensors.

    Args:
        values: either.
    """
    return isinstance(values, np.ndarray)


def home(device: str) -> str:
    """Name the device on which float64 is computed: the given one if it is CUDA, else the CPU.

    Args:
        device: of the analysis.
    """
    return device if device.startswith("cuda") else "cpu"


def placed(values: Array, device: str) -> Array:
    """Put an array where it is computed.

    Args:
        values: NumPy's or torch's.
        device: of the analysis.
    """
    place = home(device)
    if place == "cpu" or not is_numpy(values):
        return values
    import torch

    return cast("Array", torch.from_numpy(np.ascontiguousarray(values)).to(place))


def on_host(values: Array) -> Array:
    """Give an array as NumPy's.

    Args:
        values: NumPy's or torch's.
    """
    return values if is_numpy(values) else as_tensor(values).cpu().numpy()


def computed(compute: Callable[[str], Array], device: str, name: str) -> Array:
    """Compute on a device, or on the CPU where its memory does not do, and give the result as NumPy's.

    Args:
        compute: takes the device.
        device: of the analysis.
        name: of the result, for the log.
    """
    place = home(device)
    if place == "cpu":
        return compute(place)
    import torch

    try:
        return on_host(compute(place))
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        _log.warning("out of memory on %s: the CPU computes the function of %s", place, name)
    return compute("cpu")


def permuted(values: Array, *axes: int) -> Array:
    """Reorder axes.

    Args:
        values: any shape.
        axes: all of them, in the new order.
    """
    return values.transpose(axes) if is_numpy(values) else as_array(as_tensor(values).permute(axes))


def swapped(values: Array) -> Array:
    """Transpose each matrix.

    Args:
        values: shape [..., n, m].
    """
    return values.swapaxes(-1, -2)


def repeated(values: Array, times: int) -> Array:
    """Repeat each entry of the first axis.

    Args:
        values: shape [n, ...].
        times: how often.
    """
    if is_numpy(values):
        return np.repeat(values, times, axis=0)
    return as_array(as_tensor(values).repeat_interleave(times, 0))


def joined(parts: Sequence[Array], axis: int = 0) -> Array:
    """Lay arrays one after the other.

    Args:
        parts: at least one.
        axis: along which.
    """
    if is_numpy(parts[0]):
        return np.concatenate(parts, axis)
    import torch

    return as_array(torch.cat([as_tensor(part) for part in parts], axis))


def norms(values: Array, *axes: int) -> Array:
    """Compute Euclidean norms.

    Args:
        values: any shape.
        axes: those that vanish, counted from the first.
    """
    if is_numpy(values):
        every = "abcdefgh"[: values.ndim]
        kept = "".join(name for axis, name in enumerate(every) if axis not in axes)
        return cast("Array", np.einsum(f"{every},{every}->{kept}", values, values)) ** 0.5
    return (values * values).sum(axis=axes) ** 0.5


def nonzero(values: Array) -> Array:
    """Put 1 in place of what is not positive, for a division.

    Args:
        values: any shape.
    """
    if is_numpy(values):
        return np.where(values > 0, values, 1.0)
    import torch

    return as_array(torch.where(as_tensor(values) > 0, as_tensor(values), 1.0))


def filled(like: Array, value: float) -> Array:
    """Make an array of one value.

    Args:
        like: has its shape and place.
        value: of all entries.
    """
    if is_numpy(like):
        return np.full_like(like, value)
    import torch

    return as_array(torch.full_like(as_tensor(like), value))


def largest_of(values: Array, axis: int) -> Array:
    """Find the largest along an axis.

    Args:
        values: any shape.
        axis: that vanishes.
    """
    return np.amax(values, axis) if is_numpy(values) else as_array(as_tensor(values).amax(axis))


def larger(one: Array, other: Array) -> Array:
    """Take the larger of two arrays, entry by entry.

    Args:
        one: any shape.
        other: likewise.
    """
    if is_numpy(one):
        return np.maximum(one, other)
    return as_array(as_tensor(one).maximum(as_tensor(other)))


def smaller(one: Array, other: Array) -> Array:
    """Take the smaller of two arrays, entry by entry.

    Args:
        one: any shape.
        other: likewise.
    """
    return -larger(-one, -other)


def living_ratio(part: Array, whole: Array) -> Array:
    """Divide where both are positive; 1 elsewhere.

    Args:
        part: any shape, not negative.
        whole: likewise.
    """
    lives = (part > 0) & (whole > 0)
    return nonzero(part * lives) / nonzero(whole * lives)


def falling(values: Array) -> tuple[Array, NDArray[np.intp]]:
    """Sort the last axis, the largest first.

    Args:
        values: shape [..., n].

    Returns:
        The values, and their places before.
    """
    if is_numpy(values):
        order = np.argsort(-values, axis=-1)
        return np.take_along_axis(values, order, axis=-1), order
    found = as_tensor(values).sort(dim=-1, descending=True)
    return as_array(found.values), cast("Any", found.indices)


def inner(one: Array, other: Array) -> float:
    """Sum the products of all entries.

    Args:
        one: any shape.
        other: the same.
    """
    if is_numpy(one):
        return float(np.vdot(one, other))
    return float(as_tensor(one).reshape(-1) @ as_tensor(other).reshape(-1))


def is_finite(values: Array) -> bool:
    """Tell whether no value is infinite or NaN.

    Args:
        values: any shape.
    """
    return bool((np.isfinite(values) if is_numpy(values) else as_tensor(values).isfinite()).all())


def as_tensor(values: Array) -> torch.Tensor:
    """Give the type of torch to what is not NumPy's.

    Args:
        values: torch's.
    """
    return cast("torch.Tensor", values)


def as_array(values: torch.Tensor) -> Array:
    """Give the common type to a tensor.

    Args:
        values: torch's.
    """
    return cast("Array", values)
