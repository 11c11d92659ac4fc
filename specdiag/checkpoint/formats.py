"""What a file is, told from its first bytes and never from its name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

from specdiag.errors import SourceError

Format = Literal["safetensors", "gguf", "torch_zip", "torch_legacy"]

TORCH_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt")
"""Of names that torch.save is given."""
WEIGHT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".gguf")
"""Of files of weights that are read. A name only makes a file a candidate: its content says what it is."""
FOREIGN_SUFFIXES = (".h5", ".keras", ".msgpack", ".onnx", ".ot", ".npz", ".tflite", ".nemo", ".distcp")
"""Of files of weights that are not read, to name them."""
_PICKLE = 0x80  # first byte since pickle protocol 2; torch's format before 1.6 is several pickles in a row
_REFUSED: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras or TensorFlow), not supported: convert it to safetensors"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run 'git lfs pull'"),
    (b"\x93NUMPY", "a single numpy array, not a checkpoint"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"<", "a web page or XML, not weights: fetch the file itself"),
    (b'{\n "schema"', "a decay plan, not weights: give a report or a checkpoint"),
    (b"{", "JSON, not weights"),
)
N_PROBE = 512
"""Bytes at the beginning of a file that tell its format."""


def recognise(path: Path, label: str) -> Format:
    """The format of a file of weights.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it cannot be read, is empty, or is something else, which is named.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block, a device would never end
            raise SourceError(f"'{label}' is not a regular file")
        with path.open("rb") as file:
            head = file.read(N_PROBE)
    except OSError as error:
        raise SourceError(f"'{label}' cannot be read: {error.strerror}") from error
    return format_of(head, label)


def format_of(head: bytes, label: str) -> Format:
    """The format of a file of weights by its first `N_PROBE` bytes.

    Raises:
        SourceError: it is empty, or something else, which is named.
    """
    if not head:
        raise SourceError(f"'{label}' is empty: fetch it again")
    if head.startswith(b"GGUF"):
        return "gguf"
    if _is_safetensors(head):
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "torch_zip"
    if head[0] == _PICKLE:
        return "torch_legacy"
    for magic, what in _REFUSED:
        if head.lstrip().startswith(magic):
            raise SourceError(f"'{label}' is {what}")
    if head[8:9] == b"{":  # with a length that lies, as the reader will say
        return "safetensors"
    raise SourceError(f"'{label}' is {_unknown(head)}")


def _is_safetensors(head: bytes) -> bool:
    """A u64 and a JSON object. The low byte may be any: 0x80, which also starts a pickle, is common.

    A GGUF file with 123 tensors looks the same.
    """
    return head[6:9] == b"\0\0{"


def _unknown(head: bytes) -> str:
    spec = _ctranslate2_spec(head)
    if spec is not None:
        return f"a CTranslate2 model ({spec}), not supported: analyse the checkpoint that it was converted from"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return "neither a safetensors file nor a torch checkpoint; it may be truncated or damaged"


def _ctranslate2_spec(head: bytes) -> str | None:
    """The spec name of a CTranslate2 file: u32 version, u16 length, name ending in NUL."""
    if len(head) < 8:
        return None
    version, length = struct.unpack_from("<IH", head)
    name = head[6 : 6 + length]
    if not 1 <= version <= 64 or not name.endswith(b"Spec\0"):
        return None
    return name[:-1].decode("ascii", "replace")
