"""The files of a pipeline's layers: which are missing, in their middle, at their end, or before the first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from specdiag.checkpoint.layouts.extent import Extent
from specdiag.checkpoint.layouts.parallel import Tensors
from specdiag.checkpoint.layouts.pieces import Place
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError

_PARAMETER = re.compile(r"(?P<layer>\d{1,6})\.(?P<name>.+)")
_BLOCK = re.compile(r"(.*\.)?(self_attention|attention|mlp|mixer)\..*")
"""Names in a transformer's layer."""


def file_name(layer: int, rank: int) -> str:
    """Give the name of the file that holds a slice of a layer."""
    return f"layer_{layer:02d}-model_{rank:02d}-model_states.pt"


def require_all_layers(place: Place, layers: Mapping[int, Tensors], extent: Extent) -> tuple[str, ...]:
    """Refuse a pipeline of which a layer's file is missing. Functions have numbers too, and no files.

    Args:
        place: the folder.
        layers: the tensors of each file, by its number.
        extent: what the files beside them say.

    Returns:
        Notes on what may be missing, where nothing tells.

    Raises:
        SourceError: a parameter that a process lists is not there, there are fewer layers than the settings say, or the
            files from the first to the last of alike layers are not evenly numbered.
    """
    _require_listed(place, layers, extent.names)
    blocks = _alike(layers)
    _refuse_gaps(place, blocks)
    if extent.layers is not None:
        n_blocks = max(len(blocks), sum(map(_is_block, layers.values())))
        said, file = extent.layers
        if n_blocks < said:
            raise SourceError(
                f"{place.where} holds {n_blocks} layers where num_layers in {file} is {said}: fetch all of its "
                "layer_NN-model_MM files"
            )
    is_transformer = bool(blocks) and _is_block(layers[blocks[-1]])
    return (*extent.notes, *(_missing_ends(layers, blocks) if is_transformer else ()))


def _require_listed(place: Place, layers: Mapping[int, Tensors], names: Mapping[str, str]) -> None:
    """Refuse a pipeline without a parameter that a process lists. Tied modules have names without a number."""
    for parameter, file in names.items():
        match = _PARAMETER.fullmatch(parameter)
        if match is None:
            continue
        layer = int(match["layer"])
        if layer not in layers:
            raise SourceError(
                f"{place.where} lacks {file_name(layer, 0)}, of whose layer {file} lists '{brief(match['name'])}': "
                "fetch it"
            )
        if match["name"] not in layers[layer]:
            raise SourceError(
                f"{place.where} holds {file_name(layer, 0)} without '{brief(match['name'])}', which {file} lists: they "
                "are not of one checkpoint; fetch all files of one save"
            )


def _alike(layers: Mapping[int, Tensors]) -> list[int]:
    """List the files from the first to the last whose tensors have the names of another file's."""
    alike = Counter(frozenset(tensors) for tensors in layers.values())
    found = [layer for layer, tensors in layers.items() if tensors and alike[frozenset(tensors)] > 1]
    return [layer for layer in layers if found and found[0] <= layer <= found[-1]]


def _refuse_gaps(place: Place, blocks: Sequence[int]) -> None:
    steps = {after - before for before, after in pairwise(blocks)}
    if len(steps) > 1 or (len(blocks) == 2 and steps != {1}):
        step = min(steps) if len(steps) > 1 else 1
        missing = next(before + step for before, after in pairwise(blocks) if after - before > step)
        raise SourceError(
            f"{place.where} lacks {file_name(missing, 0)}, between files of layers that are alike: fetch it, or save "
            "the model in one file where this number is a function without weights"
        )


def _is_block(tensors: Tensors) -> bool:
    return any(_BLOCK.fullmatch(name) for name in tensors)


def _missing_ends(layers: Mapping[int, Tensors], blocks: Sequence[int]) -> Iterator[str]:
    """Note a transformer without an embedding before its layers, or without a norm behind them."""
    if not any(len(t.shape) > 1 for layer in layers if layer < blocks[0] for t in layers[layer].values()):
        yield f"No file before layer_{blocks[0]:02d} holds an embedding: the model's first files may be missing."
    norms = (t for layer in layers if layer > blocks[-1] for t in layers[layer].values() if len(t.shape) == 1)
    if next(norms, None) is None:
        yield f"No file behind layer_{blocks[-1]:02d} holds a final norm: the model's last files may be missing."
