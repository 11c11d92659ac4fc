"""Pipelines of DeepSpeed and GPT-NeoX: a file for each layer, layer_II-model_MM-model_states.pt."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

from specdiag.checkpoint.layouts.megatron_slices import join_ranks
from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.parallel import Tensors
from specdiag.checkpoint.layouts.pieces import Place
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

_FILE = re.compile(r"layer_(?P<layer>\d+)-model_(?P<rank>\d+)-model_states\.pt")
_FUSED = re.compile(r"(.*\.)?query_key_value\.weight")


def read_pipeline(place: Place) -> Listing:
    """Join the layers of a model, and the slices of each.

    Args:
        place: the folder.

    Returns:
        The tensors, named by the number of their layer's file, and a note.

    Raises:
        SourceError: a file is missing or damaged, or it is not known how a tensor was cut.
    """
    files_of: dict[int, dict[int, str]] = defaultdict(dict)
    for (layer, rank), name in by_numbers(place, _FILE, "layer", "rank").items():
        files_of[layer][rank] = name
    world = 1 + max(rank for files in files_of.values() for rank in files)
    layers = {layer: _joined(place, layer, files, world) for layer, files in files_of.items()}
    _refuse_gaps(place, layers)
    tensors: dict[str, StoredTensor] = {}
    for layer, joined in layers.items():
        tensors |= {
            full: replace(tensor, name=full) for name, tensor in joined.items() if (full := f"layers.{layer}.{name}")
        }
    parallel = f" of {world} parts each" if world > 1 else ""
    return Listing(list(tensors.values()), (f"Joined {len(layers)} files of layers{parallel}, numbered as they are.",))


def _joined(place: Place, layer: int, files: Mapping[int, str], world: int) -> Tensors:
    """Join the slices of a layer."""
    missing = next((rank for rank in range(world) if rank not in files), None)
    if missing is not None:
        raise SourceError(f"{place.where} lacks {_name(layer, missing)}, part {missing + 1} of {world}: fetch it")
    parts = [place.open(files[rank]) for rank in range(world)]
    joined = join_ranks([part.tensors(part.content) for part in parts], place.where)
    for name, tensor in joined.items():
        if world > 1 and _FUSED.fullmatch(name) and tensor.shape[0] != 3 * tensor.shape[-1]:
            raise SourceError(
                f"{place.where} holds '{name}' of shape {tensor.shape} in {world} parts: queries share keys, and "
                "nothing says how the parts interleave; merge them with the program that wrote them"
            )
    return joined


def _refuse_gaps(place: Place, layers: Mapping[int, Tensors]) -> None:
    """Refuse a missing file between layers of the same tensors. Functions have numbers too, and no files.

    Raises:
        SourceError: the files from the first to the last of such layers are not evenly numbered.
    """
    alike = Counter(frozenset(tensors) for tensors in layers.values())
    blocks = [layer for layer, tensors in layers.items() if tensors and alike[frozenset(tensors)] > 1]
    within = [layer for layer in layers if blocks and blocks[0] <= layer <= blocks[-1]]
    steps = {after - before for before, after in pairwise(within)}
    if len(steps) > 1 or (len(within) == 2 and steps != {1}):
        step = min(steps) if len(steps) > 1 else 1
        missing = next(before + step for before, after in pairwise(within) if after - before > step)
        raise SourceError(
            f"{place.where} lacks {_name(missing, 0)}, between files of layers that are alike: fetch it, or save the "
            "model in one file where this number is a function without weights"
        )


def _name(layer: int, rank: int) -> str:
    return f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"
