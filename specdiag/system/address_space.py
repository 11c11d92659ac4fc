"""Address space where it is limited (`ulimit -v`): BLAS hangs or ends the process where none is left.

So what it will take is reckoned before anything is started. Numbers are those of OpenBLAS and glibc on Linux.
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
    """The limit in bytes; None where there is none."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def require_libraries() -> None:
    """Raise ComputationError now if numpy and scipy could not be loaded within the limit."""
    most = limit()
    need = _LIBRARIES + _BLAS_THREAD * _blas_threads() + _WORKER
    if most is not None and "scipy" not in sys.modules and most < need:
        raise ComputationError(_too_little(most, need, "the libraries take"))


def room(*, torch: bool) -> int | None:
    """Bytes that are left for the work; None where there is no limit.

    Args:
        torch: it will be loaded.
    """
    most = limit()
    if most is None:
        return None
    taken = _size() + (_TORCH if torch and "torch" not in sys.modules else 0)
    return most - taken


def jobs_within(space: int | None, jobs: int, largest: int) -> int:
    """The most workers, at most `jobs`, that `space` bytes bear.

    Args:
        space: what `room` says.
        jobs: as wanted.
        largest: bytes that the largest matrix takes while it is measured.

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
    """How many threads OpenBLAS starts when it is loaded."""
    told = next((os.environ[n] for n in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS") if n in os.environ), "")
    processors = os.cpu_count() or 1
    return min(int(told), processors) if re.fullmatch(r"0*[1-9][0-9]{0,5}", told) else processors


def _size() -> int:
    """Address space of this process, in bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0
