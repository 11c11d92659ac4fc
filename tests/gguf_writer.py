"""GGUF files written by hand."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from read_back import assert_complete

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint

QUERY = "blk.0.attn_q.weight"
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """Type and content of a value of the metadata."""
    if isinstance(content, str):
        return struct.pack("<I", STRING) + text(content)
    if isinstance(content, list):
        inner, *_ = [value(item) for item in content] or [struct.pack("<I", U32)]
        data = b"".join(value(item)[4:] for item in content)
        return struct.pack("<I", ARRAY) + inner[:4] + struct.pack("<Q", len(content)) + data
    if isinstance(content, bool):
        return struct.pack("<I?", BOOL, content)
    return struct.pack("<If", F32, content) if isinstance(content, float) else struct.pack("<II", U32, content)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def header(values: dict[str, bytes], entries: list[bytes], version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(values))
    head += b"".join(text(key) + content for key, content in values.items()) + b"".join(entries)
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0")


def model(
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    metadata: dict[str, Any] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file of tensors by name: shape as numpy has it, ggml's number of the type, bytes."""
    values = {"general.architecture": "llama"} if metadata is None else metadata
    values = values if alignment == 32 else {**values, "general.alignment": alignment}
    entries, data = [], b""
    for name, (shape, kind, content) in tensors.items():
        entries.append(entry(name, shape, kind, len(data)))
        data += content.ljust(-(-len(content) // alignment) * alignment, b"\0")
    return header({key: value(content) for key, content in values.items()}, entries, version, alignment) + data


def floats(*shape: int, seed: int = 0) -> tuple[tuple[int, ...], int, bytes]:
    return shape, 0, np.random.default_rng(seed).standard_normal(shape).astype("<f4").tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def decoded(kind: GGMLQuantizationType, codes: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(codes, kind)


def can_decode(kind: GGMLQuantizationType) -> bool:
    try:
        decoded(kind, np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8))
    except NotImplementedError:
        return False
    return True


PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
CODES = [kind for kind in GGMLQuantizationType if kind not in PLAIN and can_decode(kind)]


def random_codes(kind: GGMLQuantizationType, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes [n_blocks, bytes] whose values are all finite."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8 * n_blocks, GGML_QUANT_SIZES[kind][1]), np.uint8)
    finite = np.isfinite(decoded(kind, blocks)).all(1)
    return blocks[finite][:n_blocks]


def opened(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    assert_complete(checkpoint)
    return checkpoint


def quantised(*shape: int) -> tuple[tuple[int, ...], int, bytes]:
    kind = GGMLQuantizationType.Q4_0
    return shape, int(kind), random_codes(kind, math.prod(shape) // 32).tobytes()
