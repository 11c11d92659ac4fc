"""Checks of single matrices: constant, copied, of too low a rank, partly dead, or missing."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from specdiag.auditing import few_layers, shards
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_CHUNK = 1 << 16
_COMMON = 0.5
"""A kind of layer is usual where at least this share of the layers is of it. A choice."""
_RARE = 0.1
"""A kind of layer with fewer matrices is a fault where at most this share of the layers is of it, else a design."""
_LOST_TO_ROUNDING = {"BF16": 0.2, "F16": 0.03}
"""Share of singular values that may lie below the rounding of a coarse type in a healthy matrix. A choice from one
experiment, no law: more than twice what queries and keys of BERTs lose, 0.09 and 0.012."""
_EQUAL_VALUES = "(equal values)"
_DIGITS = (14, 12, 9, 6)
"""The root mean square of equal values is their value to about 15 digits. For float64 rounder values are tried."""


def matrices(subject: Subject) -> Iterator[Observation]:
    """Find faults of single matrices, and matrices that hold the same values.

    Args:
        subject: the subject of the audit.

    Yields:
        Constant, copied and degenerate matrices; lost rank and dead rows and columns as shares.
    """
    records = subject.report.records
    constant = {r.key for r in records if _is_constant(r)}
    for r in records:
        if r.key in constant:
            yield Observation("constant", r.key, "all equal")
        elif r.status != "zero":
            yield from _one(r)
    tied = {r.key for r in records if r.key in subject.updates and r.role in ("embed", "head")}
    yield from _copies(r for r in records if r.status != "zero" and r.key not in constant | tied)


def stored_twice(subject: Subject) -> Iterator[Observation]:
    """Find embeddings and heads that are stored twice with equal values, though the model may share them.

    Args:
        subject: the subject of the audit.
    """
    for s in subject.report.skipped:
        if s.reason.endswith(_EQUAL_VALUES):
            yield Observation("stored_twice", s.name, s.reason.removesuffix(_EQUAL_VALUES).strip())


def layers(subject: Subject) -> Iterator[Observation]:
    """Find layers that are missing in a row of layers, and matrices that a few layers of a kind lack.

    Args:
        subject: the subject of the audit.
    """
    skipped = {s.name for s in subject.report.skipped}
    pieces: dict[str | None, dict[int, list[ModuleRecord]]] = defaultdict(lambda: defaultdict(list))
    for r in subject.report:
        if r.layer is not None and r.family != "embedding" and r.key not in subject.updates:
            pieces[r.component][r.layer].append(r)
    missing: set[str | None] = set()
    for layers in pieces.values():
        if any(r.family == "attention" for layer in layers.values() for r in layer):
            yield from _gaps(layers, skipped)
            for found in _lacking(layers, skipped):
                missing.add(found.module)
                yield found
    if not subject.updates:
        yield from (found for found in few_layers.lacking(subject) if found.module not in missing)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    partial = shards.partial(subject.report)
    reasons: dict[str, str] = {}
    if partial is None and subject.updates:
        partial = "adapter_lost tells which updates an adapter lacks"
    if partial is not None:
        reasons |= {"layer_gap": partial, "missing_matrix": partial}
    if all(r.matrix_rank is None or r.dequantized for r in subject.report):
        reasons["rank"] = "needs float64, and weights that are not quantised"
    return reasons


def _one(r: ModuleRecord) -> Iterator[Observation]:
    if r.status == "degenerate":
        yield Observation("degenerate", r.key, "all equal")
    alive_rows, alive_cols = r.rows - r.n_dead_rows, r.cols - r.n_dead_cols
    possible = min(r.n_eigenvalues, min(alive_rows, alive_cols) * r.n_slices)
    if r.matrix_rank is not None and possible > r.matrix_rank and not r.dequantized:
        lost = 1 - r.matrix_rank / possible - _LOST_TO_ROUNDING.get(r.storage_dtype, 0.0)
        yield Observation("rank", r.key, max(0.0, lost))
    if r.n_dead_rows:
        yield Observation("dead_tokens" if r.family == "embedding" else "dead_rows", r.key, r.n_dead_rows / r.rows)
    if r.n_dead_cols:
        yield Observation("dead_cols", r.key, r.n_dead_cols / r.cols)


def _copies(records: Iterable[ModuleRecord]) -> Iterator[Observation]:
    first: dict[tuple[str, int, int, str], str] = {}
    for r in records:
        if r.digest is not None:
            owner = first.setdefault((r.digest, r.rows, r.cols, r.storage_dtype), r.key)
            if owner != r.key:
                yield Observation("duplicate", r.key, f"equal to {owner}")


def _is_constant(r: ModuleRecord) -> bool:
    """Tell whether all entries are one value other than zero.

    Such a matrix has rank 1, and its norm gives the value up to its sign. Each candidate's digest is compared.
    """
    if r.stable_rank is None or r.stable_rank > 1 + 1e-4 or not r.frobenius_norm or r.digest is None:
        return False
    code = _CODES.get(r.storage_dtype)
    n = r.rows * r.cols * r.n_slices
    if code is None or r.n_eigenvalues != min(r.rows, r.cols) * r.n_slices:
        return False
    size = r.frobenius_norm / n**0.5
    near = [size, *(float(f"{size:.{digits}g}") for digits in _DIGITS)]
    try:
        candidates = {code(sign * value) for value in near for sign in (1, -1)}
    except OverflowError:  # it rounds to more than the type holds
        return False
    return any(_digest(candidate, n) == r.digest for candidate in candidates)


def _bf16(value: float) -> bytes:
    bits = int.from_bytes(struct.pack("<f", value), "little")
    return ((bits + 0x8000) >> 16).to_bytes(2, "little")


def _packed(format: str) -> Callable[[float], bytes]:
    return lambda value: struct.pack(format, value)


_CODES: dict[str, Callable[[float], bytes]] = {
    "F64": _packed("<d"), "F32": _packed("<f"), "F16": _packed("<e"), "BF16": _bf16,
}  # fmt: skip
"""The bytes of a value in each storage type."""


def _digest(code: bytes, n: int) -> str:
    digest = hashlib.sha256()
    chunk = code * _CHUNK
    for _ in range(n // _CHUNK):
        digest.update(chunk)
    digest.update(code * (n % _CHUNK))
    return digest.hexdigest()


def _gaps(layers: dict[int, list[ModuleRecord]], skipped: set[str]) -> Iterator[Observation]:
    """Find missing numbers between layers of one kind. A sequential net numbers its activations too."""
    present = sorted(layers)
    for below, above in pairwise(present):
        is_block = not _families(layers[below]).isdisjoint(("attention", "mlp"))
        if above - below == 1 or not is_block or _kind(layers[below], below) != _kind(layers[above], above):
            continue
        for number in range(below + 1, above):
            if not any(_renumbered(r.name, below, number) in skipped for r in layers[below]):
                yield Observation("layer_gap", _place(layers[below][0].name, below, number), "not there")


def _lacking(layers: dict[int, list[ModuleRecord]], skipped: set[str]) -> Iterator[Observation]:
    """Find matrices of the usual kind of layer that a few layers lack.

    A layer without attention, or with half of the matrices, is taken for a design.
    """
    kinds = {number: _kind(records, number) for number, records in layers.items()}
    counts = Counter(kinds.values())
    usual, n = counts.most_common(1)[0]
    example = next(number for number, kind in kinds.items() if kind == usual)
    families = _families(layers[example])
    poorer = [
        number
        for number, kind in kinds.items()
        if kind < usual and 2 * len(kind) > len(usual) and _families(layers[number]) == families
    ]
    if n < 3 or n < _COMMON * len(layers) or len(poorer) > max(1, _RARE * len(layers)):
        return
    for number in sorted(poorer):
        for r in layers[example]:
            name = _renumbered(r.name, example, number)
            if _member(r, example) not in kinds[number] and name not in skipped:
                yield Observation("missing_matrix", name if r.part is None else f"{name}[{r.part}]", "not there")


def _families(records: Iterable[ModuleRecord]) -> frozenset[str]:
    """List what a layer is made of. A router beside experts makes no other kind of layer."""
    return frozenset(r.family for r in records if r.role != "router")


def _kind(records: Iterable[ModuleRecord], number: int) -> frozenset[tuple[str, str | None]]:
    return frozenset(_member(r, number) for r in records)


def _member(r: ModuleRecord, number: int) -> tuple[str, str | None]:
    return _renumbered(r.name, number, "#"), r.part


def _renumbered(name: str, number: int, other: int | str) -> str:
    """Name the same tensor in another layer."""
    parts, own = name.split("."), str(number)
    if own in parts:
        parts[parts.index(own)] = str(other)
    return ".".join(parts)


def _place(name: str, number: int, other: int) -> str:
    """Cut the name after the number of the layer."""
    parts = name.split(".")
    return ".".join([*parts[: parts.index(str(number))], str(other)]) if str(number) in parts else f"layer {other}"
