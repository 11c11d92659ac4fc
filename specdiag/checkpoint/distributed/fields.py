"""Checks of the records in `.metadata`, which were not made and may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch

from specdiag.checkpoint.inert import Inert

LARGEST = 1 << 60
_MOST_DIMENSIONS = 16


def dtype_of(properties: object) -> torch.dtype:
    """Find the type in the state of TensorProperties: a tuple whose first entry it is."""
    state = properties.state if isinstance(properties, Inert) and class_of(properties) == "TensorProperties" else []
    values = state[0] if state else None
    first = cast("tuple[object, ...]", values)[:1] if isinstance(values, tuple) else ()
    if not first or not isinstance(first[0], torch.dtype):
        raise TypeError("a tensor without a type")
    return first[0]


def place_of(index: object) -> tuple[str, tuple[int, ...]]:
    """Read the name and the offsets that a MetadataIndex stands for."""
    fields = fields_of(index, "MetadataIndex")
    name, offsets = fields["fqn"], fields.get("offset")
    if not isinstance(name, str):
        raise TypeError("an index without a name")
    return name, () if offsets is None else sizes_of(offsets)


def fields_of(record: object, kind: str) -> Mapping[str, object]:
    """Give the attributes of an inert record of a class."""
    if not isinstance(record, Inert) or class_of(record) != kind or len(record.state) != 1:
        raise TypeError(f"something else in the place of {kind}")
    return cast("Mapping[str, object]", mapping_of(record.state[0]))


def class_of(record: Inert) -> str:
    """Give the name of a record's class without its module."""
    return record.made_by.name.rpartition(".")[2]


def mapping_of(value: object) -> Mapping[object, object]:
    """Check that a value is a dictionary."""
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__} in the place of a dictionary")
    return cast("dict[object, object]", value)


def sizes_of(value: object) -> tuple[int, ...]:
    """Check sizes or offsets: whole numbers that are not negative, and not too many."""
    if not isinstance(value, tuple) or len(cast("Sequence[object]", value)) > _MOST_DIMENSIONS:
        raise TypeError(f"sizes {value!r:.60}")
    sizes = tuple(whole(size) for size in cast("Sequence[object]", value))
    if math.prod(sizes) >= LARGEST:
        raise ValueError(f"sizes {sizes!r:.60}")
    return sizes


def whole(value: object) -> int:
    """Check that a value is a whole number that is not negative."""
    if type(value) is not int or not 0 <= value < LARGEST:
        raise ValueError(f"{value!r:.60} in the place of a whole number")
    return value
