"""The weight file that holds each tensor of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec.structs import replace

from specdiag.auditing.records import Finding

if TYPE_CHECKING:
    from specdiag.checkpoint.tensors import Checkpoint, StoredTensor


def weight_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Map names of matrices and tensors to their files, relative to the location of the checkpoint.

    Args:
        checkpoint: listed, its values not read.

    Returns:
        The files by name. Weight files are there under their own names.
    """
    files = {name: name for name in (*checkpoint.source.files, *checkpoint.source.ignored)}
    places: dict[str, str | None] = {}
    tensors: Sequence[tuple[str, StoredTensor]] = [
        *((t.name, t) for t in checkpoint.stored or ()),
        *((m.name, m.tensor) for m in checkpoint.matrices),
        *((m.key, m.tensor) for m in checkpoint.matrices),
    ]
    for name, tensor in tensors:
        if tensor.file not in places:
            places[tensor.file] = _relative(tensor.file, checkpoint.source.files)
        if (file := places[tensor.file]) is not None:
            files[name] = file
    return files


def placed(finding: Finding, files: Mapping[str, str]) -> Finding:
    """Add the file of its module to a finding, where that is known.

    Args:
        finding: of the checkpoint.
        files: as `weight_files` made them.
    """
    file = files.get(finding.module) if finding.module is not None else None
    return finding if file is None else replace(finding, file=file)


def _relative(label: str, files: Sequence[str]) -> str | None:
    """Find the file that a label of messages ends with; None where the tensor has no single file."""
    return max((f for f in files if label == f or label.endswith(f"/{f}")), key=len, default=None)
