"""Universal checkpoints of DeepSpeed: a folder for each parameter, zero/NAME/fp32.pt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from specdiag.checkpoint.layouts.extent import read_extent
from specdiag.checkpoint.layouts.pieces import Place, open_recognised
from specdiag.checkpoint.layouts.zero_state import precision
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_tensors import list_tensors
from specdiag.errors import SourceError
from specdiag.text.counts import counted

_FILE = re.compile(r"zero/(?P<name>[^/]+)/fp32\.pt")


def read_universal(place: Place) -> Listing:
    """List the fp32 copies of all parameters.

    Args:
        place: the folder.

    Returns:
        The tensors, and a note.

    Raises:
        SourceError: a file is damaged, or holds no tensor.
    """
    files = {match["name"]: file for file in place.names if (match := _FILE.fullmatch(file))}
    tensors = [_parameter(name, place.path(file), place.label(file)) for name, file in files.items()]
    extent = read_extent(place)
    missing = next((name for name in extent.names if name not in files), None)
    if missing is not None:
        raise SourceError(
            f"{place.where} lacks zero/{brief(missing)}/fp32.pt, a parameter that {extent.names[missing]} lists: "
            "convert the checkpoint again, or fetch all of it"
        )
    note = f"Read the {precision(tensors)} weights of {counted(len(files), 'parameter')} of a universal checkpoint."
    return Listing(tensors, (note, *extent.notes))


def _parameter(name: str, path: Path, label: str) -> StoredTensor:
    opened = open_recognised(path, label)
    content = opened.content
    tensor = cast("Mapping[object, object]", content).get("param") if isinstance(content, Mapping) else content
    if not isinstance(tensor, torch.Tensor):
        raise SourceError(f"'{label}' holds no tensor under 'param': convert the checkpoint again")
    return list_tensors({name: tensor}, label, opened.mapped)[0]
