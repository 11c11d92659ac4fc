"""Reads only the weights of another program's checkpoint, for a run that starts from them with a new optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from specdiag.checkpoint.state_dict import find_weights
from specdiag.errors import SourceError
from specdiag.train.foreign.building import build, dtype_of, load
from specdiag.train.foreign.distributed import metadata_of, read_distributed_weights
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.nanogpt import is_nanogpt
from specdiag.train.foreign.opening import open_dictionary
from specdiag.train.foreign.reading import read_foreign
from specdiag.train.runs.trainer_arguments import TrainerArguments


def read_weights(source: Path, *, config: str | Path | None = None) -> Foreign:
    """Read the model of a checkpoint without its optimizer.

    Args:
        source: file, as for `read_foreign`, or a folder of torch.distributed.checkpoint.
        config: folder, config.json or hub id of the model, for a checkpoint that does not contain it.

    Raises:
        UsageError: the model must be named.
        SourceError: the file is missing or damaged, or wants to run something.
    """
    metadata = metadata_of(source)
    if metadata is not None:
        return read_distributed_weights(metadata, config)
    if source.is_dir():
        raise SourceError(f"'{source}' holds no weights that transformers loads: name the file itself")
    content = open_dictionary(source)
    if is_nanogpt(content):
        return read_foreign(source)
    weights = cast("Mapping[str, torch.Tensor]", find_weights(content, source.name)[0])
    loaded = load(build(config, source.parent, dtype_of(weights), f"'{source}'"), weights, source.name)
    return Foreign(
        kind="torch dict", model=loaded.model, moments={}, optimizer="adamw", step=0,
        settings=TrainerArguments({}, {}), notes=loaded.notes,
    )  # fmt: skip
