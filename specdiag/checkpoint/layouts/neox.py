"""Pipelines of DeepSpeed and GPT-NeoX: a file for each layer, layer_II-model_MM-model_states.pt."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from specdiag.checkpoint.layouts.megatron_slices import cut_axis
from specdiag.checkpoint.layouts.parallel import join_slices
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
    layers: dict[int, dict[int, str]] = defaultdict(dict)
    for name in place.names:
        if match := _FILE.fullmatch(name):
            layers[int(match["layer"])][int(match["rank"])] = name
    world = 1 + max(rank for files in layers.values() for rank in files)
    tensors: dict[str, StoredTensor] = {}
    for layer, files in sorted(layers.items()):
        missing = next((rank for rank in range(world) if rank not in files), None)
        if missing is not None:
            raise SourceError(
                f"{place.where} lacks layer_{layer:02d}-model_{missing:02d}-model_states.pt, part {missing + 1} of "
                f"{world}: fetch it"
            )
        parts = [place.open(files[rank]) for rank in range(world)]
        joined = join_slices([part.tensors(part.content) for part in parts], cut_axis, place.where)
        for name, tensor in joined.items():
            if world > 1 and _FUSED.fullmatch(name) and tensor.shape[0] != 3 * tensor.shape[-1]:
                raise SourceError(
                    f"{place.where} holds '{name}' of shape {tensor.shape} in {world} parts: queries share keys, and "
                    "nothing says how the parts interleave; merge them with the program that wrote them"
                )
        tensors |= {
            full: replace(tensor, name=full) for name, tensor in joined.items() if (full := f"layers.{layer}.{name}")
        }
    parallel = f" of {world} parts each" if world > 1 else ""
    return Listing(list(tensors.values()), (f"Joined {len(layers)} files of layers{parallel}, numbered as they are.",))
