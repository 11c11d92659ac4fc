"""Everything that a wrong tensor is held against before its fault gets a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from specdiag.checkpoint.adapters.update import Update
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.verification.records import Cause
from specdiag.verification.values import Values

Named = tuple[str, Callable[[], Values]]
"""The name of something else, and its values laid as those of the wrong tensor."""
Fault = tuple[Cause, str]
"""The name of a fault, and a sentence on it."""


@dataclass(frozen=True, slots=True)
class Clues:
    """A wrong tensor and what may explain it. All values are laid as the model that is verified lays them.

    Attributes:
        before: what it should be.
        after: what it is.
        head_sizes: sizes that the heads may have, for q and k; empty for anything else.
        others: other tensors of the first model that hold the same values, in whatever order.
        updates: the products of the updates of other modules, where their shape fits.
    """

    before: Values
    after: Values
    head_sizes: tuple[int, ...]
    others: Callable[[], Iterable[Named]]
    updates: Callable[[], Iterable[Named]]


@dataclass(frozen=True, slots=True)
class Applied:
    """The update that a wrong tensor should have got.

    Attributes:
        base: W, laid as the model that is verified lays it.
        update: turned as the parameter is stored.
        tensor: the parameter of the base model.
        lay: reads another tensor of the shape of the parameter, laid likewise.
    """

    base: Values
    update: Update
    tensor: StoredTensor
    lay: Callable[[StoredTensor], Values]
