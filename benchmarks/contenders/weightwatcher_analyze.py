"""WeightWatcher on a directory of safetensors, its defaults but for the embeddings, which are left out.

python benchmarks/contenders/weightwatcher_analyze.py FOLDER
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import weightwatcher
from safetensors import safe_open

logging.getLogger("weightwatcher").setLevel(logging.ERROR)
logging.getLogger().setLevel(logging.ERROR)


def analyse(folder: str) -> dict[str, Any]:
    """KS-optimal exponents of all block matrices by name."""
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        blocks = [name.removesuffix(".weight") for name in file.keys() if "layer" in name]  # noqa: SIM118
    watcher = weightwatcher.WeightWatcher(model=str(folder))
    details = watcher.analyze(max_N=30000, layers=blocks)
    return {"pl_alpha": {f"{name}.weight": a for name, a in zip(details.longname, details.alpha, strict=True)}}


if __name__ == "__main__":
    print(json.dumps(analyse(sys.argv[1])))
