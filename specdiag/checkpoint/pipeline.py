"""Repositories of several models, such as a diffusers pipeline: every component is one, in its own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from specdiag.checkpoint.choice import weight_files
from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.shards import read_json
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix

_INDEX = "model_index.json"


def component_folders(folder: Folder) -> tuple[str, ...]:
    """The folders of a pipeline that hold weights, in the order of its model_index.json; none without one.

    A repository with weights at the top is one model, whatever else it holds.

    Raises:
        SourceError: model_index.json cannot be read.
    """
    if _INDEX not in folder.names or any("/" not in name for name in weight_files(folder.names)):
        return ()
    folder.fetch([_INDEX])
    parts = read_json(folder.root / _INDEX, _INDEX)
    with_weights = {name.rpartition("/")[0] for name in weight_files(folder.names)}
    return tuple(name for name in parts if name in with_weights)


def join(folder: Folder, components: Mapping[str, Checkpoint]) -> Checkpoint:
    """One checkpoint of several: the names of each begin with its folder, which is its component too."""
    kept = components.values()
    files = tuple(file for part in kept for file in part.source.files)
    return Checkpoint(
        source=msgspec.structs.replace(
            folder.source, files=files, ignored=tuple(n for n in weight_files(folder.names) if n not in files)
        ),
        architecture=_class_name(folder),
        config={},
        matrices=tuple(_within(name, matrix) for name, part in components.items() for matrix in part.matrices),
        skipped=tuple(
            msgspec.structs.replace(skipped, name=f"{name}.{skipped.name}")
            for name, part in components.items()
            for skipped in part.skipped
        ),
        notes=tuple(f"{name}: {note}" for name, part in components.items() for note in part.notes),
        n_tensors=sum(part.n_tensors for part in kept),
        n_parameters=sum(part.n_parameters for part in kept),
    )


def _within(component: str, matrix: WeightMatrix) -> WeightMatrix:
    inner = matrix.module.component
    module = msgspec.structs.replace(matrix.module, component=f"{component}.{inner}" if inner else component)
    return replace(matrix, name=f"{component}.{matrix.name}", module=module)


def _class_name(folder: Folder) -> str | None:
    name = read_json(folder.root / _INDEX, _INDEX).get("_class_name")
    return name if isinstance(name, str) else None
