"""The copy of config.json that transformers' own model is built from: it names nothing to fetch or run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from specdiag.files import shortened

_ELSEWHERE = ("backbone", "use_timm_backbone", "use_pretrained_backbone", "timm_model_name", "pretrained_backbone")
"""Keys that give a part of the model to another library or repository, where they are set."""
_DROPPED = re.compile(
    r"_?(attn|experts)_implementation.*|use_kernels|.*kernel_config|(_?name|.*_name)_or_path|backbone(_kwargs)?|"
    r"use_(timm|pretrained)_backbone|quantization_config|compression_config|(torch_)?dtype|_commit_hash|"
    r"custom_pipelines|auto_map|trust_remote_code|transformers_weights|label2id"
)
_LABELS = "id2label"
_FLOAT, _FLOATS = "__float__", ("Infinity", "-Infinity", "NaN")
"""How transformers writes floats that JSON lacks."""
_ADDRESS = re.compile(r"[/\\]|://")
"""A text with one names a repository, a file or an address."""
_SIZE = re.compile(
    r"(num|n)_.*|.*_(size|dim|width|rank|layers|heads|experts|channels)|d_\w+|dim|depths?|depth_\w+|hidden_sizes"
)
_LENGTH = re.compile(r"chunk|position|length|frames|samples")
"""Lengths of inputs, which no matrix has."""
_LONGEST = 1 << 24
"""Longer inputs than any model takes: some build a table of every position."""
_COUNT = re.compile(r"(\w+_)?(experts?|codebooks?|quantizers?|levels?|stages?)(_num)?")
"""Counts of modules, each of which is built."""
_LAYERS = re.compile(r".*(layers|blocks|depths?)(_\w+)?")
_MORE = 4
"""A size of the configuration may exceed the largest one of the files by this factor, as fused tensors are split."""
_FEW = 1 << 18
"""Smaller widths and vocabularies cost nothing without values."""
_FEW_LAYERS = 256
"""Fewer layers are built quickly, and may be shared, as in ALBERT."""
_NUMBER = re.compile(r"(?<![^.])([0-9]{1,9})(?![^.])")
_DEEP = 16
_MOST = 100_000
"""Entries of the largest mapping or list that is copied."""


def refusal(config: Mapping[str, object], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Explain why transformers' own model is not built from a configuration.

    Args:
        config: the content of config.json.
        shapes: the shape of each tensor of the files.

    Returns:
        The reason; None where it may be built.
    """
    if config.get("model_type") is None and not config.get("architectures"):
        return "config.json names no model_type"
    sizes = {size for shape in shapes.values() for size in shape}
    largest = max(sizes, default=0)
    deepest = max((int(n) + 1 for name in shapes for n in _NUMBER.findall(name)), default=0)
    for path, key, value in _entries(config, "", 0):
        if key is None:
            return f"config.json is nested more than {_DEEP} deep"
        if key in _ELSEWHERE and value:
            return f"config.json has {path}: a part of the model is built by another library"
        if isinstance(value, Mapping | list | tuple) and len(cast("Sequence[object]", value)) > _MOST:
            return f"{shortened(path)} of config.json has more than {_MOST} entries"
        size = _size(value)
        if _LAYERS.fullmatch(key) and size > max(_FEW_LAYERS, _MORE * deepest):
            return f"{path} of config.json is {size}, and the names of the files count to {deepest}"
        if _COUNT.fullmatch(key) and size > max(_FEW_LAYERS, _MORE * deepest) and size not in sizes:
            return f"{path} of config.json is {size}, and no tensor of the files has a dimension of it"
        if _LENGTH.search(key) and size > _LONGEST:
            return f"{path} of config.json is {size}, more than any input has"
        if _SIZE.fullmatch(key) and not _LENGTH.search(key) and size > max(_FEW, _MORE * max(largest, deepest)):
            return f"{path} of config.json is {size}, and no tensor of the files has a dimension above {largest}"
    return None


def checked_copy(config: Mapping[str, object]) -> dict[str, object]:
    """Copy a configuration without the keys that name code, kernels, backbones, files or repositories, at any depth.

    Args:
        config: one that `refusal` does not refuse.
    """
    return cast("dict[str, object]", _copied(config))


def names_elsewhere(config: Mapping[str, object]) -> bool:
    """Tell whether the copy lacks an entry that a model may be built from: the address of a file or repository.

    Args:
        config: one that `refusal` does not refuse.
    """
    return any(
        key is not None and not _DROPPED.fullmatch(key) and _LABELS not in path and _holds_address(value)
        for path, key, value in _entries(config, "", 0)
    )


def stated_type(config: Mapping[str, object]) -> object:
    """Read the type of values that a model is made in; None without one, and where a quantiser chooses it.

    Args:
        config: one that `refusal` does not refuse.
    """
    stated = config.get("dtype") if config.get("dtype") is not None else config.get("torch_dtype")
    return None if "quantization_config" in config or isinstance(stated, Mapping) else stated


def _holds_address(value: object) -> bool:
    return any(map(_is_address, cast("list[object]", value) if isinstance(value, list) else (value,)))


def _copied(value: object) -> object:
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value)
        tag = entries.get(_FLOAT)
        if len(entries) == 1 and isinstance(tag, str) and tag in _FLOATS:
            return float(tag)
        return {
            str(key): _labels(inner) if key == _LABELS else _copied(inner)
            for key, inner in entries.items()
            if not _DROPPED.fullmatch(str(key)) and not _is_address(inner)
        }
    if isinstance(value, list | tuple):
        return [_copied(inner) for inner in cast("Sequence[object]", value) if not _is_address(inner)]
    return value


def _labels(value: object) -> object:
    """Keep the numbers of the labels, and none of their words."""
    if not isinstance(value, Mapping):
        return _copied(value)
    return {str(number): f"LABEL_{number}" for number in cast("Mapping[object, object]", value)}


def _is_address(value: object) -> bool:
    return isinstance(value, str) and _ADDRESS.search(value) is not None


def _entries(value: object, path: str, depth: int) -> Iterator[tuple[str, str | None, object]]:
    """Walk through all entries with their path and key; there is no key where the nesting is too deep."""
    if depth > _DEEP:
        yield path, None, value
        return
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            name = f"{path}.{key}" if path else str(key)
            yield name, str(key), inner
            yield from _entries(inner, name, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in cast("Sequence[object]", value):
            yield from _entries(inner, path, depth + 1)


def _size(value: object) -> int:
    """Read the largest integer of a value or of a list of values."""
    values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else (value,)
    return max((v for v in values if isinstance(v, int) and not isinstance(v, bool)), default=0)
