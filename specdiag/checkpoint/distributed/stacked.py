"""Layers that Megatron stacks to one tensor: `decoder.layers.mlp.linear_fc2.weight` of layers x rows x columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from msgspec.structs import replace

from specdiag.checkpoint.distributed.folders import BACKEND, COMMON
from specdiag.checkpoint.layouts.megatron_args import describe_model
from specdiag.checkpoint.layouts.pieces import open_recognised
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.shards import parse_json
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError, SpecdiagError
from specdiag.files import Table, read_whole
from specdiag.spectra.float_types import RawArray
from specdiag.text.counts import counted

_STACKED = re.compile(r"(?P<before>(?:.*\.)?layers)\.(?!\d+\.)(?P<after>.+)")
_MOST_LAYERS = 10_000


def is_megatron(folder: Path, where: str) -> bool:
    """Tell whether Megatron saved a distributed checkpoint, which stacks the layers of a network that are alike.

    Args:
        folder: of the checkpoint.
        where: its name in messages.

    Raises:
        SourceError: the file that says so cannot be read.
    """
    path = folder / BACKEND
    if not path.is_file():
        return False
    try:
        return parse_json(read_whole(path), f"{where}/{BACKEND}").get("sharded_backend") == "torch_dist"
    except OSError as error:
        raise SourceError(f"'{where}/{BACKEND}' cannot be read: {error.strerror}") from error


def read_run(folder: Path, where: str) -> tuple[Table, list[str]]:
    """Read what the arguments of a run of Megatron say of its model.

    Args:
        folder: of the checkpoint.
        where: its name in messages.

    Returns:
        In the words of a config.json, empty where there are none; notes.
    """
    if not (folder / COMMON).is_file():
        return {}, []
    try:
        content = open_recognised(folder / COMMON, f"{where}/{COMMON}").content
    except SpecdiagError as error:
        return {}, [f"Went on without the arguments of the run: {error}."]
    return describe_model(cast("Mapping[object, object]", content)) if isinstance(content, Mapping) else ({}, [])


def unstack_layers(tensors: Sequence[StoredTensor], where: str) -> tuple[list[StoredTensor], list[str]]:
    """Make a tensor of each layer of those that are stacked, with the number in its name.

    Args:
        tensors: of a checkpoint of Megatron.
        where: the checkpoint, for messages.

    Returns:
        The tensors, in the order of layers, and a note where some were stacked.

    Raises:
        SourceError: stacks of one network have different numbers of layers.
    """
    single: list[StoredTensor] = []
    stacks: dict[str, list[tuple[str, StoredTensor]]] = {}
    for tensor in tensors:
        match = _STACKED.fullmatch(tensor.name)
        if match is None or not tensor.shape:
            single.append(tensor)
        else:
            stacks.setdefault(match["before"], []).append((match["after"], tensor))
    layers = [layer for before, stack in stacks.items() for layer in _layers(before, stack, where)]
    n_stacked = sum(map(len, stacks.values()))
    note = f"Read {counted(n_stacked, 'tensor')} of {where} as {len(layers)}: Megatron stacks the layers of a network."
    return [*single, *layers], [note] if stacks else []


def _layers(before: str, stack: Sequence[tuple[str, StoredTensor]], where: str) -> list[StoredTensor]:
    counts = {tensor.shape[0]: tensor.name for _, tensor in stack}
    if len(counts) > 1 or max(counts) > _MOST_LAYERS:
        shown = ", ".join(f"{count} for '{brief(name)}'" for count, name in list(counts.items())[:2])
        raise SourceError(f"{where} stacks different numbers of layers under '{brief(before)}': {shown}")
    numbers = range(max(counts))
    return [_layer(tensor, f"{before}.{number}.{after}", number) for number in numbers for after, tensor in stack]


def _layer(stack: StoredTensor, name: str, number: int) -> StoredTensor:
    return replace(
        stack, name=name, shape=stack.shape[1:], nbytes=stack.nbytes // stack.shape[0],
        read=partial(_read, stack.read, number),
    )  # fmt: skip


def _read(read: Callable[[int | None], RawArray], number: int, index: int | None = None) -> RawArray:
    values = read(number)
    return values if index is None else np.array(values[index], order="C")
