"""The state of an optimizer in a checkpoint of torch.distributed.checkpoint, by the names of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

from specdiag.checkpoint.distributed.checkpoint import find_files, stored_tensors
from specdiag.checkpoint.distributed.metadata import Metadata, read_metadata
from specdiag.checkpoint.distributed.stream import read_object
from specdiag.checkpoint.distributed.values import DAMAGED
from specdiag.checkpoint.inert import Inert
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError, UsageError

_GROUPS = re.compile(r"((?:.*?\.)?)param_groups(?:\.(.+))?")
Value = StoredTensor | object


class ListedOptimizer(NamedTuple):
    """The state of an optimizer.

    Attributes:
        groups: options of each parameter group, and the names of its `params`.
        state: of each parameter by its name: tensors, which are not read yet, and other values.
    """

    groups: list[dict[str, Value]]
    state: dict[str, dict[str, Value]]


def list_optimizer(path: Path, label: str) -> ListedOptimizer | None:
    """List the optimizer of a distributed checkpoint: as `get_optimizer_state_dict` gives it, also flattened.

    Args:
        path: of `.metadata`.
        label: its name in messages.

    Returns:
        The optimizer; None where there are no parameter groups.

    Raises:
        UsageError: there are several optimizers.
        SourceError: it is damaged, or holds other objects than numbers, text and plain containers.
    """
    where = label.rpartition("/")[0] or "."
    metadata = read_metadata(path, label)
    keys = {name: tensor.path for name, tensor in metadata.tensors.items()} | dict(metadata.objects)
    dotted = {name: ".".join(map(str, path)) for name, path in keys.items()}
    roots = {match[1] for text in dotted.values() if (match := _GROUPS.fullmatch(text))}
    if len(roots) > 1:
        listed = ", ".join(sorted(root.rstrip(".") or "its root" for root in roots)[:4])
        raise UsageError(f"{where} holds {len(roots)} optimizers ({listed}), and a Trainer has one")
    if not roots:
        return None
    root = roots.pop()
    inside = {name: text.removeprefix(root) for name, text in dotted.items() if text.startswith(root)}
    inside = {name: text for name, text in inside.items() if text.startswith(("state.", "param_groups"))}
    values = _values(metadata, inside, path.parent, where)
    state: dict[str, dict[str, Value]] = {}
    options: dict[str, dict[str, Value]] = {}
    for name, text in inside.items():
        kind, _, rest = text.partition(".")
        owner, _, key = rest.rpartition(".")
        if not rest:  # all groups are one object
            options |= _whole_groups(values[name], where)
        else:
            (state if kind == "state" else options).setdefault(owner, {})[key] = values[name]
    return ListedOptimizer(_groups(options), state)


def _groups(options: Mapping[str, dict[str, Value]]) -> list[dict[str, Value]]:
    """Put groups in their order. A flattened state dict has the options of each parameter under its name."""
    numbered = sorted((key for key in options if key.isdecimal()), key=int)
    named = [{**own, "params": [name]} for name, own in options.items() if not name.isdecimal()]
    return [options[key] for key in numbered] + named


def _whole_groups(value: object, where: str) -> dict[str, dict[str, Value]]:
    entries = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise SourceError(f"{where} holds no parameter groups where they belong: it is damaged, fetch it again")
    return {str(number): dict(cast("Mapping[str, Value]", entry)) for number, entry in enumerate(entries)}


def _values(metadata: Metadata, names: Iterable[str], folder: Path, where: str) -> dict[str, Value]:
    names = list(names)
    flat = {name: name for name in names if name in metadata.tensors}
    tensors, _ = stored_tensors(metadata, flat, folder, where)
    places = metadata.places({name for name in names if name in metadata.objects})
    files = find_files(folder, places.values(), where)
    values: dict[str, Value] = {tensor.name: tensor for tensor in tensors}
    for name, place in places.items():
        should = f"'{where}/{brief(place.file)}' should hold '{brief(name)}'"
        try:
            with files[place.file].open("rb", buffering=0) as file:
                values[name] = read_object(file, place.begin, place.length)
            foreign = _foreign(values[name])
        except DAMAGED as error:
            reason = str(error).partition("\n")[0][:200]
            raise SourceError(f"{should}, and it is not readable ({reason}): fetch it again") from error
        if foreign is not None:
            raise SourceError(
                f"{should}, and it wants to make {brief(foreign)} when it is opened, which is not allowed"
            )
    return values


def _foreign(value: object) -> str | None:
    """Name what an object holds that was not made; None for plain containers of plain values."""
    left, seen = [value], {id(value)}
    while left:
        entry = left.pop()
        if isinstance(entry, Inert):
            return entry.kind
        held: Iterable[object] = ()
        if isinstance(entry, Mapping):
            held = cast("Mapping[object, object]", entry).values()
        elif isinstance(entry, (list, tuple)):
            held = cast("Iterable[object]", entry)
        new = {id(one): one for one in held if id(one) not in seen}  # what is held twice is looked at once
        seen.update(new)
        left += new.values()
    return None
