"""Exponents of live tensors: float32 on the device that holds them, float64 on the CPU where float32 cannot tell.

The numbers are those of `specdiag.analyze`, whose engine this is; nulls, metrics and the KS-optimal tail are left out.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from specdiag.errors import ComputationError
from specdiag.records import ModuleRecord
from specdiag.spectra.accelerator import batch_eigenvalues, full_precision
from specdiag.spectra.eigenvalues import Spectrum, assemble
from specdiag.spectra.float_types import FLOAT_TYPES, FloatType
from specdiag.spectra.ladder import ROUTES, solve
from specdiag.spectra.limits import MIN_EIGENVALUES
from specdiag.spectra.living import noise_of_a_weight
from specdiag.spectra.null import alpha_null
from specdiag.spectra.solver_threads import SolverThreads
from specdiag.spectra.square import square_null
from specdiag.spectra.tails import hill
from specdiag.spectra.trust import judge, judge_square

Basis = Literal["alpha", "square"]

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_log = logging.getLogger("specdiag")
_BATCH_BYTES = 1 << 28
"""Bytes of float32 values that an accelerator is given at once."""


def exponents(stacks: Sequence[torch.Tensor], basis: Basis) -> list[float | None]:
    """The exponent of each matrix by the median Hill rule.

    Args:
        stacks: each of shape [s, rows, cols], any float type, all on one device; eigenvalues of the s slices are
            pooled.
        basis: `alpha` of the matrix, or `square`: square_alpha, of a square cut of its living part.

    Returns:
        Above 1. None where the matrix has none: too few eigenvalues, low rank, all equal, zero. NaN where it could
        not be computed: a value that is not finite, a solver that failed.
    """
    with torch.no_grad():
        if not stacks or stacks[0].device.type == "cpu":
            return _on_cpu(stacks, basis)
        return _on_accelerator(stacks, basis)


def exponent_on_cpu(stack: torch.Tensor, basis: Basis) -> float | None:
    """The same of one matrix in memory, by the thread that asks, which is one of `SolverThreads`."""
    return _exponent(stack, basis)


def null_of(record: ModuleRecord, basis: Basis) -> float:
    """The exponent of a random matrix of that shape."""
    return _null(*record.living_shape, record.n_slices, basis)


@cache
def _null(rows: int, cols: int, n_slices: int, basis: Basis) -> float:
    if basis == "square":
        return square_null((rows, cols))
    return alpha_null(lambda eigenvalues: hill(eigenvalues, 0.5), (rows, cols), n_slices)


def _on_cpu(stacks: Sequence[torch.Tensor], basis: Basis) -> list[float | None]:
    if not stacks:
        return []
    with SolverThreads(min(torch.get_num_threads(), len(stacks))) as threads:
        running = [threads.submit(partial(_exponent, stack, basis)) for stack in stacks]
        return [each.result() for each in running]


def _on_accelerator(stacks: Sequence[torch.Tensor], basis: Basis) -> list[float | None]:
    """Matrices of one shape together; whatever float32 there cannot tell is done on the CPU."""
    kinds: dict[tuple[torch.Size, torch.dtype], list[int]] = defaultdict(list)
    for i, stack in enumerate(stacks):
        kinds[stack.shape, stack.dtype].append(i)
    found: dict[int, float | None] = {}
    for (shape, _), members in kinds.items():
        size = max(1, _BATCH_BYTES // (4 * shape.numel()))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            for i, solved in zip(batch, _batch([stacks[i] for i in batch]), strict=True):
                alpha = None if solved is None else _trusted(solved, stacks[i], basis)
                found[i] = _on_cpu([stacks[i]], basis)[0] if alpha is None else alpha
    return [found[i] for i in range(len(stacks))]


def _batch(batch: Sequence[torch.Tensor]) -> list[Spectrum | None]:
    """Spectra of matrices of one shape and type, None for each that failed."""
    s, rows, cols = batch[0].shape
    storage = FLOAT_TYPES[TYPES[batch[0].dtype]]
    if s * min(rows, cols) < MIN_EIGENVALUES:
        return [None] * len(batch)
    return list(_spectra(torch.cat(list(batch)).to(torch.float32), s, storage))


def _spectra(values: torch.Tensor, s: int, storage: FloatType) -> Iterator[Spectrum | None]:
    rows, cols = values.shape[1:]
    try:
        with full_precision():
            eigenvalues, frobenius2 = batch_eigenvalues(values, torch.float32, solve_on_cpu=values.device.type == "mps")
    except RuntimeError as error:
        # Out of memory, or one matrix that does not converge and fails its batch with it.
        _log.warning("a batch of %d x %d matrices on %s: %s; the CPU takes over", rows, cols, values.device, error)
        yield from [None] * (len(values) // s)
        return
    host = np.sort(eigenvalues.cpu().double().numpy()).reshape(-1, s, min(rows, cols))
    norms = frobenius2.cpu().double().numpy().reshape(-1, s).sum(axis=1)
    for found, norm in zip(host, norms, strict=True):
        try:
            yield assemble(found, float(norm), (s, rows, cols), storage, "gram", "float32")
        except ComputationError:
            yield None


def _exponent(held: torch.Tensor, basis: Basis) -> float | None:
    """Climb the ladder to the first route that can tell."""
    stack, storage = _raw(held)
    if stack.shape[0] * min(stack.shape[1:]) < MIN_EIGENVALUES:
        return None
    *rounded, last = ROUTES
    for route in rounded:
        try:
            alpha = _trusted(solve([stack], storage, route), held, basis)
        except ComputationError:
            continue
        if alpha is not None:
            return alpha
    try:
        return _trusted(solve([stack], storage, last), held, basis, is_last=True)
    except (ComputationError, np.linalg.LinAlgError):
        return float("nan") if np.any(storage.widen(stack, np.dtype(np.float32))) else None


def _trusted(solved: Spectrum, held: torch.Tensor, basis: Basis, *, is_last: bool = False) -> float | None:
    """The exponent, None where it is not to be trusted. The last route that there is counts as exact."""
    found = judge_square(solved.living(_living_shape(held, solved))) if basis == "square" else judge(solved)
    if found.status != "ok" or found.fit is None:
        return None
    return found.fit.alpha if found.is_precise or (is_last and np.isfinite(found.fit.alpha)) else None


def _living_shape(held: torch.Tensor, solved: Spectrum) -> tuple[int, int]:
    """`living.living_shape` of values on any device."""
    storage = FLOAT_TYPES[TYPES[held.dtype]]
    magnitudes = held.detach().abs()
    least = noise_of_a_weight(solved.frobenius2, held.numel(), storage.eps)
    rows, cols = (magnitudes.amax(dim=dims).cpu().double() > least for dims in ((0, 2), (0, 1)))
    return int(rows.sum()), int(cols.sum())


def _raw(stack: torch.Tensor) -> tuple[NDArray[np.generic], FloatType]:
    storage = FLOAT_TYPES[TYPES[stack.dtype]]
    held = stack.detach().cpu().contiguous()
    return (held.view(torch.uint16) if storage.name == "BF16" else held).numpy(), storage
