"""Other forms of a small llama: the changes of the benchmark, in float64."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from lineage_changes import Shape, State, other_form
from related_models import GROUPS, HEADS

SHAPE = Shape(HEADS, GROUPS, is_llama=True)


def changed(state: State, seed: int = 1) -> State:
    """Gains folded, heads mixed and renumbered, neurons rescaled and renumbered."""
    return other_form(SHAPE, seed)(state)


def turned(state: State, seed: int = 2) -> State:
    """The same, and the residual stream turned."""
    return {n: v.double() for n, v in other_form(SHAPE, seed, turned=True)(state).items()}
