"""Reports and checkpoints of decoders to make references of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models import LLAMA, Arrays, llama_state, write_checkpoint
from msgspec.structs import replace as changed
from saved_reports import made

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport

SIDE = 64


def record(layer: int, value: float, cols: int = SIDE, **fields: object) -> ModuleRecord:
    """A matrix of queries."""
    given = {
        "name": f"model.layers.{layer}.self_attn.q_proj.weight", "role": "q", "family": "attention", "layer": layer,
        "rows": SIDE, "cols": cols, "storage_dtype": "F32", "status": "ok", "tail": "hill", "alpha": value,
        "rho": 0.5, "square_alpha": value, "stable_rank": 16.0, "mp_spikes": 4, "n_eigenvalues": SIDE,
        "digest": f"{cols}-{layer}-{value}", "method": "gram", "compute_dtype": "float64",
    }  # fmt: skip
    return ModuleRecord(**{**given, **fields})  # pyright: ignore[reportArgumentType]


def report(values: Sequence[float], number: int, architecture: str | None = "LlamaForCausalLM") -> SpectralReport:
    """The report of a decoder whose layers have these values of square_alpha, as wide as no other of another number."""
    found = made([record(layer, value, SIDE + number) for layer, value in enumerate(values)])
    return replace(
        found,
        source=changed(found.source, location=f"model-{number}"),
        provenance=changed(found.provenance, architecture=architecture),
    )


def checkpoint(folder: Path, seed: int, state: Arrays | None = None, card: str | None = None) -> Path:
    """A decoder of random weights, all of one shape."""
    write_checkpoint(folder, llama_state(seed=seed) if state is None else state, LLAMA)
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder
