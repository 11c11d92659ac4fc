"""diffract on the block matrices of a safetensors file, held in memory: its own KS-optimal exponent.

python benchmarks/contenders/diffract_session.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from diffract import Session
from safetensors import safe_open


def analyse(folder: str) -> dict[str, Any]:
    """KS-optimal exponents of all block matrices by name."""
    with safe_open(Path(folder) / "model.safetensors", framework="numpy") as file:
        names = [name for name in file.keys() if "layer" in name]  # noqa: SIM118 - safe_open is no mapping
        weights = {name: file.get_tensor(name) for name in names}
    with Session(profile="ram") as session:
        session.models.add({n: w for n, w in weights.items() if w.ndim == 2}, model_id="model")
        session.compute.apply("pl_ks")
        rows = session.results.export_metrics("pl_alpha", export_format="list")
    return {"pl_alpha": {row["parameter_name"]: float(row["pl_alpha"]) for row in rows}}


if __name__ == "__main__":
    print(json.dumps(analyse(sys.argv[1])))
