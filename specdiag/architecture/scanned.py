"""Layers that lie in one tensor each, along an axis of their own, as `flax.linen.scan` stores them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from specdiag.architecture.names import is_index, numbered, segment_context
from specdiag.architecture.rules import find_skip

Shape = tuple[int, ...]

_DEPTH = 6
"""Segments of a name among which the module of a scan is looked for."""
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class Scan:
    """A module all of whose tensors hold several layers.

    Attributes:
        path: of the module.
        axis: 0, or 1 as T5X and MaxText have it.
        n_layers: the size of that axis.
    """

    path: str
    axis: int
    n_layers: int

    def layer(self, name: str, index: int) -> str:
        """Name the tensor of one layer: `encoderblock.3.mlp.kernel` for a part of `encoderblock.mlp.kernel`.

        Args:
            name: of the tensor.
            index: of the layer.
        """
        return f"{self.path}.{index}{name[len(self.path) :]}"


@dataclass(slots=True)
class _Module:
    """The shapes of a module's tensors, as far as they agree."""

    n_tensors: int = 0
    fewest_axes: int = 9
    most_axes: int = 0
    has_norm: bool = False
    has_list: bool = False
    sizes: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))

    def add(self, shape: Shape, rest: str, is_norm: bool) -> None:
        self.n_tensors += 1
        self.has_list |= is_index(rest.partition(".")[0])
        self.fewest_axes = min(self.fewest_axes, len(shape))
        self.most_axes = max(self.most_axes, len(shape))
        self.has_norm |= is_norm and len(shape) == 2
        for axis in range(min(2, len(shape))):
            if len(self.sizes[axis]) < 2:
                self.sizes[axis].add(shape[axis])

    def scanned_axis(self) -> int | None:
        """Find the axis along which all tensors have one size, where a norm shows that these are layers."""
        if self.has_list or not self.has_norm or self.fewest_axes < 2 or self.most_axes < 3:
            return None
        axes = [axis for axis in (0, 1) if len(self.sizes[axis]) == 1 and 1 < min(self.sizes[axis]) <= _MOST_LAYERS]
        return axes[0] if len(axes) == 1 else None


def find_scanned(shapes: Mapping[str, Shape]) -> dict[str, Scan]:
    """Find the tensors that hold a layer for each index of one axis.

    A norm of two axes shows it, in a module whose tensors all have an axis of the same size there.

    Args:
        shapes: of all tensors by their names.

    Returns:
        The module of each such tensor.
    """
    norms = {name for name, shape in shapes.items() if len(shape) == 2 and find_skip(numbered(name)) == "norm"}
    if not norms:
        return {}
    modules: dict[str, _Module] = defaultdict(_Module)
    for name, shape in shapes.items():
        for path in _above(name):
            modules[path].add(shape, name[len(path) + 1 :], name in norms)
    found: dict[str, Scan] = {}
    for name in shapes:
        paths = [path for path in _above(name) if modules[path].scanned_axis() is not None]
        outer = [path for path in paths if modules[path].n_tensors == modules[paths[0]].n_tensors]
        named = [path for path in outer if segment_context(path.rpartition(".")[2]) is None]
        if named and (axis := modules[named[-1]].scanned_axis()) is not None:
            found[name] = Scan(named[-1], axis, min(modules[named[-1]].sizes[axis]))
    return found


def _above(name: str) -> Iterator[str]:
    """Yield the paths of the modules that hold a tensor, outermost first, up to one that has an index."""
    path = ""
    for segment in name.split(".")[:-1][:_DEPTH]:
        if is_index(segment):
            return
        path = f"{path}.{segment}" if path else segment
        yield path
