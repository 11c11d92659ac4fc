"""The AlphaDecay estimator in a loop of its own: one SVD a matrix, as its training code does it.

The arithmetic is that of the released code at `pl_fitting="median"` (arXiv 2506.14562): float32 singular values,
squared and sorted, Hill at the median, one Kolmogorov-Smirnov distance. torch keeps its default threads.

    python benchmarks/contenders/alphadecay_loop.py FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def alpha(weight: torch.Tensor) -> float:
    """PL_Alpha_Hill of one matrix, shape [rows, cols]."""
    eigenvalues = torch.sort(torch.square(torch.linalg.svdvals(weight.float()))).values
    logs = torch.log(eigenvalues)
    i = len(eigenvalues) // 2
    n = float(len(eigenvalues) - i)
    fitted = 1 + n / (torch.sum(logs[i:]) - n * logs[i])
    steps = torch.arange(n) / n
    torch.max(torch.abs(1 - (eigenvalues[i:] / eigenvalues[i]) ** (1 - fitted) - steps))
    return fitted.item()


def analyse(folder: str) -> dict[str, Any]:
    """Exponents of all block matrices by name, and the seconds that went into arithmetic alone."""
    alphas: dict[str, float] = {}
    arithmetic = 0.0
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            if "layer" in name and len(file.get_slice(name).get_shape()) == 2:
                weight = file.get_tensor(name)
                start = time.perf_counter()
                alphas[name] = alpha(weight)
                arithmetic += time.perf_counter() - start
    return {"alpha": alphas, "arithmetic_seconds": arithmetic}


if __name__ == "__main__":
    print(json.dumps(analyse(sys.argv[1])))
