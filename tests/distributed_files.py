"""Checkpoints of torch.distributed.checkpoint that one process writes, and `.metadata` changed by hand."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from specdiag.checkpoint.tensors import Checkpoint

Tensors = Mapping[str, torch.Tensor]


def save_one(folder: Path, state: Mapping[str, Any], writer: Any = None) -> Path:
    """Save a state dict from this process alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(state), checkpoint_id=None if writer else folder, storage_writer=writer, no_dist=True)
    return folder


def save_chunks(
    folder: Path, tensors: Tensors, cuts: Mapping[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]
) -> Path:
    """Save tensors as chunks of given offsets and sizes, each in a file of its own, as the ranks of a run would."""
    folder.mkdir(parents=True)
    entries, stored = {}, {}
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    for name, tensor in tensors.items():
        chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in cuts[name]]
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.shape, chunks)
        for rank, (offsets, sizes) in enumerate(cuts[name]):
            region = tuple(slice(begin, begin + size) for begin, size in zip(offsets, sizes, strict=True))
            path = folder / f"__{rank}_0.distcp"
            with path.open("ab") as file:
                begin = file.tell()
                torch.save(tensor[region].clone(), file)
                stored[MetadataIndex(name, offsets)] = _StorageInfo(path.name, begin, file.tell() - begin)
    metadata = Metadata(entries, {name: tuple(name.split("/")) for name in entries}, stored)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


def change_metadata(folder: Path, change: Callable[[Metadata], object]) -> None:
    """Change `.metadata` in place."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def assert_holds(checkpoint: Checkpoint, truth: Mapping[str, torch.Tensor]) -> None:
    """Every tensor is there with the values of the truth, read whole and row by row, and no other."""
    assert checkpoint.stored is not None
    assert {tensor.name for tensor in checkpoint.stored} == set(truth)
    for tensor in checkpoint.stored:
        values = truth[tensor.name].detach().contiguous()
        expected = values.view(torch.uint16 if values.dtype == torch.bfloat16 else values.dtype).numpy()
        assert np.array_equal(tensor.read(None), expected)
        for index in range(tensor.shape[0] if tensor.shape else 0):
            assert np.array_equal(tensor.read(index), expected[index])
