"""Repositories of several models, such as a diffusers pipeline: every component is one, in its own folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import msgspec

from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.tensors import Checkpoint, StoredTensor, WeightMatrix
from specdiag.checkpoint.weight_names import weight_files

_INDEX = "model_index.json"
_WEIGHTLESS = re.compile(r".*(Scheduler|Tokenizer|TokenizerFast|Processor|FeatureExtractor)")


def component_folders(folder: Folder) -> tuple[str, ...]:
    """List the folders of a pipeline that hold weights, in the order of its model_index.json.

    Args:
        folder: the repository or directory.

    Returns:
        The folders. None of a repository without model_index.json, or with weights at its top: these are one model.

    Raises:
        SourceError: model_index.json cannot be read.
    """
    if _INDEX not in folder.names or any("/" not in name for name in weight_files(folder.names)):
        return ()
    parts = folder.json(_INDEX)
    with_weights = {name.rpartition("/")[0] for name in weight_files(folder.names)}
    return tuple(name for name in parts if name in with_weights)


def join(folder: Folder, components: Mapping[str, Checkpoint]) -> Checkpoint:
    """Join the checkpoints of a pipeline to one. A component's name comes before the names of its tensors.

    Args:
        folder: the repository or directory.
        components: a checkpoint for each folder that holds weights.

    Returns:
        The joined checkpoint, with a note on each component whose weights are missing.

    Raises:
        SourceError: model_index.json cannot be read.
    """
    index = folder.json(_INDEX)
    missing_notes = (
        f"{_INDEX} names {name} ({entry[1]}), of which no weights are here."
        for name, entry in index.items()
        if name not in components and _is_model(entry)
    )
    checkpoints = components.values()
    files = tuple(file for part in checkpoints for file in part.source.files)
    return Checkpoint(
        source=msgspec.structs.replace(
            folder.source, files=files, ignored=tuple(n for n in weight_files(folder.names) if n not in files)
        ),
        architecture=class_name if isinstance(class_name := index.get("_class_name"), str) else None,
        config={},
        matrices=tuple(_within(name, matrix) for name, part in components.items() for matrix in part.matrices),
        skipped=tuple(
            msgspec.structs.replace(skipped, name=f"{name}.{skipped.name}")
            for name, part in components.items()
            for skipped in part.skipped
        ),
        notes=(*(f"{name}: {note}" for name, part in components.items() for note in part.notes), *missing_notes),
        n_tensors=sum(part.n_tensors for part in checkpoints),
        n_parameters=sum(part.n_parameters for part in checkpoints),
        stored=_stored(components),
    )


def _stored(components: Mapping[str, Checkpoint]) -> tuple[StoredTensor, ...] | None:
    """Join the tensors of the components; None where those of one are not listed."""
    stored: list[StoredTensor] = []
    for name, part in components.items():
        if part.stored is None:
            return None
        stored += (msgspec.structs.replace(tensor, name=f"{name}.{tensor.name}") for tensor in part.stored)
    return tuple(stored)


def _within(component: str, matrix: WeightMatrix) -> WeightMatrix:
    inner = matrix.module.component
    module = msgspec.structs.replace(matrix.module, component=f"{component}.{inner}" if inner else component)
    return msgspec.structs.replace(matrix, name=f"{component}.{matrix.name}", module=module)


def _is_model(entry: object) -> bool:
    """Tell whether an entry, [library, class], names a class that has weights."""
    if not isinstance(entry, list) or len(cast("list[object]", entry)) != 2:
        return False
    name = cast("list[object]", entry)[1]
    return isinstance(name, str) and not _WEIGHTLESS.fullmatch(name)
