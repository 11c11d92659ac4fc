"""Contents of a checkpoint: tensors that are read on demand, matrices cut from them.

Stored values stay in their storage type until the spectra engine widens them block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from specdiag.checkpoint.opening import Opening
from specdiag.files import Table
from specdiag.records import ModuleRole, Skipped, Source, key
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType, RawArray

if TYPE_CHECKING:
    import torch

    from specdiag.architecture.split import Slicer
    from specdiag.checkpoint.adapters.defects import Defect
    from specdiag.checkpoint.adapters.update import Applied

_GROUPS_LOOKED_AT = 1 << 14
_LONG = 32
"""Values of a row that are halved as they lie."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """The coarseness of a quantised tensor's codes, which its dequantised values alone do not show.

    Attributes:
        eps: spacing of floating-point codes at 1, 0.125 for fp8 E4M3; 0 for codes in equal steps.
        group: number of values that share a scale, in the order of their dequantised rows.
        levels: number of codes that the range of a group is divided into, 16 for 4 bits.
        symmetric: whether that range reaches as far below zero as above.
        relative: the error itself for normally distributed weights, where codes of few bits lie in unequal steps.
        is_computed: True of values that were computed from others, not from codes.
    """

    eps: float = 0.0
    group: int = 0
    levels: int = 0
    symmetric: bool = False
    relative: float = 0.0
    is_computed: bool = False

    def error(self, values: RawArray) -> float:
        """Estimate the rounding error relative to the values: the ratio of their root mean squares.

        The error is taken as uniform within one step.

        Args:
            values: dequantised, any shape. The steps are read off the range of each group.
        """
        if self.relative:
            return self.relative
        if self.eps:  # steps double with the exponent: their mean square is 0.46 to 0.54 eps^2 of the values'
            return self.eps * (0.5 / 12) ** 0.5
        flat = values.reshape(-1)
        square = float(np.vdot(flat, flat)) / max(len(flat), 1)
        if not np.isfinite(square) or square == 0:
            return 0.0
        group = min(self.group or len(flat), len(flat))
        groups = flat[: len(flat) // group * group].reshape(-1, group)
        groups = groups[:: len(groups) // _GROUPS_LOOKED_AT | 1]  # odd: other columns in each row
        low, high = _along_rows(np.minimum, groups), _along_rows(np.maximum, groups)
        ranges = 2 * np.maximum(-low, high) if self.symmetric else high - low
        steps = ranges.astype(np.float64) / (self.levels - 1)
        return float(np.mean(np.square(steps)) / 12 / square) ** 0.5


def _along_rows(extreme: np.ufunc, groups: RawArray) -> RawArray:
    """Take the least or the largest value of each row by halves: NumPy takes longer along a short axis.

    Halves of 16 values and more, then neighbours in one long row: loops of few values cost more than their values.
    """
    while groups.shape[1] % 2 == 0 and groups.shape[1] >= _LONG:
        half = groups.shape[1] // 2
        groups = extreme(groups[:, :half], groups[:, half:])
    n_rows, left = groups.shape
    flat = groups.reshape(-1)
    while left % 2 == 0:
        flat, left = extreme(flat[::2], flat[1::2]), left // 2
    return flat if left == 1 else extreme.reduce(flat.reshape(n_rows, left), axis=1)


@dataclass(slots=True)
class Division:
    """A model in memory that is divided among processes, each tensor put together at one of them.

    Attributes:
        together: True while all processes read the same tensors in the same order, so that a read gives the values to
            all of them; False while each measures its own.
    """

    together: bool = True


class StoredTensor(Struct, frozen=True):
    """A tensor of a checkpoint, listed from a header and not yet read.

    A quantised weight is one too: `shape` is then that of the weight, and `read` dequantises.

    Attributes:
        name: its key in the checkpoint, wrapper prefixes removed; of a quantised weight the name without codes.
        shape: as stored.
        dtype: the safetensors spelling, `F32`, `I64`, `F8_E4M3`, ...; of a dequantised weight its format, `Q4_K`.
        nbytes: size on disk, scales included.
        file: the file that holds it, for messages.
        read: reads the raw values; `read(i)` reads index `i` of the first axis alone.
        storage: equal for two names of the same memory, None where sharing cannot be seen from the header.
        values: the safetensors spelling of what `read` gives, where that is not `dtype`.
        rounding: the coarseness of a dequantised weight's codes, None for any other tensor.
        reason: why it is no matrix, where its name and shape do not decide that: a scale, or unknown codes.
        is_embedding: whether the file says that it is the table of an embedding.
        parametrized: whether `read` computes it from other tensors, such as those of a weight norm.
        scratch: bytes that `read` takes beside what it reads and gives, where that is much.
        products: multiplications that `read` takes, where it multiplies matrices.
        computed_from: of a matrix of the function, the tensors that `read` reads, each with an index of its first axis.
        owner: rank of the process that holds it, of a model that is divided among processes; None for all.
        division: of that model.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    read: Callable[[int | None], RawArray]
    storage: Hashable | None = None
    values: str | None = None
    rounding: Rounding | None = None
    reason: str | None = None
    is_embedding: bool = False
    parametrized: bool = False
    scratch: int = 0
    products: float = 0.0
    computed_from: tuple[tuple[StoredTensor, int | None], ...] = ()
    owner: int | None = None
    division: Division | None = None

    @property
    def values_dtype(self) -> str:
        """The safetensors spelling of what `read` gives."""
        return self.values or self.dtype


