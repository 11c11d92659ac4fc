"""GGUF files: tensors that dequantise on demand, and what the metadata says in the words of a config.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from specdiag.checkpoint.gguf.header import Header, TensorInfo, Value, read_header
from specdiag.checkpoint.gguf.types import Decode, Kind, kind_of
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.plain_values import plain_tensor, read_range
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.files import Table
from specdiag.spectra.float_types import FLOAT_TYPES

_VALUES_AT_ONCE = 1 << 17  # decoding takes several times the memory of its result
_NOT_WEIGHTS = {
    "adapter": "an adapter in GGUF, not supported: analyse the original, or merge it into its model",
    "imatrix": "an importance matrix, not weights",
}
"""Descriptions of files that are no models, by their `general.type`."""
_WORDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.dimension_count": "rotary_dim",
    "expert_count": "num_experts",
    "vocab_size": "vocab_size",
    "patch_size": "patch_size",
}


def list_gguf(path: Path, label: str) -> Listing:
    """List every tensor of a GGUF file in the order of its data.

    Args:
        path: the file.
        label: its name in messages.

    Returns:
        Its tensors, a note on those that are dequantised, and a config.json from its metadata.

    Raises:
        SourceError: it cannot be read, is damaged, of an unsupported version, or holds no model.
        MissingExtraError: it holds quantised weights and the gguf package is not installed.
    """
    header = read_header(path, label)
    other = _NOT_WEIGHTS.get(str(header.metadata.get("general.type")))
    if other is not None:
        raise SourceError(f"'{label}' is {other}")
    kinds = {number: kind_of(number, label) for number in dict.fromkeys(info.type for info in header.tensors)}
    for info in header.tensors:
        _check(info, kinds[info.type], label)
    stored = [_stored(path, label, info, kinds[info.type]) for info in header.tensors]
    return Listing(_scaled(stored), tuple(_notes(path, header, kinds)), _config(header))


def _check(info: TensorInfo, kind: Kind, label: str) -> None:
    """Refuse a tensor that reaches into the next one or beyond the file, or ends within a block."""
    if info.shape and info.shape[-1] % kind.block:
        problem = f"has rows of {info.shape[-1]} values, which {kind.name} cannot hold"
    elif kind.size(info.shape) > info.room:
        problem = f"takes {kind.size(info.shape)} bytes where {info.room} are left"
    else:
        return
    raise SourceError(
        f"'{label}' is not a readable GGUF file ({brief(info.name)!r} {problem}): truncated or damaged, fetch it again"
    )


def _stored(path: Path, label: str, info: TensorInfo, kind: Kind) -> StoredTensor:
    nbytes, fill = kind.size(info.shape) if kind.nbytes else info.room, partial(read_range, path, label)
    tensor = plain_tensor(info.name, info.shape, kind.name, offset=info.offset, nbytes=nbytes, label=label, fill=fill)
    if not kind.is_codes:
        return tensor if kind.name in FLOAT_TYPES else replace(tensor, reason="integer buffer")
    if kind.decode is None:
        reason = f"quantised weights ({kind.name}) that the gguf package cannot decode"
        return replace(tensor, values="F32", reason=reason, read=partial(_refuse, label, info.name, reason))
    read = partial(_read_codes, path, label, info, kind, kind.decode)
    return replace(tensor, values="F32", rounding=kind.rounding, read=read)


def _read_codes(
    path: Path, label: str, info: TensorInfo, kind: Kind, decode: Decode, index: int | None = None
) -> NDArray[np.float32]:
    """Decode the values in parts, so that memory holds few codes. No block reaches over the end of a row."""
    shape, offset = info.shape, info.offset
    if index is not None:
        shape = shape[1:]
        offset += index * kind.size(shape)
    out = np.empty(math.prod(shape), np.float32)
    step = _VALUES_AT_ONCE // kind.block * kind.block
    for begin in range(0, out.size, step):
        part = out[begin : begin + step]
        codes = np.empty(kind.size(part.shape), np.uint8)
        read_range(path, label, offset + kind.size((begin,)), codes)
        part[:] = decode(codes)
    return out.reshape(shape)


def _refuse(label: str, name: str, reason: str, index: int | None = None) -> NoReturn:
    raise SourceError(f"'{name}' of '{label}' holds {reason}")


def _scaled(tensors: list[StoredTensor]) -> list[StoredTensor]:
    """Let codes read the scale that lies beside them, one for the tensor or one for each expert: NVFP4 and BitNet."""
    weights = {tensor.name: tensor for tensor in tensors if tensor.rounding is not None}
    scales = {
        weight: tensor
        for tensor in tensors
        if tensor.dtype == "F32"
        and (weight := f"{tensor.name.removesuffix('.scale')}.weight") in weights
        and math.prod(tensor.shape) in (1, weights[weight].shape[0])
    }
    owned = {scale.name for scale in scales.values()}
    return [
        replace(tensor, read=partial(_read_scaled, tensor, scales[tensor.name]))
        if tensor.name in scales
        else replace(tensor, reason="scale of a quantised tensor")
        if tensor.name in owned
        else tensor
        for tensor in tensors
    ]


def _read_scaled(tensor: StoredTensor, scale: StoredTensor, index: int | None = None) -> NDArray[np.float32]:
    factors = scale.read(None).reshape(-1)
    values = tensor.read(index)
    if len(factors) == 1:
        values *= factors[0]
    elif index is not None:
        values *= factors[index]
    else:
        values *= factors.reshape(-1, *(1 for _ in tensor.shape[1:]))
    return values


def _notes(path: Path, header: Header, kinds: Mapping[int, Kind]) -> list[str]:
    """Note how many tensors were dequantised, and from which types."""
    counts = Counter(kinds[info.type].name for info in header.tensors if kinds[info.type].decode is not None)
    if not counts:
        return []
    *others, last = (f"{n} from {name}" for name, n in counts.most_common())
    listed = f"{', '.join(others)} and {last}" if others else last
    n, _, rest = listed.partition(" ")
    of_file = f" of {path.name}" if header.metadata.get("split.count", 1) != 1 else ""
    return [f"Dequantised {n} tensor{'' if n == '1' else 's'}{of_file} {rest}."]


def _config(header: Header) -> Table:
    """Translate the metadata to the keys of config.json, except `model_type`.

    The layout of fused tensors that goes with a `model_type` does not apply: the converter has put queries, keys and
    values one after the other.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return {}
    config: Table = {"architectures": [architecture], **_numbers(header.metadata, architecture)}
    base = header.metadata.get(f"{architecture}.rope.freq_base")
    if isinstance(base, float):
        config["rope_theta"] = base
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type")
    if isinstance(scaling, str) and scaling != "none":
        config["rope_scaling"] = {"rope_type": scaling}
    n_tokens = header.lengths.get("tokenizer.ggml.tokens")
    if n_tokens:
        config["vocab_size"] = n_tokens
    for piece in ("vision", "audio"):
        numbers = _numbers(header.metadata, f"{architecture}.{piece}")
        if numbers:
            config[f"{piece}_config"] = numbers
    return config


def _numbers(metadata: Mapping[str, Value], prefix: str) -> dict[str, int]:
    numbers = {word: _one(metadata.get(f"{prefix}.{key}")) for key, word in _WORDS.items()}
    return {word: value for word, value in numbers.items() if value is not None}


def _one(value: Value | None) -> int | None:
    """Read an integer, or the one that all layers share, ignoring the 0 of layers without attention."""
    values = set(value) - {0} if isinstance(value, tuple) else {value}
    only = values.pop() if len(values) == 1 else None
    return only if isinstance(only, int) and not isinstance(only, bool) else None
