"""The weights of a file that torch.save wrote. The zip format is read on demand, the legacy one is loaded whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from msgspec.structs import replace

from specdiag.checkpoint.dtensors import refuse_shards
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.layouts.megatron_args import describe_lone
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.modules import BUFFER, EMBEDDING, is_script, module_entries, tensor_kinds
from specdiag.checkpoint.named_part import find_part, list_models
from specdiag.checkpoint.nested import Walk, all_values, count_tensors
from specdiag.checkpoint.no_tensors import refuse_empty_module
from specdiag.checkpoint.parts import refuse_counted_part, refuse_lone_part, refuse_part
from specdiag.checkpoint.state_dict import SeveralModelsError, find_weights
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.checkpoint.torch_archive import Opened, open_torch
from specdiag.checkpoint.torch_tensors import list_tensors, tensor_shape
from specdiag.errors import SourceError, UsageError
from specdiag.text.counts import counted
from specdiag.text.names import listed

_LISTED = 8


def list_torch_file(path: Path, label: str, part: str | None = None) -> Listing:
    """List every tensor of a torch checkpoint in stored order.

    Args:
        path: the file.
        label: its name in messages.
        part: keys, joined with dots, that lead to one of several models in it; None for its only model. Where no keys
            do, it is left to be chosen by the prefix of names.

    Returns:
        Its tensors, and notes about what else it holds.

    Raises:
        UsageError: it holds several models, and no such part.
        SourceError: it is damaged, wants to run code, is one process's part of a model, or holds no weights, or several
            sets of weights.
    """
    refuse_part(path.absolute().as_posix(), label, lambda name: Path(name).exists())
    opened = open_torch(path, label)
    content = opened.content
    if isinstance(content, torch.Tensor):
        content = {"tensor": content}
    if isinstance(content, Inert):
        if module_entries(content) is not None:
            return _whole_module(opened, path, label)
        content = dict(content.items) or content
    if not isinstance(content, Mapping):
        raise SourceError(f"'{label}' holds {_named(content)}, not a dictionary of weights: save its state_dict")
    refuse_counted_part(cast("Mapping[object, object]", content), label)
    entries = cast("Mapping[object, object]", content)
    config, doubts = describe_lone(entries, label)
    found = None if part is None else find_part(entries, label, part)
    try:
        weights, notes = found or find_weights(entries, label)
    except SeveralModelsError as error:
        if part is None:
            raise
        raise UsageError(f"'{label}' has no part={brief(part)}: it holds {error.models}") from error
    refuse_shards(weights, label)
    refuse_lone_part({name: tensor.shape for name, tensor in weights.items()}, label)
    tensors = _listed(weights, opened, label)
    models = {} if part is None or found else list_models(entries)
    notes += [*_not_made(opened.foreign, label), *doubts]
    return Listing(tensors, tuple(notes), config, part=part if found else None, models=models)


def _whole_module(opened: Opened, path: Path, label: str) -> Listing:
    """List the tensors of a module that was saved whole, or as TorchScript."""
    module = cast("Inert", opened.content)
    walk = Walk(label).enter(module)
    if not walk.tensors and walk.left:
        raise SourceError(
            f"'{label}' holds a {brief(module.kind)} without named tensors, only {_left(walk)}: give the model from "
            "before they were packed, or its state_dict"
        )
    if not walk.tensors:
        raise refuse_empty_module(module.kind, opened.members, label)
    kind = "TorchScript program" if is_script(module) else f"module {brief(module.kind)}"
    left = " and ".join(filter(None, (_left(walk), _constants(opened, path, label))))
    note = f"Read the tensors of the {kind} in {label}; it was not made, and nothing of it was run"
    refuse_shards(walk.tensors, label)
    tensors = _listed(walk.tensors, opened, label)
    return Listing(tensors, (f"{note}. Left out {left}." if left else f"{note}.",))


def _listed(weights: Mapping[str, torch.Tensor], opened: Opened, label: str) -> list[StoredTensor]:
    """List tensors with what modules in the file tell of them."""
    kinds = tensor_kinds(all_values(opened.content)) if opened.foreign else {}
    told = (kinds.get(id(tensor)) for tensor in weights.values())
    return [
        tensor
        if kind is None
        else replace(tensor, reason=BUFFER if kind == BUFFER else tensor.reason, is_embedding=kind == EMBEDDING)
        for tensor, kind in zip(list_tensors(weights, label, opened.mapped), told, strict=True)
    ]


def _left(walk: Walk) -> str:
    """Name what a walk did not enter."""
    return listed([f"{brief(name)} ({what})" for name, what in walk.left], _LISTED)


def _constants(opened: Opened, path: Path, label: str) -> str:
    """Name the tensors in the code of a TorchScript program; empty where there are none."""
    if not any(name.endswith("/constants.pkl") for name in opened.members):
        return ""
    tensors = Walk(label).enter(open_torch(path, label, "constants").content).tensors
    names = [f"c{name} of {'x'.join(map(str, tensor_shape(t))) or 'one value'}" for name, t in tensors.items()]
    return f"{counted(len(names), 'constant')} of its code, {listed(names, _LISTED)}" if names else ""


def _named(content: object) -> str:
    if not isinstance(content, Inert):
        return f"a {type(content).__name__}"
    n_tensors = count_tensors(content)
    return f"an object of {content.kind} with {counted(n_tensors, 'tensor')}"


def _not_made(foreign: Sequence[str], label: str) -> list[str]:
    """Note the classes whose objects lie beside the weights."""
    if not foreign:
        return []
    return [f"Objects of {listed(map(brief, foreign), _LISTED)} in {label} were not made, and nothing was run."]
