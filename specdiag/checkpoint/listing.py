"""The content of one file of weights, as a reader lists it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.files import Table


@dataclass(frozen=True, slots=True)
class Listing:
    """The content of one file, whatever its format.

    Attributes:
        tensors: all of them, in stored order, their values not read.
        notes: remarks for the report.
        config: the file's own description of its model in the words of a config.json; empty for most formats.
        beside: further files that hold its values, relative to its folder.
        offsets: of tensors that are slices of larger ones: where each begins. None where all are whole.
        part: the part of the file that was asked for and taken; None where it is still to be chosen by its prefix.
        models: numbers of tensors of the models in dictionaries of their own, by the keys that lead to them, where a
            part was asked for and none of them is it.
    """

    tensors: list[StoredTensor]
    notes: tuple[str, ...] = ()
    config: Table = field(default_factory=Table)
    beside: tuple[str, ...] = ()
    offsets: Mapping[str, tuple[int, ...]] | None = None
    part: str | None = None
    models: Mapping[str, int] = field(default_factory=dict[str, int])
