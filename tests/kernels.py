"""The kernels of OpenBLAS that this processor can run, without the one that it chooses: one a line.

OPENBLAS_CORETYPE=Prescott python -m pytest -m numeric
"""

from __future__ import annotations

import sys
from pathlib import Path

NEEDED = {
    "Prescott": {"pni"},
    "Haswell": {"avx2", "fma"},
    "SkylakeX": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
}
"""Flags of /proc/cpuinfo by kernel: one that lacks them ends with an illegal instruction."""
GENERIC = "Katmai"
"""Another name of the kernel that Prescott stands for in builds without its own."""


def kernels(flags: set[str], chosen: set[str]) -> list[str]:
    """Kernels to try.

    Args:
        flags: of the processor; empty where it is no x86.
        chosen: kernels that are used without being asked for.
    """
    chosen = {"Prescott" if name == GENERIC else name for name in chosen}
    return [name for name, needed in NEEDED.items() if needed <= flags and name not in chosen]


def processor_flags() -> set[str]:
    """The flags of the first processor; empty where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


if __name__ == "__main__":
    import scipy.linalg  # noqa: F401 - loads SciPy's OpenBLAS
    from threadpoolctl import threadpool_info

    used = {str(each.get("architecture")) for each in threadpool_info() if each["internal_api"] == "openblas"}
    sys.stdout.writelines(f"{name}\n" for name in kernels(processor_flags(), used))
