"""The weights of a file that torch.save wrote. The zip format is read on demand, the legacy one is loaded whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from specdiag.checkpoint.parts import refuse_part
from specdiag.checkpoint.state_dict import find_weights
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_load import load_torch
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError


def list_torch_file(path: Path, label: str) -> tuple[list[StoredTensor], list[str]]:
    """Every tensor of a torch checkpoint in stored order, and notes about what else it holds.

    Args:
        path: the file.
        label: its name in messages.

    Raises:
        SourceError: it is damaged, wants to run code, is one process's part of a model, or holds no weights, or several
            sets of weights.
    """
    refuse_part(path.absolute().as_posix(), label, lambda name: Path(name).exists())
    content: object = load_torch(path, label)
    if isinstance(content, torch.Tensor):
        content = {"tensor": content}
    if not isinstance(content, Mapping):
        raise SourceError(f"'{label}' holds a {type(content).__name__}, not a dictionary of weights")
    weights, notes = find_weights(cast("Mapping[object, object]", content), label)
    return list_tensors(weights, label), notes
