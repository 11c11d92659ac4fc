"""Address space where it is limited (`ulimit -v`): BLAS hangs or ends the process where none is left.

So the need is estimated before anything is started. Numbers are those of OpenBLAS and glibc on Linux.
"""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

from specdiag.errors import ComputationError

_LIBRARIES = 160 << 20
"""numpy and scipy without their BLAS."""
_BLAS_THREAD = 80 << 20
"""Bytes that each thread of their two BLAS libraries takes at import."""
_TORCH = 500 << 20
_WORKER = 128 << 20
"""Stack, arena and BLAS buffers of a worker, without its matrices."""


def limit() -> int | None:
    """Read the limit in bytes; None where there is none."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def require_libraries() -> None:
    """Check that numpy and scipy can be loaded within the limit.

    Raises:
        ComputationError: they cannot.
    """
    most = limit()
    need = _LIBRARIES + _BLAS_THREAD * _blas_threads() + _WORKER
    if most is not None and "scipy" not in sys.modules and most < need:
        raise ComputationError(_too_little(most, need, "the libraries take"))


def room(*, torch: bool) -> int | None:
    """Compute the bytes that are left for the work; None where there is no limit.

    Args:
        torch: whether torch will be loaded.
    """
    most = limit()
    if most is None:
        return None
    needed = _size() + (_TORCH if torch and "torch" not in sys.modules else 0)
    return most - needed


def jobs_within(space: int | None, jobs: int, largest: int) -> int:
    """Compute how many workers fit into the address space.

    Args:
        space: bytes, as `room` gives them; None for no limit.
        jobs: the largest number of workers.
        largest: bytes that the largest matrix takes while it is measured.

    Returns:
        The number of workers, 1 to `jobs`.

    Raises:
        ComputationError: not even one fits.
    """
    if space is None:
        return jobs
    need = _WORKER + largest
    if need > space:
        raise ComputationError(_too_little(limit() or 0, (limit() or 0) - space + need, "the largest matrix takes"))
    return max(1, min(jobs, space // need))


def _too_little(most: int, need: int, what: str) -> str:
    return (
        f"the address space is limited to {most / 2**20:.0f} MiB, and with what else is loaded {what} about "
        f"{need / 2**20:.0f} MiB: raise the limit (ulimit -v)"
    )


def _blas_threads() -> int:
    """Count the threads that OpenBLAS starts when it is loaded."""
    setting = next((os.environ[n] for n in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if n in os.environ), "")
    processors = os.cpu_count() or 1
    return min(int(setting), processors) if re.fullmatch(r"0*[1-9][0-9]{0,5}", setting) else processors


def _size() -> int:
    """Read the address space of this process in bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
