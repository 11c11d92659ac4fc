"""Resources of this machine: processors, memory, an accelerator. Imports no torch by itself."""

from __future__ import annotations

import math
import os
import platform
import re
import resource
import sys
from functools import cache
from pathlib import Path

from specdiag.errors import UsageError

_VECTORS = re.compile("avx|amx|fma|f16c|sve|sme(?!p)|asimd|neon")
"""Begins the names of processor features that libraries choose their code by."""
_CHOOSERS = (
    "ATEN_CPU_CAPABILITY", "BLIS_ARCH_TYPE", "DNNL_MAX_CPU_ISA", "GLIBC_TUNABLES", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES",
)  # fmt: skip
"""Environment variables by which a user chooses other code."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """`8G`, `500M`, `1.5GiB`, or plain bytes.

    Raises:
        UsageError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None or not 0 < float(match[1]) < math.inf:
        raise UsageError(f"'{text}' is no size; write 8G or 500M")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_size(n_bytes: int) -> str:
    """Write a number of bytes for a person.

    Args:
        n_bytes: not negative.

    Returns:
        Such as `1.5 GiB`, with three digits that matter, from 1000 on all four.
    """
    unit = max((unit for unit, size in _UNITS.items() if n_bytes >= size), key=_UNITS.__getitem__, default="")
    if not unit:
        return f"{n_bytes} bytes"
    number = n_bytes / _UNITS[unit]
    return f"{number:.{3 if number < 999.5 else 4}g} {unit}iB"


def available_cpus() -> int:
    """Processors that this process may really use: its affinity, within a container's CPU quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, int(quota) // int(period)))


def one_torch_thread() -> None:
    """Let torch work with one thread where the caller calls it.

    torch has a number for each thread, and sets it to the process's at its first call there: ours comes after that.
    """
    import torch

    torch.get_num_threads()
    torch.set_num_threads(1)


@cache
def blas_kernels() -> tuple[str, ...]:
    """Name the kernels that BLAS libraries chose on this machine: the last bits of a number depend on them.

    OpenBLAS names its own. torch's BLAS and numpy's loops do not before they are loaded: they choose by the processor,
    so its model and vector instructions stand for them. Takes 4 ms.
    """
    import scipy.linalg.cython_blas as _  # loads the library that is asked for  # noqa: F401
    from threadpoolctl import threadpool_info

    found = {f"{i['internal_api']} {i.get('architecture')}" for i in threadpool_info() if i["user_api"] == "blas"}
    chosen = [f"{name}={value}" for name in _CHOOSERS if (value := os.environ.get(name))]
    return (*sorted(found), _processor(), *chosen)


@cache
def openblas_kernel() -> str | None:
    """Name the kernel that SciPy's OpenBLAS chose on this machine; None where SciPy has another BLAS. Takes 4 ms."""
    import scipy.linalg.cython_blas as _  # loads the library that is asked for  # noqa: F401
    from threadpoolctl import threadpool_info

    found = [library for library in threadpool_info() if library["internal_api"] == "openblas"]
    found.sort(key=lambda library: "scipy" not in Path(library["filepath"]).parent.name)  # numpy brings its own
    return str(found[0]["architecture"]) if found else None


def processor_vendor() -> str:
    """Name the maker of the first processor as it names itself, `GenuineIntel`; empty where it does not."""
    return _processor_fields().get("vendor_id", "")


def _processor() -> str:
    """Model and vector instructions of the first processor."""
    fields = _processor_fields()
    if not fields:
        return f"{platform.machine()} {platform.processor()}"
    model = [
        fields[name] for name in ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part") if name in fields
    ]
    features = fields.get("flags", fields.get("Features", "")).split()
    return " ".join((platform.machine(), *model, *sorted(f for f in features if _VECTORS.match(f))))


def _processor_fields() -> dict[str, str]:
    """Read what Linux says of the first processor; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return {}
    return dict(re.findall(r"^([^\t:]+)\t*: (.*)$", text, re.MULTILINE))


def total_memory() -> int:
    """Bytes of physical memory, within a container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return total if limit == "max" else min(total, int(limit))


def peak_memory() -> int:
    """Largest resident size of this program so far, bytes."""
    try:
        # Linux hands ru_maxrss down through fork and exec: a program started by a large one would report its parent.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def may_have_accelerator() -> bool:
    """Tell whether torch may find an accelerator: its import costs two seconds, wasted without a driver's node."""
    if sys.platform == "darwin":
        return True
    nodes = ("nvidiactl", "nvhost-ctrl", "nvgpu", "kfd", "dxg")
    return any(Path("/dev", node).exists() for node in nodes)
