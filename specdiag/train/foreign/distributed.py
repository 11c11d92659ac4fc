"""Reads the weights of a checkpoint of torch.distributed.checkpoint. Its optimizer's state is not read."""

from __future__ import annotations

from pathlib import Path

import torch

from specdiag.checkpoint.distributed.checkpoint import list_distributed
from specdiag.checkpoint.distributed.folders import is_accelerate_folder
from specdiag.checkpoint.parts import METADATA
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError, UsageError
from specdiag.train.foreign.building import build, dtype_of, load
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.runs.trainer_arguments import TrainerArguments

_TYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")


def metadata_of(source: Path) -> Path | None:
    """Find the `.metadata` of a distributed checkpoint, given by its folder or as it is; None for anything else."""
    path = source if source.name == METADATA else source / METADATA
    return path if path.is_file() else None


def refuse_to_continue(path: Path) -> None:
    """Say that a run can start from a distributed checkpoint, and not continue it.

    Args:
        path: its `.metadata`.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"'{path.parent}' is a distributed checkpoint, of which the weights are read and not the optimizer's state: "
        "fresh_optimizer=True starts a run from these weights"
    )


def read_distributed(path: Path, config: str | Path | None) -> Foreign:
    """Read the model of a distributed checkpoint.

    Args:
        path: its `.metadata`.
        config: folder, config.json or hub id of the model; None for the config.json in its folder, or beside that
            where accelerate saved it.

    Raises:
        UsageError: the model must be named.
        SourceError: the checkpoint is damaged, or is of another model.
    """
    folder = path.parent.resolve()
    beside = folder.parent if is_accelerate_folder(folder.as_posix()) else folder
    listing = list_distributed(path, str(path))
    weights = {tensor.name: _values(tensor) for tensor in listing.tensors}
    loaded = load(build(config, beside, dtype_of(weights), f"'{folder}'"), weights, folder.name)
    return Foreign(
        kind="distributed checkpoint", model=loaded.model, moments={}, optimizer="adamw", step=0,
        settings=TrainerArguments({}, {}), notes=[*listing.notes, *loaded.notes],
    )  # fmt: skip


def _values(tensor: StoredTensor) -> torch.Tensor:
    if tensor.dtype not in _TYPES:
        raise SourceError(f"{tensor.file} stores '{tensor.name}' as {tensor.dtype}, from which no run starts")
    values = torch.from_numpy(tensor.read(None))
    return values.view(torch.bfloat16) if tensor.dtype == "BF16" else values
