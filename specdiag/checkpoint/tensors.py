"""What a checkpoint stores: float types, tensors that are read on demand, matrices cut from them.

Stored values stay in their storage type until the spectra engine widens them block by block. numpy has no bfloat16,
so BF16 travels as its uint16 codes; `FloatType.widen` is the one place that knows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from specdiag.records import ModuleRole, Skipped, Source, key

if TYPE_CHECKING:
    import torch

    from specdiag.architecture.split import Slicer


@dataclass(frozen=True, slots=True)
class FloatType:
    """A floating-point storage type.

    Attributes:
        name: the safetensors spelling, such as `BF16`.
        storage: the numpy type that holds its raw values.
        eps: spacing of the type at 1.
        max: largest finite value.
        tiny: smallest positive normal value.
    """

    name: str
    storage: np.dtype[Any]
    eps: float
    max: float
    tiny: float

    def widen(self, raw: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Exact values of `raw` as a C-contiguous array of `dtype` (float32 or float64)."""
        if self.name == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.ascontiguousarray(raw, dtype=dtype)


def _ieee(name: str, dtype: type[np.floating[Any]]) -> FloatType:
    info = np.finfo(dtype)
    return FloatType(name, np.dtype(dtype), float(info.eps), float(info.max), float(info.tiny))


FLOAT_TYPES: dict[str, FloatType] = {
    "F64": _ieee("F64", np.float64),
    "F32": _ieee("F32", np.float32),
    "F16": _ieee("F16", np.float16),
    "BF16": FloatType("BF16", np.dtype(np.uint16), 2.0**-7, 3.3895313892515355e38, float(np.finfo(np.float32).tiny)),
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint, listed from a header and not yet read.

    Attributes:
        name: its key in the checkpoint, wrapper prefixes removed.
        shape: as stored.
        dtype: the safetensors spelling, `F32`, `I64`, `F8_E4M3`, ...
        nbytes: size on disk.
        file: the file that holds it, for messages.
        read: the raw values in the storage type; `read(i)` reads index `i` of the first axis alone.
        storage: equal for two names of the same memory, None where sharing cannot be seen from the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    read: Callable[[int | None], NDArray[Any]] = field(repr=False)
    storage: Hashable | None = None


@dataclass(frozen=True, slots=True)
class WeightMatrix:
    """One weight matrix: a stored tensor, or one part of a fused or stacked one. Its values are read on `load`.

    Attributes:
        name: name of the stored tensor.
        module: role, family, layer, component and part.
        shape: (rows, cols) as the network multiplies it, after slicing.
        n_slices: matrices of that shape whose eigenvalues are pooled; 1, but for convolutions.
        storage_dtype: the safetensors spelling of the stored type.
    """

    name: str
    module: ModuleRole
    shape: tuple[int, int]
    n_slices: int
    storage_dtype: str
    tensor: StoredTensor = field(repr=False)
    slicer: Slicer = field(repr=False)

    @property
    def key(self) -> str:
        """`name`, or `name[part]`."""
        return key(self.name, self.module.part)

    def load(self, device: str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """The values, shape [n_slices, rows, cols], or [rows, cols] where n_slices is 1.

        Args:
            device: where the result lives.
            dtype: a torch dtype; None keeps the storage type.
        """
        import torch

        raw = self.slicer.cut(self.tensor.read(self.slicer.index))
        values = torch.from_numpy(np.ascontiguousarray(raw))
        if self.storage_dtype == "BF16":
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
        matrices: every weight matrix, in stored order.
        skipped: every other tensor, with its reason.
        notes: sentences for the person who asked, such as a fused tensor that could not be split.
        n_tensors: number of stored tensors.
        n_parameters: number of stored values.
    """

    source: Source
    architecture: str | None
    config: dict[str, Any]
    matrices: tuple[WeightMatrix, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    n_tensors: int
    n_parameters: int
