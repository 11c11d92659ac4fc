"""ggml's types of values: how many bytes they take, how they are decoded, how coarse they are.

Numbers need numpy alone. Codes are decoded by the gguf package, which is imported for files that hold some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.tensors import Rounding
from specdiag.errors import MissingExtraError

_PLAIN = {
    0: ("F32", 4),
    1: ("F16", 2),
    24: ("I8", 1),
    25: ("I16", 2),
    26: ("I32", 4),
    27: ("I64", 8),
    28: ("F64", 8),
    30: ("BF16", 2),
}
"""The safetensors spelling and bytes of the types that are no codes, by ggml's number."""

_ROUNDING = {
    "Q4_0": Rounding(group=32, levels=16),
    "Q4_1": Rounding(group=32, levels=16),
    "Q5_0": Rounding(group=32, levels=32),
    "Q5_1": Rounding(group=32, levels=32),
    "Q8_0": Rounding(group=32, levels=255, symmetric=True),
    "Q2_K": Rounding(group=16, levels=4),
    "Q3_K": Rounding(group=16, levels=8),
    "Q4_K": Rounding(group=32, levels=16),
    "Q5_K": Rounding(group=32, levels=32),
    "Q6_K": Rounding(group=16, levels=64),
    # Eight or four values share an entry of a codebook, so steps are unequal: levels follow from the bits a value.
    "IQ1_S": Rounding(group=32, levels=3),
    "IQ1_M": Rounding(group=16, levels=3),
    "IQ2_XXS": Rounding(group=32, levels=4),
    "IQ2_XS": Rounding(group=16, levels=4),
    "IQ2_S": Rounding(group=16, levels=4),
    "IQ3_XXS": Rounding(group=32, levels=8),
    "IQ3_S": Rounding(group=32, levels=8),
    "IQ4_NL": Rounding(group=32, levels=16),
    "IQ4_XS": Rounding(group=32, levels=16),
    # Networks trained with one or three values, which are exact but for the float16 that scales them.
    "Q1_0": Rounding(eps=2.0**-10),
    "TQ1_0": Rounding(eps=2.0**-10),
    "TQ2_0": Rounding(eps=2.0**-10),
    "MXFP4": Rounding(relative=0.12),
    "NVFP4": Rounding(relative=0.092),
}

Decode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of values.

    Attributes:
        name: the safetensors spelling of a plain type, ggml's name of codes.
        block: values that are coded together, 1 for a plain type.
        nbytes: bytes of a block; 0 where the installed gguf does not know the type.
        decode: values from the bytes of any number of blocks, both flat; None for plain types and unknown codes.
        rounding: of codes that can be decoded, None for all else.
    """

    name: str
    block: int
    nbytes: int
    decode: Decode | None = None
    rounding: Rounding | None = None

    @property
    def is_codes(self) -> bool:
        """True where only ggml can decode its bytes."""
        return self.name not in (name for name, _ in _PLAIN.values())

    def size(self, shape: Sequence[int]) -> int:
        """Compute the bytes that values take.

        Args:
            shape: of the values; its last axis is a whole number of blocks.
        """
        return math.prod(shape) // self.block * self.nbytes


def kind_of(number: int, label: str) -> Kind:
    """Look up a type by its number in ggml.

    Args:
        number: as stored in the file.
        label: the file, for messages.

    Returns:
        The type, without `decode` where the installed gguf cannot decode it.

    Raises:
        MissingExtraError: these are codes, and the gguf package is not installed.
    """
    if number in _PLAIN:
        name, nbytes = _PLAIN[number]
        return Kind(name, 1, nbytes)
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError as error:
        raise MissingExtraError(
            f"'{label}' holds quantised weights, which need gguf: pip install 'gguf>=0.18'"
        ) from error
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        return Kind(f"type {number}", 1, 0)
    block, nbytes = GGML_QUANT_SIZES[kind]

    def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        with np.errstate(all="ignore"):  # scales of a damaged file may be infinite
            return dequantize(codes, kind)

    try:
        decode(np.zeros(nbytes, np.uint8))
    except NotImplementedError:
        return Kind(kind.name, block, nbytes)
    rounding = _ROUNDING.get(kind.name) or Rounding(group=block, levels=2 ** (8 * nbytes // block))
    return Kind(kind.name, block, nbytes, decode, rounding)
