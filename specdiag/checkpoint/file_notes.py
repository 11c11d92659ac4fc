"""Remarks on the files that were chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from specdiag.checkpoint.file_selection import ModelFiles
from specdiag.checkpoint.shard_sets import missing_shards, set_of
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.weight_names import SHARD, base_name
from specdiag.text.counts import counted
from specdiag.text.names import listed

_LISTED = 8
_PROJECTOR = re.compile(r"[^/]*mmproj[^/]*\.gguf", re.IGNORECASE)


def shard_notes(model: ModelFiles) -> list[str]:
    """Warn where not all shards of a set were picked.

    Args:
        model: the files that were chosen.

    Returns:
        A note for each set that is not whole.
    """
    shard = SHARD.fullmatch(model.files[0]) if len(model.files) == 1 else None
    if shard is not None and int(shard["total"]) > 1:
        return [f"{model.files[0]} is one of {int(shard['total'])} shards: the others were not read."]
    return [
        f"Read {counted(len(files), 'shard')} of a larger set, without {listed(missing, _LISTED)}: a part of the model."
        for files, missing in _incomplete(model.files)
    ]


def index_notes(index: str, files: Sequence[str]) -> list[str]:
    """Name the numbered shards that an index does not list.

    Args:
        index: name of the index file.
        files: those that it lists.

    Returns:
        A note for each set of shards that it lists in part.
    """
    return [
        f"{index} lists {counted(len(shards), 'shard')} of a larger set: not {listed(missing, _LISTED)}."
        for shards, missing in _incomplete(files)
    ]


def _incomplete(files: Iterable[str]) -> list[tuple[list[str], tuple[str, ...]]]:
    """List the sets of shards of which some are missing, with those."""
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in files:
        sets.setdefault(set_of(name), []).append(name)
    return [(shards, missing) for shards in sets.values() if (missing := missing_shards(shards))]


def metadata_notes(index: str, content: Mapping[str, object]) -> list[str]:
    """Remark that an index has no metadata: transformers reads them before the map, and stops.

    Args:
        index: name of the index file.
        content: of that file.

    Returns:
        One note, or none.
    """
    metadata = content.get("metadata")
    if isinstance(metadata, Mapping):
        return []
    return [f"{index} has no {'metadata' if metadata is None else 'dictionary as its metadata'}."]


def size_notes(index: str, content: Mapping[str, object], tensors: Sequence[StoredTensor]) -> list[str]:
    """Remark that an index states another size than its shards have. Weights in codes are not added up.

    Args:
        index: name of the index file.
        content: of that file.
        tensors: what the shards hold.

    Returns:
        One note, or none.
    """
    metadata = content.get("metadata")
    stated = cast("Mapping[str, object]", metadata).get("total_size") if isinstance(metadata, Mapping) else None
    if not isinstance(stated, int | float) or any(t.rounding is not None or t.parametrized for t in tensors):
        return []
    once = {tensor.name if tensor.storage is None else tensor.storage: tensor.nbytes for tensor in tensors}
    sizes = (sum(tensor.nbytes for tensor in tensors), sum(once.values()))
    return [] if stated in sizes else [f"{index} states {stated} bytes, and its shards hold {sizes[0]}."]


def projector_notes(model: ModelFiles, names: Iterable[str]) -> list[str]:
    """Name the multimodal projectors (images, sounds) that llama.cpp keeps in GGUF files beside that of the model.

    Args:
        model: the files that were chosen.
        names: every file of the repository or directory.

    Returns:
        One note, or none.
    """
    folder, _, base = model.name.rpartition("/")
    projectors = [
        name for name in sorted(names) if name.rpartition("/")[0] == folder and _PROJECTOR.fullmatch(base_name(name))
    ]
    if not base.endswith(".gguf") or not projectors or model.name in projectors:
        return []
    what = "a multimodal projector" if len(projectors) == 1 else "multimodal projectors"
    return [f"Left out {listed(projectors, _LISTED)}, {what} beside the model: analyse one with file=."]
