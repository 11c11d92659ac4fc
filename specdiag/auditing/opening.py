"""A source opened for an audit: its matrices, and the small tensors beside them, listed once and read once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specdiag.analysis import open_source
from specdiag.auditing.thresholds import Observation
from specdiag.checkpoint.tensors import FLOAT_TYPES, Checkpoint, StoredTensor
from specdiag.errors import SourceError
from specdiag.report import is_report
from specdiag.spectra.scan import scan

if TYPE_CHECKING:
    import torch

_ELSEWHERE = re.compile(r"tied to .*|not selected|expert sampling.*|buffer.*|empty.*")
"""Why a tensor was left out that is looked at otherwise, or may hold anything, as masks do."""
_MASK = re.compile(r".*mask(ed)?(_bias)?")


def open_audited(
    source: str | os.PathLike[str] | torch.nn.Module | Mapping[str, torch.Tensor] | Checkpoint,
    *,
    revision: str | None = None,
    file: str | None = None,
    base: str | os.PathLike[str] | None = None,
    role_map: str | os.PathLike[str] | None = None,
    experts: int | None = None,
    seed: int = 0,
) -> tuple[Checkpoint, tuple[StoredTensor, ...] | None]:
    """The checkpoint, and its float tensors that are no matrices; None where they cannot be had.

    Those of pipelines, adapters and open checkpoints cannot: they are listed under other names, or not at all.
    Arguments and errors as in `analyze`.
    """
    role = None if role_map is None else Path(role_map)
    if isinstance(source, (str, os.PathLike)) and base is None and not is_report(Path(source)):
        from specdiag.checkpoint.reader import read_plain
        from specdiag.checkpoint.sorting import Sorting, sort_tensors

        found = read_plain(source, revision, file)
        if found is not None:
            options = Sorting(role, experts, seed)
            checkpoint = sort_tensors(found.tensors, found.source, found.config, options, found.notes)
            return checkpoint, _others(checkpoint, found.tensors)
    checkpoint = open_source(
        source, revision=revision, file=file, base=base, role_map=role_map, experts=experts, seed=seed
    )
    if isinstance(source, (str, os.PathLike, Checkpoint)):
        return checkpoint, None
    return checkpoint, _others(checkpoint, _in_memory(source))


def read_others(tensors: Sequence[StoredTensor]) -> Iterator[Observation]:
    """Bad values in norm gains, biases and whatever else is no matrix."""
    for tensor in tensors:
        try:
            stored = tensor.read(None)
        except (SourceError, OSError) as error:
            yield Observation("failed", tensor.name, str(error))
            continue
        found = scan(np.ascontiguousarray(stored).reshape(1, 1, -1), FLOAT_TYPES[tensor.values_dtype])
        if found.n_nonfinite:
            yield Observation("nonfinite", tensor.name, found.n_nonfinite)
        if found.n_saturated:
            yield Observation("saturated", tensor.name, found.n_saturated)


def _in_memory(source: Any) -> list[StoredTensor]:
    import torch

    from specdiag.checkpoint.torch_tensors import list_tensors
    from specdiag.checkpoint.wrappers import unwrap

    state: Mapping[str, Any] = source if isinstance(source, Mapping) else source.state_dict()
    stored = list_tensors({name: value for name, value in state.items() if isinstance(value, torch.Tensor)}, "")
    return unwrap(stored, "")[0]


def _others(checkpoint: Checkpoint, tensors: Sequence[StoredTensor]) -> tuple[StoredTensor, ...]:
    left_out = {s.name for s in checkpoint.skipped if not _ELSEWHERE.fullmatch(s.reason)}
    return tuple(
        t
        for t in tensors
        if t.name in left_out and t.reason is None and t.values_dtype in FLOAT_TYPES
        and 0 not in t.shape and not _MASK.fullmatch(t.name)
    )  # fmt: skip
