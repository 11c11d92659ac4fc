"""Pipelines of DeepSpeed and GPT-NeoX: a file for each layer, layer_II-model_MM-model_states.pt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from msgspec.structs import replace

from specdiag.checkpoint.layouts.extent import read_extent
from specdiag.checkpoint.layouts.layer_files import file_name, require_all_layers
from specdiag.checkpoint.layouts.megatron_slices import join_ranks
from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.parallel import Tensors
from specdiag.checkpoint.layouts.pieces import Place
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.text.counts import counted

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
    extent = read_extent(place)
    if extent.world is not None and extent.world[0] != world:
        raise SourceError(
            f"{place.where} holds {world} parts of each layer where {extent.world[1]} says {extent.world[0]}: fetch "
            "all of its layer_NN-model_MM files"
        )
    layers = {layer: _joined(place, layer, files, world) for layer, files in files_of.items()}
    notes = require_all_layers(place, layers, extent)
    tensors: dict[str, StoredTensor] = {}
    for layer, joined in layers.items():
        tensors |= {
            full: replace(tensor, name=full) for name, tensor in joined.items() if (full := f"layers.{layer}.{name}")
        }
    parallel = f" of {world} parts each" if world > 1 else ""
    joined = f"Joined {counted(len(layers), 'file')} of layers{parallel}, numbered as they are."
    return Listing(list(tensors.values()), (joined, *notes))


def _joined(place: Place, layer: int, files: Mapping[int, str], world: int) -> Tensors:
    """Join the slices of a layer."""
    missing = next((rank for rank in range(world) if rank not in files), None)
    if missing is not None:
        raise SourceError(f"{place.where} lacks {file_name(layer, missing)}, part {missing + 1} of {world}: fetch it")
    parts = [place.open(files[rank]) for rank in range(world)]
    joined = join_ranks([part.tensors(part.content) for part in parts], place.where)
    for name, tensor in joined.items():
        if world > 1 and _FUSED.fullmatch(name) and tensor.shape[0] != 3 * tensor.shape[-1]:
            raise SourceError(
                f"{place.where} holds '{name}' of shape {tensor.shape} in {world} parts: queries share keys, and "
                "nothing says how the parts interleave; merge them with the program that wrote them"
            )
    return joined
