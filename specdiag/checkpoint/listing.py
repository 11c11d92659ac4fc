"""What one file of weights holds, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdiag.checkpoint.formats import recognise
from specdiag.checkpoint.gguf.file import list_gguf
from specdiag.checkpoint.safetensors_file import list_safetensors
from specdiag.checkpoint.tensors import StoredTensor


@dataclass(frozen=True, slots=True)
class Listing:
    """What one file holds.

    Attributes:
        tensors: all of them, not read.
        notes: what was remarked.
        config: what the file itself says in the words of a config.json; empty for most formats.
    """

    tensors: list[StoredTensor]
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict[str, Any])


def list_file(path: Path, label: str) -> Listing:
    """Every tensor of one file in a format that is told from its content.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it is unreadable, damaged, unsupported, or not a file of weights.
        MissingExtraError: it holds quantised weights that only an optional dependency decodes.
    """
    kind = recognise(path, label)
    if kind == "safetensors":
        return Listing(list_safetensors(path, label))
    if kind == "gguf":
        tensors, notes, config = list_gguf(path, label)
        return Listing(tensors, tuple(notes), config)

    from specdiag.checkpoint.torch_file import list_torch_file

    tensors, notes = list_torch_file(path, label)
    return Listing(tensors, tuple(notes))