class WeightMatrix(Struct, frozen=True):
    """A weight matrix: a stored tensor, or one part of a fused or stacked one. Its values are read on `load`.

    Attributes:
        name: name of the stored tensor.
        module: role, family, layer, component and part.
        shape: (rows, cols) as the network multiplies it, after slicing.
        n_slices: matrices of that shape whose eigenvalues are pooled; 1, but for convolutions.
        tensor: what it is cut from.
        slicer: how it is cut from it.
        rank: r where it is the product of two factors, of which only r eigenvalues can differ from zero. `load` and
            `tensor.read` then give an r x r matrix of the same singular values.
        ratios: r over the inner sides of the two factors, by which random ones are drawn (`spectra.product_null`); None
            where a product is not compared with random ones, and for any other matrix.
        balanced_eps: of a balanced form, of which square_alpha alone is measured, the spacing at 1 of the type of its
            stored matrix; None for any other matrix.
    """

    name: str
    module: ModuleRole
    shape: tuple[int, int]
    n_slices: int
    tensor: StoredTensor
    slicer: Slicer
    rank: int | None = None
    ratios: tuple[float, float] | None = None
    balanced_eps: float | None = None

    @property
    def storage_dtype(self) -> str:
        """The safetensors spelling of the stored type; of a quantised weight its format."""
        return self.tensor.dtype

    @property
    def parametrized(self) -> bool:
        """True where the values are computed from other Parameters."""
        return self.tensor.parametrized

    @property
    def dequantized(self) -> bool:
        """True where the values were computed from codes and scales."""
        return self.tensor.rounding is not None and not self.tensor.rounding.is_computed

    @property
    def stored_bytes(self) -> int:
        """Bytes of it on disk: its part of the stored tensor, or all factors of an update."""
        return self.tensor.nbytes * prod(self.slicer.shape) // (prod(self.tensor.shape) or 1)

    def float_type(self, stack: RawArray) -> FloatType:
        """Give the type of the values, its precision that of the codes where they were quantised.

        Args:
            stack: the values, any shape.
        """
        kind = FLOAT_TYPES[self.tensor.values_dtype]
        if self.tensor.rounding is None:
            return kind
        # `storage_floor` allows two eps of a typical weight, ten times the error of rounding to a floating-point
        # type. Here the error itself is known, and an int4 matrix has no room for such caution.
        return replace(kind, eps=max(kind.eps, self.tensor.rounding.error(stack) / 2))

    @property
    def key(self) -> str:
        """`name`, or `name[part]`."""
        return key(self.name, self.module.part)

    def load(self, device: str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """Read the values.

        Args:
            device: where the result lives.
            dtype: a torch dtype; None keeps the storage type.

        Returns:
            Shape [n_slices, rows, cols], or [rows, cols] where n_slices is 1; r x r where `rank` is given.

        Raises:
            SourceError: the file is gone, was cut short or is damaged.
        """
        import torch

        raw = self.slicer.cut(self.tensor.read(self.slicer.index))
        values = torch.from_numpy(np.ascontiguousarray(raw))
        if self.tensor.values_dtype == "BF16":
            values = values.view(torch.bfloat16)
        values = values[0] if self.n_slices == 1 else values
        return values.to(device=device, dtype=dtype or values.dtype)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a checkpoint holds, sorted into matrices and tensors left out. No values are read.

    Attributes:
        source: where it came from.
        architecture: `architectures[0]` or `model_type` of config.json, None without one.
        config: config.json, empty without one.
        matrices: every weight matrix, in stored order, but layers and experts in the order of their numbers.
        skipped: every other tensor, with its reason.
        notes: sentences for the report, such as on a fused tensor that could not be split.
        n_tensors: number of stored tensors.
        n_parameters: number of stored values that are parameters: what is known to be a buffer, a mask or a tied copy
            does not count.
        stored: every stored tensor under its final name, of adapters without their base those that are no factors; None
            where these are not listed.
        opening: what it was opened with.
        adapter: the adapter_config.json of an adapter, empty where it has none; None of what is no adapter.
        updates: the updates of an adapter, each with the weight that it changes where a base was given.
        defects: parts of an adapter that are not there, or that PEFT would not find.
    """

    source: Source
    architecture: str | None
    config: Table
    matrices: tuple[WeightMatrix, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    n_tensors: int
    n_parameters: int
    stored: tuple[StoredTensor, ...] | None = field(default=None, repr=False)
    opening: Opening = field(default_factory=Opening)
    adapter: Table | None = None
    updates: tuple[Applied, ...] = field(default=(), repr=False)
    defects: tuple[Defect, ...] = ()
