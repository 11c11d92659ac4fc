"""Running a model without weights: integers have their values, floats have shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_ATEN = torch.ops.aten
_META = torch.device("meta")
_CPU = torch.device("cpu")
_LARGEST = 1 << 22
"""Elements of an integer tensor that is computed; a larger one has a shape alone."""
_SORTED = (_ATEN.topk.default, _ATEN.sort.default, _ATEN.sort.stable)
_EXTREME = (_ATEN.max.dim, _ATEN.min.dim)
_PLACES = (_ATEN.argmax.default, _ATEN.argmin.default, _ATEN.argsort.default, _ATEN.argsort.stable)


class KnownIntegers(TorchDispatchMode):
    """Compute integers and booleans on the CPU wherever they do not depend on floats, and of all else the shape.

    Token ids, positions, masks and counts of placeholders are known like that, and code that branches on them runs. An
    id beyond its table raises IndexError, as on the CPU. Where the model chooses among floats, as a router of experts
    does, the first ones stand for the chosen ones.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        named = dict(kwargs or {})
        tensors = [part for part in tree_flatten((args, named))[0] if isinstance(part, torch.Tensor)]
        _require_rows(func, args)
        if any(t.device.type == "meta" for t in tensors):
            made = func(*tree_map(_shape_alone, args), **tree_map(_shape_alone, _on(named, _META)))
            return _chosen(func, made, args, named)
        on_meta = named.get("device") is not None and torch.device(named["device"]).type == "meta"
        if on_meta and (_is_float(named, tensors) if tensors else not _is_small_integer(func, args, named)):
            return func(*tree_map(_shape_alone, args), **tree_map(_shape_alone, named))
        return func(*args, **_on(named, _CPU))


def _on(named: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return named | {"device": device} if named.get("device") is not None else named


def _is_float(named: Mapping[str, Any], tensors: list[torch.Tensor]) -> bool:
    dtype = named.get("dtype") or tensors[0].dtype
    return dtype.is_floating_point or dtype.is_complex


def _is_small_integer(func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Tell whether an operation without inputs makes integers, and few enough to be made for real."""
    made = func(*args, **named)
    if not isinstance(made, torch.Tensor):
        return False
    return not (made.dtype.is_floating_point or made.dtype.is_complex) and made.numel() <= _LARGEST


def _shape_alone(part: Any) -> Any:
    return part.to(_META) if isinstance(part, torch.Tensor) and part.device.type != "meta" else part


def _chosen(func: Any, made: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Put the first places where an operation chose among floats."""
    if func in _SORTED:
        return made[0], _counted(made[1], _axis(func, args, named))
    if func in _EXTREME:
        return made[0], torch.zeros(made[1].shape, dtype=made[1].dtype)
    if func in _PLACES:
        return torch.zeros(made.shape, dtype=made.dtype)
    return made


def _axis(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Read the axis of `topk(input, k, dim)`, `sort(input, dim)` and `sort(input, *, stable, dim)`."""
    at = 2 if func is _ATEN.topk.default else 1
    return cast("int", named.get("dim", args[at] if len(args) > at else -1))


def _counted(places: torch.Tensor, axis: int) -> torch.Tensor:
    """Count 0, 1, 2 ... along an axis."""
    if not places.dim():
        return torch.zeros((), dtype=places.dtype)
    shape = [1] * places.dim()
    shape[axis] = -1
    return torch.arange(places.shape[axis], dtype=places.dtype).reshape(shape).expand(places.shape).contiguous()


def _require_rows(func: Any, args: tuple[Any, ...]) -> None:
    """Look places up in a table as the CPU does.

    Raises:
        IndexError: a place has no row.
    """
    if func is _ATEN.embedding.default:
        _require_inside(args[1], args[0].shape[0], negative=False)
    elif func is _ATEN.index.Tensor:
        for axis, places in enumerate(args[1]):
            if places is not None and places.dtype is not torch.bool:
                _require_inside(places, args[0].shape[axis], negative=True)


def _require_inside(places: torch.Tensor, rows: int, *, negative: bool) -> None:
    if places.device.type == "meta" or not places.numel() or places.dtype is torch.bool:
        return
    low, high = int(places.min()), int(places.max())
    if low < (-rows if negative else 0) or high >= rows:
        raise IndexError(f"index {high if high >= rows else low} is out of range of a table of {rows} rows")
