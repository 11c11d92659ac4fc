"""The content of one file of weights, as a reader lists it."""

from __future__ import annotations

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
    """

    tensors: list[StoredTensor]
    notes: tuple[str, ...] = ()
    config: Table = field(default_factory=Table)
