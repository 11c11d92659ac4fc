"""A pair of tensors: read, laid alike, compared, and where it differs the name of its fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np

from specdiag.checkpoint.tensors import Checkpoint, StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.verification.clues import Applied, Clues, Named
from specdiag.verification.content import digest
from specdiag.verification.copies import Copy, compare_copy
from specdiag.verification.copy_faults import copy_fault
from specdiag.verification.expected import Expected, change, roundings
from specdiag.verification.layouts import AS_STORED, TRANSPOSED, Form, Layout, layouts
from specdiag.verification.merge_faults import merge_fault
from specdiag.verification.merges import Merge, compare_merge
from specdiag.verification.pairs import Pair, Pairs
from specdiag.verification.records import Cause, TensorCheck
from specdiag.verification.values import Piece, Values

_SEARCHES = 16
"""Fruitless searches for the update of another module, each of which forms every product of that shape."""
_DORA = 3
"""Roundings of a value of the size of W where magnitudes are multiplied in."""


@dataclass(frozen=True)
class Judge:
    """Compares the pairs of two models.

    Attributes:
        expected: what the first model's tensors should have become.
        pairs: all pairs.
        before: the first model.
        after: the model that is verified.
        digests: of the first model's tensors, by name and the type that they were rounded to.
        searched: tensors whose change was held against the updates of other modules and is none of them.
    """

    expected: Expected
    pairs: Pairs
    before: Checkpoint
    after: Checkpoint
    digests: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    searched: set[str] = field(default_factory=set[str])

    @cached_property
    def forms(self) -> tuple[Form, Form]:
        """Names and layouts of both sides."""
        names = list(self.expected.tensors), [tensor.name for tensor in self.after.stored or ()]
        return Form.of(self.before, names[0]), Form.of(self.after, names[1])

    @cached_property
    def transposes(self) -> bool:
        """True where the conversion transposes matrices."""
        return self.pairs.transposes

    def check(self, pair: Pair) -> TensorCheck:
        """Compare a pair.

        Args:
            pair: of the models.

        Raises:
            SourceError: a tensor cannot be read.
        """
        row = TensorCheck(
            name=pair.before.key, name_after=pair.after.key, matched_by=pair.by, outcome="differs",
            dtype=pair.before.tensor.dtype, dtype_after=pair.after.tensor.dtype,
            n_values=int(np.prod(pair.after.shape)), updated=pair.before.tensor.name in self.expected.updates,
        )  # fmt: skip
        base = self.expected.base_of(pair.before.tensor.name)
        if base is not None:
            row = _replaced(row, dtype=base.dtype)
        if not pair.before.is_float or not pair.after.is_float:
            return _check_raw(row, pair)
        after = pair.after.read()
        ways = list(self._layouts(pair))
        if not ways:
            shapes = " and ".join("x".join(map(str, piece.tensor.shape)) for piece in (pair.before, pair.after))
            return _replaced(row, cause="other shape", detail=f"the shapes are {shapes}")
        wrong: tuple[TensorCheck, Layout] | None = None
        for way in ways:
            found = self._compared(row, pair, after, way)
            if found.outcome == "differs":
                wrong = wrong or (found, way)
            elif way.is_right:
                return found
            else:
                detail = f"its values lie {way.name}, and the two formats ask for {ways[0].name}"
                cause: Cause = "transposed" if ways[0].name == TRANSPOSED else "rotary order"
                return _replaced(found, outcome="differs", cause=cause, detail=detail)
        assert wrong is not None
        return self._explained(wrong[0], pair, after, wrong[1])

    def _layouts(self, pair: Pair) -> Iterator[Layout]:
        if _squeezed(pair.before) == _squeezed(pair.after) and pair.before.shape != pair.after.shape:
            shape = pair.after.shape
            yield Layout(AS_STORED, lambda values: values.like(values.raw.reshape(shape)))
            return
        yield from layouts(
            pair.before.role, (pair.before.shape, pair.after.shape), self.forms,
            renamed=pair.by != "name", transposes=self.transposes,
        )  # fmt: skip

    def _compared(self, row: TensorCheck, pair: Pair, after: Values, way: Layout) -> TensorCheck:
        name = pair.before.tensor.name
        base, update = self.expected.base_of(name), self.expected.updates.get(name)
        row = _replaced(row, layout=way.name)
        if base is None or update is None:
            return _with_copy(row, compare_copy(way.apply(pair.before.read()), after))
        lay = partial(_lay, pair.before, way)
        replays = [(name, partial(lay, tensor)) for name, tensor in roundings(update, base, after.kind)]
        merge = compare_merge(
            lay(base), lay(pair.before.tensor), after, replays if after.rounding is None else (),
            n_roundings=_DORA if update.magnitude is not None else 1,
        )  # fmt: skip
        return _with_merge(row, merge)

    def _explained(self, row: TensorCheck, pair: Pair, after: Values, way: Layout) -> TensorCheck:
        name = pair.before.tensor.name
        base, update = self.expected.base_of(name), self.expected.updates.get(name)
        lay = partial(_lay, pair.before, way)
        clues = Clues(
            before=lay(pair.before.tensor),
            after=after,
            head_sizes=_sizes(self.forms) if pair.before.role in ("q", "k") else (),
            others=partial(self._others, pair, lay),
            updates=partial(self._updates, pair, lay),
        )
        own = self.expected.base.get(name, pair.before.tensor)
        if own is not pair.before.tensor and base is None and compare_copy(lay(own), after).is_right:
            cause, detail = "not applied", "it holds the base model's values, and the adapter has others"
        elif base is None or update is None:
            cause, detail = copy_fault(compare_copy(clues.before, after), clues)
        else:
            applied = Applied(lay(base), update, base, lay)
            cause, detail = merge_fault(compare_merge(applied.base, clues.before, after), clues, applied)
        if cause == "wrong module":
            self.searched.discard(name)
        return _replaced(row, cause=cause, detail=detail)

    def _others(self, pair: Pair, lay: Callable[[StoredTensor], Values]) -> Iterator[Named]:
        own, after = pair.before.tensor, pair.after.tensor
        if after.rounding is not None or pair.after.slicer is not None:
            return
        kind = FLOAT_TYPES[after.values_dtype]
        wanted = digest(after, kind)
        for name, tensor in self.expected.tensors.items():
            if name == own.name or tensor.shape != own.shape or not Piece(name, tensor).is_float:
                continue
            if (name, kind.name) not in self.digests:
                self.digests[name, kind.name] = digest(tensor, kind)
            if self.digests[name, kind.name] == wanted:
                yield name, partial(lay, tensor)

    def _updates(self, pair: Pair, lay: Callable[[StoredTensor], Values]) -> Iterator[Named]:
        """Yield the updates of other modules, those with the longest common path first."""
        own = pair.before.tensor
        if len(self.searched) >= _SEARCHES:
            return
        self.searched.add(own.name)
        names = sorted(self.expected.updates, key=lambda name: -_shared(name, own.name))
        for name in names:
            update = self.expected.updates[name]
            fitted = update.fitted_to(own.shape) if name != own.name else None
            base = self.expected.base_of(own.name)
            if fitted is not None and (base is not None or update.magnitude is None):
                yield name, partial(lay, change(fitted, base or own))


def _shared(name: str, other: str) -> int:
    """Count the segments with which two names begin alike."""
    pairs = enumerate(zip(name.split("."), other.split("."), strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(name))


def _lay(piece: Piece, way: Layout, tensor: StoredTensor) -> Values:
    return way.apply(piece.of(tensor).read())


def _sizes(forms: tuple[Form, Form]) -> tuple[int, ...]:
    return forms[0].head_sizes or forms[1].head_sizes or (64, 128, 32, 16, 8)


def _squeezed(piece: Piece) -> list[int]:
    return [size for size in piece.shape if size != 1]


def _check_raw(row: TensorCheck, pair: Pair) -> TensorCheck:
    """Compare what holds no numbers that can be rounded: integers, flags, codes that nothing can decode."""
    a, b = pair.before.tensor, pair.after.tensor
    if a.dtype == b.dtype and a.shape == b.shape and "quantised" not in f"{a.reason} {b.reason}":
        if np.array_equal(a.read(None), b.read(None)):
            return _replaced(row, outcome="equal", n_different=0)
        return _replaced(row, cause="other values", detail=f"its {b.dtype} values are others")
    if a.shape == b.shape and not {a.dtype[0], b.dtype[0]} - set("IUB"):
        same = np.array_equal(a.read(None), b.read(None))
        return _replaced(row, outcome="equal" if same else "differs", cause=None if same else "other values")
    reason = b.reason or a.reason or f"{a.dtype} and {b.dtype} are not compared"
    return _replaced(row, outcome="not compared", detail=reason)


def _with_copy(row: TensorCheck, copy: Copy) -> TensorCheck:
    return _replaced(
        row, outcome=copy.outcome, n_different=copy.n_different, residual=copy.residual, rounding=copy.rounding,
        arithmetic=copy.arithmetic,
    )  # fmt: skip


def _with_merge(row: TensorCheck, merge: Merge) -> TensorCheck:
    cause: Cause | None = None
    if merge.strength is None and merge.is_right:
        cause = "no update"
    elif merge.outcome == "cannot be told":
        cause = "below the rounding"
    return _replaced(
        row, outcome=merge.outcome, cause=cause, n_different=merge.n_different, residual=merge.residual,
        rounding=merge.rounding, strength=merge.strength, unexplained=merge.unexplained, kept=merge.kept,
        arithmetic=merge.arithmetic,
    )  # fmt: skip


def _replaced(row: TensorCheck, **fields: object) -> TensorCheck:
    import msgspec

    return msgspec.structs.replace(row, **fields)
