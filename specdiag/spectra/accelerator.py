"""The ESD on an accelerator: matrices of one shape stacked, one batched Gram, one batched eigensolver.

TF32 is never used. The first matrix of each shape is also done on the CPU in float64; beyond tolerance the caller
is told so and the CPU takes over. Apple's MPS forms the Gram and leaves the eigenvalues to the CPU: it has no
symmetric eigensolver.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from specdiag.errors import ComputationError, UsageError
from specdiag.spectra.eigenvalues import (
    ComputeType,
    Spectrum,
    assemble,
    spectrum,
)
from specdiag.spectra.float_types import FloatType, RawArray
from specdiag.text.checks import shown

_log = logging.getLogger("specdiag")
_TORCH_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMPUTE_TYPES = {"float32": torch.float32, "float64": torch.float64}
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}
"""CUDA compute capabilities whose float64 rate is half the float32 rate: P100, V100, A100, H100, B200."""


def resolve_device(device: str) -> str:
    """`auto` becomes the first accelerator that is there, or `cpu`; anything else is checked.

    Raises:
        UsageError: if the named device does not exist here.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cuda(:\d+)?|mps", device):
        raise UsageError(f"unknown device {shown(device)}; choose auto, cpu, cuda, cuda:N or mps")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UsageError(f"device '{device}' is not available here ({reason}); try device=cpu") from error
    return device


def resolve_dtype(device: str) -> ComputeType:
    """float64 where it is fast, guarded float32 elsewhere (MPS has no float64 at all)."""
    if device == "cpu":
        return "float64"
    if device == "mps":
        return "float32"
    return "float64" if torch.cuda.get_device_capability(device) in _FAST_FLOAT64 else "float32"


def batch_eigenvalues(
    stack: torch.Tensor, dtype: torch.dtype, *, solve_on_cpu: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of the smaller Gram side of every matrix of a stack.

    Args:
        stack: shape [b, rows, cols], any float type, on any device.
        dtype: the arithmetic.
        solve_on_cpu: move the Gram matrices to the CPU for the eigensolver.

    Returns:
        Eigenvalues, shape [b, min(rows, cols)], ascending, and ||W||_F^2, shape [b].
    """
    w = stack.to(dtype)
    wide = w if w.shape[1] <= w.shape[2] else w.transpose(1, 2)
    gram = torch.bmm(wide, wide.transpose(1, 2))
    frobenius2 = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
    if solve_on_cpu:
        gram = gram.cpu()
    return torch.linalg.eigvalsh(gram), frobenius2


def solve(matrices: list[RawArray], storages: list[FloatType], device: str, dtype: ComputeType) -> Iterator[Spectrum]:
    """Spectra of matrices of one shape, in order; batches are sized to free memory and halved when they do not fit.

    Args:
        matrices: raw values of each, shape [s, rows, cols], all alike.
        storages: the type of each, all of one name.
        device: a torch device.
        dtype: the arithmetic.

    Raises:
        ComputationError: if one matrix alone does not fit, or the eigenvalues fail the trace check.
    """
    s, rows, cols = matrices[0].shape
    size = min(len(matrices), _batch_size(device, matrices[0].nbytes, (rows, cols), s, dtype))
    done = 0
    while done < len(matrices):
        batch = matrices[done : done + size]
        try:
            solved = _solve_batch(batch, storages[done : done + size], device, dtype)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise ComputationError(
                    f"a {rows} x {cols} matrix does not fit on {device} in {dtype}; try device=cpu"
                ) from error
            size //= 2
            torch.cuda.empty_cache()
            _log.warning("out of memory on %s: batches of %d from here", device, size)
            continue
        yield from solved
        done += len(batch)


def _solve_batch(batch: list[RawArray], storages: list[FloatType], device: str, dtype: ComputeType) -> list[Spectrum]:
    s, rows, cols = batch[0].shape
    name = storages[0].name
    values = torch.from_numpy(np.stack(batch).reshape(-1, rows, cols)).view(_TORCH_TYPES[name])
    if device == "mps" and name == "F64":
        values = values.to(torch.float32)
    values = values.to(device)
    return _spectra(values, storages, dtype, s)


def _spectra(values: torch.Tensor, storages: Sequence[FloatType], dtype: ComputeType, n_slices: int) -> list[Spectrum]:
    with full_precision():
        eigenvalues, frobenius2 = batch_eigenvalues(
            values, _COMPUTE_TYPES[dtype], solve_on_cpu=values.device.type == "mps"
        )
    rows, cols = values.shape[1:]
    host = np.sort(eigenvalues.cpu().double().numpy()).reshape(-1, n_slices, min(rows, cols))
    norms = frobenius2.cpu().double().numpy().reshape(-1, n_slices).sum(axis=1)
    return [
        assemble(e, float(f), (n_slices, rows, cols), storage, "gram", dtype)
        for e, f, storage in zip(host, norms, storages, strict=True)
    ]


def disagreement(full: Spectrum, stack: RawArray, storage: FloatType) -> tuple[float, float]:
    """Largest relative difference to the CPU in float64 over the upper half of the spectrum, and what is tolerated.

    Args:
        full: what the accelerator computed for `stack`.
        stack: raw values, shape [s, rows, cols].
        storage: their type.
    """
    reference = spectrum(stack, storage)
    half = len(reference.eigenvalues) // 2
    upper = reference.eigenvalues[half:]
    difference = np.abs(full.eigenvalues[half:] - upper) / np.maximum(upper, np.finfo(np.float64).tiny)
    tolerated = max(1e-4 if full.dtype == "float32" else 1e-9, full.rounding(float(upper[0])))
    return float(difference.max()), tolerated


def _batch_size(device: str, nbytes: int, shape: tuple[int, int], s: int, dtype: ComputeType) -> int:
    """Matrices that fit into 70 % of the free memory: raw and widened values, Gram, and the solver's workspace."""
    kind = torch.device(device).type
    if kind != "cuda":
        return 16
    free, _ = torch.cuda.mem_get_info(device)
    n, m = sorted(shape)
    item = 4 if dtype == "float32" else 8
    return max(1, int(0.7 * free) // (nbytes + s * item * (n * m + 4 * n * n)))


@contextmanager
def full_precision() -> Generator[None]:
    """No TF32 inside: ten bits of mantissa lose every eigenvalue but the largest."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
