"""The extent of a model in pieces, as files beside its weights tell it: a missing last piece leaves no other trace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from specdiag.checkpoint.layouts.megatron_args import read_args
from specdiag.checkpoint.layouts.pieces import Place, TorchPart
from specdiag.errors import SourceError
from specdiag.files import read_start

_LAYERS = "num_layers"
_WORLDS = ("model_parallel_size", "tensor_model_parallel_size")
_YAML = re.compile(r"(?m)(?:^|[{,])[ \t]*[\"']?num[-_]layers[\"']?[ \t]*:[ \t]*(\d{1,6})\b")
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """The pieces that a save should have.

    Attributes:
        layers: number of layers, and the file that tells it; None where none does.
        world: number of slices of each matrix, and the file that tells it; None where none does.
        names: parameters, each with the file that lists it.
        notes: files that could not be read.
    """

    layers: tuple[int, str] | None
    world: tuple[int, str] | None
    names: Mapping[str, str]
    notes: tuple[str, ...]


def read_extent(place: Place) -> Extent:
    """Read the model states of DeepSpeed's processes, and the settings of GPT-NeoX, that lie beside the weights.

    Args:
        place: the folder.
    """
    layers: tuple[int, str] | None = None
    world: tuple[int, str] | None = None
    names: dict[str, str] = {}
    notes: list[str] = []
    for name in place.beside:
        try:
            if not name.endswith(".pt"):
                layers = layers or _in_settings(place, name)
                continue
            part = place.open(name)
        except SourceError as error:
            notes.append(f"What {name} says of the number of pieces was not read: {error}.")
            continue
        args = read_args(part.content.get("args"))
        layers = layers or _whole(args, (_LAYERS,), name)
        world = world or _whole(args, _WORLDS, name)
        names |= dict.fromkeys(_listed(part), name)
    return Extent(layers, world, names, tuple(notes))


def _in_settings(place: Place, name: str) -> tuple[int, str] | None:
    text = read_start(place.path(name), _LONGEST).decode("utf-8", "replace")
    found = set(_YAML.findall(text))
    return (int(found.pop()), name) if len(found) == 1 else None


def _whole(args: Mapping[str, object], keys: Iterable[str], file: str) -> tuple[int, str] | None:
    said = next((value for key in keys if type(value := args.get(key)) is int), 0)
    return (said, file) if said > 0 else None


def _listed(part: TorchPart) -> list[str]:
    """List the parameters that a process trains, under the names that its optimizer knows."""
    groups = part.content.get("param_shapes")
    found: list[str] = []
    for group in cast("list[object]", groups) if isinstance(groups, (list, tuple)) else [groups]:
        names = cast("Mapping[object, object]", group) if isinstance(group, Mapping) else {}
        found += [name for name in names if isinstance(name, str)]
    return found
