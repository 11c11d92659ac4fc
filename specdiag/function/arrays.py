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
    return values if is_numpy(values) else _tensor(values).cpu().numpy()


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
    return values.transpose(axes) if is_numpy(values) else _array(_tensor(values).permute(axes))


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
    return _array(_tensor(values).repeat_interleave(times, 0))


def joined(parts: Sequence[Array], axis: int = 0) -> Array:
    """Lay arrays one after the other.

    Args:
        parts: at least one.
        axis: along which.
    """
    if is_numpy(parts[0]):
        return np.concatenate(parts, axis)
    import torch

    return _array(torch.cat([_tensor(part) for part in parts], axis))


def norms(values: Array, *axes: int) -> Array:
    """Compute Euclidean norms.

    Args:
        values: any shape.
        axes: those that vanish.
    """
    return (values * values).sum(axis=axes) ** 0.5


def nonzero(values: Array) -> Array:
    """Put 1 in place of what is not positive, for a division.

    Args:
        values: any shape.
    """
    if is_numpy(values):
        return np.where(values > 0, values, 1.0)
    import torch

    return _array(torch.where(_tensor(values) > 0, _tensor(values), 1.0))


def filled(like: Array, value: float) -> Array:
    """Make an array of one value.

    Args:
        like: has its shape and place.
        value: of all entries.
    """
    if is_numpy(like):
        return np.full_like(like, value)
    import torch

    return _array(torch.full_like(_tensor(like), value))


def largest_of(values: Array, axis: int) -> Array:
    """Find the largest along an axis.

    Args:
        values: any shape.
        axis: that vanishes.
    """
    return np.amax(values, axis) if is_numpy(values) else _array(_tensor(values).amax(axis))


def larger(one: Array, other: Array) -> Array:
    """Take the larger of two arrays, entry by entry.

    Args:
        one: any shape.
        other: likewise.
    """
    if is_numpy(one):
        return np.maximum(one, other)
    return _array(_tensor(one).maximum(_tensor(other)))


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
    found = _tensor(values).sort(dim=-1, descending=True)
    return _array(found.values), cast("Any", found.indices)


def triangle(tall: Array) -> Array:
    """Compute R of the QR decomposition of each matrix.

    Args:
        tall: shape [..., n, m].

    Returns:
        Shape [..., min(n, m), m].
    """
    if is_numpy(tall):
        return np.asarray(np.linalg.qr(tall, mode="r"))
    import torch

    return _array(torch.linalg.qr(_tensor(tall), mode="r").R)


def orthogonal(tall: Array) -> tuple[Array, Array]:
    """Compute Q and R of each matrix.

    Args:
        tall: shape [..., n, m].
    """
    if is_numpy(tall):
        q, r = np.linalg.qr(tall)
        return q, r
    import torch

    found = torch.linalg.qr(_tensor(tall))
    return _array(found.Q), _array(found.R)


def singular(matrices: Array) -> tuple[Array, Array, Array]:
    """Compute U, S and W' of each matrix U S W'.

    Args:
        matrices: shape [..., n, m].

    Raises:
        LinAlgError: numpy's; it does not converge, or a value is not finite.
    """
    if is_numpy(matrices):
        u, s, w = np.linalg.svd(matrices)
        return u, s, w
    import torch

    try:
        found = torch.linalg.svd(_tensor(matrices))
    except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
        raise np.linalg.LinAlgError(str(error)) from error
    return _array(found.U), _array(found.S), _array(found.Vh)


def inner(one: Array, other: Array) -> float:
    """Sum the products of all entries.

    Args:
        one: any shape.
        other: the same.
    """
    if is_numpy(one):
        return float(np.vdot(one, other))
    return float(_tensor(one).reshape(-1) @ _tensor(other).reshape(-1))


def is_finite(values: Array) -> bool:
    """Tell whether no value is infinite or NaN.

    Args:
        values: any shape.
    """
    return bool((np.isfinite(values) if is_numpy(values) else _tensor(values).isfinite()).all())


def _tensor(values: Array) -> torch.Tensor:
    return cast("torch.Tensor", values)


def _array(values: torch.Tensor) -> Array:
    return cast("Array", values)
