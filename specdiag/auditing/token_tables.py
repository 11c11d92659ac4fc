"""The tables of tokens in a checkpoint: untrained rows, padding, copies, and tokens without a row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from hashlib import blake2b

import msgspec
import numpy as np

from specdiag.auditing.heads import HEAD, TOKENS
from specdiag.auditing.records import TokenRow, TokenTable
from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
from specdiag.checkpoint.tokenizer import Tokenizer, read_tokenizer
from specdiag.errors import SourceError
from specdiag.report import SpectralReport
from specdiag.spectra.float_types import FLOAT_TYPES, RawArray
from specdiag.spectra.limits import UNTOUCHED_SCORE
from specdiag.spectra.untrained_rows import RowScores, score_rows
from specdiag.system.blas_threads import OneBlasThread

_HEADS = re.compile(r"output(\.weight)?")
"""Meta's and GGUF's name of the head."""
_CODEBOOKS = "codebook"
"""Models of sound have several vocabularies, stacked in ways of their own."""


def read_tables(checkpoint: Checkpoint, report: SpectralReport, n: int) -> tuple[TokenTable, ...]:
    """Look at every row of the token embedding, and of the head where it is not tied to it.

    A table is read once more, as it is stored, and widened in blocks of rows. Embeddings of positions, patches, sounds
    and codebooks are no tables of tokens.

    Args:
        checkpoint: as it was opened.
        report: its report, in which a tied head has no row.
        n: number of rows to list, those with the highest scores.

    Returns:
        A record for each table.
    """
    analysed = {r.key for r in report.records}
    matrices = [matrix for matrix in checkpoint.matrices if matrix.key in analysed and _is_table(matrix)]
    if not matrices or any(_CODEBOOKS in str(key) for key in checkpoint.config):
        return ()
    tokenizer, reason = None, None
    try:
        tokenizer = read_tokenizer(checkpoint)
    except (SourceError, OSError) as error:
        reason = str(error)
    matrices.sort(key=lambda matrix: matrix.module.role)  # the embedding before the head
    with OneBlasThread():
        return tuple(_read(matrix, tokenizer, reason, n) for matrix in matrices)


def _is_table(matrix: WeightMatrix) -> bool:
    names = {"embed": (TOKENS,), "head": (HEAD, _HEADS)}.get(matrix.module.role, ())
    is_plain = matrix.n_slices == 1 and matrix.rank is None and matrix.module.part is None
    return is_plain and any(pattern.fullmatch(matrix.name) for pattern in names)


def _read(matrix: WeightMatrix, tokenizer: Tokenizer | None, no_tokenizer: str | None, n: int) -> TokenTable:
    rows, cols = matrix.shape
    about = TokenTable(
        name=matrix.key,
        rows=rows,
        cols=cols,
        dequantized=matrix.dequantized,
        tokenizer=None if tokenizer is None else tokenizer.name,
        no_tokenizer=no_tokenizer,
    )
    try:
        raw = matrix.slicer.cut(matrix.tensor.read(matrix.slicer.index))[0]
    except (SourceError, OSError) as error:
        return msgspec.structs.replace(about, no_scores=str(error))
    tokenizer = tokenizer or Tokenizer({}, frozenset(), "")
    with np.errstate(over="ignore", invalid="ignore"):
        scored = score_rows(
            raw, FLOAT_TYPES[matrix.tensor.values_dtype], sorted(id for id in tokenizer.reserved if id < rows)
        )
    copies = _copies(raw)
    padding = frozenset(range(rows)) - tokenizer.texts.keys() if tokenizer.texts else _tail(copies, rows)
    zero = frozenset[int](np.flatnonzero(scored.norms == 0).tolist())
    ordinary = frozenset(range(rows)) - tokenizer.reserved - padding - zero
    return msgspec.structs.replace(
        about,
        n_reserved=sum(id < rows for id in tokenizer.reserved),
        n_padding=len(padding),
        n_zero=len(zero),
        n_equal=sum(row in ordinary for row in copies),
        n_missing=sum(id >= rows for id in tokenizer.texts),
        reference=None if scored.scores is None else "reserved" if scored.is_known else "densest",
        n_reference=len(scored.reference),
        coherence=scored.coherence,
        no_scores=_why_not(scored),
        n_like=sum(row in ordinary for row in np.flatnonzero(_scores(scored) > UNTOUCHED_SCORE).tolist()),
        tokens=_highest(scored, ordinary, copies, tokenizer.texts, n),
    )


def _scores(scored: RowScores) -> np.ndarray:
    return np.empty(0) if scored.scores is None else scored.scores


def _why_not(scored: RowScores) -> str | None:
    if scored.scores is not None:
        return None
    if scored.coherence is None:
        return "it has too few rows" if np.isfinite(scored.norms).all() else "it holds values that are not finite"
    if scored.is_known:
        return (
            f"its {len(scored.reference)} reserved rows share no direction (mean cosine {scored.coherence:.2f}): "
            "where they stayed at a random start this method does not see the others"
        )
    return f"no ten rows lie close together (mean cosine {scored.coherence:.2f}): none looks untrained"


def _copies(raw: RawArray) -> dict[int, int]:
    """Map each row that is equal, bit for bit, to an earlier one or has a later copy to the first such row."""
    first: dict[bytes, int] = {}
    copies: dict[int, int] = {}
    for row, values in enumerate(raw):
        owner = first.setdefault(blake2b(values.tobytes(), digest_size=16).digest(), row)
        if owner != row:
            copies[row] = owner
    return copies | {owner: owner for owner in copies.values()}


def _tail(copies: Mapping[int, int], rows: int) -> Set[int]:
    """Find the equal rows at the end, which pad a vocabulary where no tokenizer says how long it is."""
    start = rows
    last = copies.get(rows - 1)
    while start and last is not None and copies.get(start - 1) == last:
        start -= 1
    return frozenset(range(start, rows)) if rows - start > 1 else frozenset()


def _highest(
    scored: RowScores, ordinary: Set[int], copies: Mapping[int, int], texts: Mapping[int, str], n: int
) -> tuple[TokenRow, ...]:
    """List the rows with the highest scores but for reserved and padding rows, which are counted."""
    scores = _scores(scored)
    middle = float(np.median(scored.norms)) or 1.0
    order = (row for row in np.argsort(-scores, kind="stable").tolist() if row in ordinary)
    return tuple(
        TokenRow(
            row=row,
            text=texts.get(row),
            score=float(scores[row]),
            norm=float(scored.norms[row]) / middle,
            equal_to=copies[row] if copies.get(row, row) != row else None,
        )
        for row, _ in zip(order, range(n), strict=False)
    )
