"""Fleets of small models, and their tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet
from audited_models import CONFIG, llama, name, save

LAYERS = 2
NAN, DEAD = "nan", "dead"


def model(folder: Path, seed: int = 0, fault: str = "") -> Path:
    """A model of two layers, with NaN in one matrix or a dead row in another."""
    state = llama(seed, LAYERS)
    if fault == NAN:
        state[name(1, "self_attn.q_proj")][0, 0] = float("nan")
    if fault == DEAD:
        state[name(0, "mlp.up_proj")][3] = 0
    return save(folder, state, CONFIG | {"num_hidden_layers": LAYERS})


def fleet(folder: Path, n: int) -> list[str]:
    """So many models, each third of which has NaN, and their list."""
    names = [f"m{i:03}" for i in range(n)]
    for i, each in enumerate(names):
        model(folder / each, i, NAN if i % 3 == 2 else "")
    (folder / "models.txt").write_text("\n".join(names))
    return names


def rows(path: Path, kind: str) -> list[dict]:
    """The rows of one kind, without what they leave empty."""
    table = pyarrow.parquet.read_table(path).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in table if row["kind"] == kind]
