"""The records of a verification: the answer, one row a tensor, and what was not compared.

X is the change that was made, D the one that the adapter asks for; <.,.> and |.| take a tensor as one vector.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from specdiag.kinship.records import LineageVerdict
from specdiag.records import Record, Source
from specdiag.storage.result import Result, Row

Verdict = Literal["verified", "not verified", "cannot be told"]
Outcome = Literal["equal", "rounded", "within rounding", "cannot be told", "not compared", "differs"]
"""`equal` in every value; `rounded` reproduced to the bit by rounding; `within rounding` by its size alone."""
MatchedBy = Literal["name", "role", "content"]
Cause = Literal[
    "not applied", "applied twice", "subtracted", "wrong scale", "part of the update", "wrong module",
    "magnitudes left out", "other base", "other update", "module missing", "changed", "other dtype", "scaled",
    "transposed", "rotary order", "rows permuted", "columns permuted", "values of another tensor",
    "coarser than its storage", "few values differ", "not finite", "other shape", "other values", "missing",
    "added", "lost by the adapter", "tied table", "no update", "below the rounding",
]  # fmt: skip
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Names of what may be wrong; the last two say why it cannot be told."""


class TensorCheck(Record, frozen=True, kw_only=True):
    """A tensor, or a part of a fused one, beside its counterpart."""

    name: str
    """In the first model."""
    name_after: str
    """In the model that is verified."""
    matched_by: MatchedBy
    outcome: Outcome
    cause: Cause | None = None
    detail: str = ""
    """A sentence on the cause, with its numbers."""
    layout: str = "as stored"
    """How the values were laid anew by the conversion."""
    dtype: str
    dtype_after: str
    n_values: int
    n_different: int | None = None
    """Values that rounding does not reproduce; None where codes were compared by the size of their error."""
    residual: float | None = None
    """|after - expected| over |D|, or over |expected| where no adapter acts."""
    rounding: float | None = None
    """The residual that the rounding of the storage explains."""
    updated: bool = False
    """True where the adapter changes it."""
    strength: float | None = None
    """<X, D>/<D, D>: 1 for a right merge, 0 for none."""
    unexplained: float | None = None
    """|X - strength D|/|X|."""
    kept: float | None = None
    """The strength that a right merge keeps in this storage."""
    arithmetic: str | None = None
    """The order of rounding that reproduces the values best."""


class NotCompared(Record, frozen=True, kw_only=True):
    """A tensor that has no counterpart, or cannot be read."""

    side: Literal["before", "after", "adapter"]
    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    cause: Cause | None = None
    """None where it does not count against the model: buffers, scales of codes, tied copies."""


class Verification(Result, Record, frozen=True, kw_only=True):
    """The answer of `verify`.

    Example:
        >>> specdiag.verify("org/name", "org/name").verdict
        'verified'
    """

    schema: int = 1
    verdict: Verdict
    reason: str
    """The verdict in a sentence."""
    base: Source
    """The base of the adapter, the original, or the model before quantisation."""
    adapter: Source | None = None
    model: Source
    """The model that is verified."""
    tensors: tuple[TensorCheck, ...]
    not_compared: tuple[NotCompared, ...]
    function: LineageVerdict | None = None
    """Verdict of `lineage` on what the layers of both compute, where a copy holds other values; None elsewhere."""
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> tuple[TensorCheck | NotCompared, ...]:
        """Everything that counts against the model."""
        wrong = tuple(t for t in self.tensors if t.outcome in ("differs", "not compared"))
        return (*wrong, *(n for n in self.not_compared if n.cause is not None))

    def __getitem__(self, name: str) -> TensorCheck:
        """The check of a tensor, by its name in either model.

        Raises:
            KeyError: no compared tensor has this name.
        """
        for check in self.tensors:
            if name in (check.name, check.name_after):
                return check
        raise KeyError(name)

    def to_json(self) -> bytes:
        """Encode the verification as one JSON object, the content of its file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def to_records(self) -> list[Row]:
        """Make plain rows, one a compared tensor.

        Returns:
            Rows with the fields of `TensorCheck`.
        """
        return [{name: getattr(check, name) for name in self._columns()} for check in self.tensors]

    def _title(self) -> str:
        return f"{self.verdict.upper()}: {self.reason}"

    def _columns(self) -> tuple[str, ...]:
        return TensorCheck.__struct_fields__

    def _rows(self) -> tuple[TensorCheck, ...]:
        return self.tensors

    def _overview(self) -> tuple[tuple[str, ...], list[list[object]]]:
        names = ("name", "outcome", "cause", "strength", "residual", "rounding")
        return names, [[getattr(check, name) for name in names] for check in self.tensors]
