"""Models and reports made up to be audited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers import with_singular_values
from models import PLACES, VOCABULARY, llama_shapes, write_checkpoint

from specdiag.auditing.records import AuditReport
from specdiag.records import ModuleRecord

LAYERS, WIDTH, HIDDEN, EXPERTS = 10, 64, 160, 4
CONFIG = {
    "rope_scaling": {"factor": 8.0, "type": "linear"},
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "hidden_size": WIDTH, "num_attention_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


def name(layer: int, place: str) -> str:
    return f"model.layers.{layer}.{place}.weight"


def llama(seed: int = 0, layers: int = LAYERS, width: int = WIDTH, hidden: int = HIDDEN) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {key: 1 + 0.02 * rng.standard_normal(shape).astype("f4") if len(shape) == 1
            else 0.1 * rng.standard_normal(shape).astype("f4")
            for key, shape in llama_shapes(layers, width, hidden, whole=True).items()}  # fmt: skip


def mixture(layers: int = 2, experts: int = EXPERTS) -> dict[str, np.ndarray]:
    """`llama` with experts in the place of its MLP."""
    rng = np.random.default_rng(layers)
    state = llama(layers=layers)
    for layer in range(layers):
        for place in PLACES[4:]:
            shape = state.pop(name(layer, place)).shape
            for expert in range(experts):
                values = 0.1 * rng.standard_normal(shape).astype("f4")
                state[name(layer, place.replace("mlp.", f"mlp.experts.{expert}."))] = values
        state[name(layer, "mlp.gate")] = 0.1 * rng.standard_normal((EXPERTS, WIDTH)).astype("f4")
    return state


def save(folder: Path, state: dict[str, np.ndarray], config: dict | None = None) -> Path:
    return write_checkpoint(folder, state, CONFIG if config is None else config)


def found(audit: AuditReport) -> set[tuple[str, str | None]]:
    return {(f.check, f.module) for f in audit.findings}


def pick(rng: np.random.Generator, places=PLACES) -> str:
    return name(int(rng.integers(LAYERS)), str(rng.choice(places)))


def like_noise(shape: tuple[int, ...]) -> float:
    """Spectral norm of the matrices of `llama`."""
    return 0.1 * (shape[0] ** 0.5 + shape[1] ** 0.5)


def of_deficient_rank(shape: tuple[int, int], zeros: int, seed: int) -> np.ndarray:
    """A matrix of the norm of those of `llama`, so many of whose singular values are 0."""
    sigma = np.r_[np.linspace(0.5, 1, min(shape) - zeros), np.zeros(zeros)] * like_noise(shape)
    return with_singular_values(sigma, shape, seed).astype("f4")


def heavy(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """A matrix as training makes them: a power law of singular values."""
    sigma = np.sort(np.random.default_rng(seed).pareto(3, min(shape)) + 0.3)
    return with_singular_values(sigma, shape, seed)


def wide(seed: int = 0) -> dict[str, torch.Tensor]:
    keys = [name(layer, place) for layer in range(2) for place in PLACES[:4]]
    return {key: torch.from_numpy(heavy(seed + i, (256, 256))).float() for i, key in enumerate(keys)}


def row(key: str, role: str, layer: int | None, **more) -> ModuleRecord:
    family = {"embed": "embedding", "head": "embedding", "other": "other"}.get(role, "attention")
    values = {"rows": 512, "cols": 512, "storage_dtype": "F32", "status": "ok", "tail": "hill", "method": "gram",
              "compute_dtype": "float64"} | more  # fmt: skip
    if values["status"] == "ok":
        values.setdefault("alpha", 2.0)
    return ModuleRecord(name=key, role=role, family=family, layer=layer, **values)
