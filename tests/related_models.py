"""Small llamas whose matrices have spectra of their own, as trained ones have, and models that are related to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.tensors import Checkpoint

D, HEADS, GROUPS, HEAD_DIM, HIDDEN, LAYERS = 48, 4, 2, 12, 80, 5
State = dict[str, torch.Tensor]


def config(**others: Any) -> dict[str, Any]:
    """config.json of such a llama."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D, "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS, "num_hidden_layers": LAYERS, "intermediate_size": HIDDEN, "hidden_act": "silu",
    } | others  # fmt: skip


def llama(seed: int = 0, layers: int = LAYERS, width: int = D, head_dim: int = HEAD_DIM, hidden: int = HIDDEN) -> State:
    """A state in float64: each head and each MLP has singular values that fall by a power of its own."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, cols: int) -> np.ndarray:
        n = min(rows, cols)
        left, right = (np.linalg.qr(rng.standard_normal((size, n)))[0] for size in (rows, cols))
        sigma = np.exp(0.5 * rng.standard_normal()) * np.arange(1, n + 1.0) ** -rng.uniform(0.2, 1.5)
        return left * sigma @ right.T

    heads, groups = HEADS, GROUPS
    state: dict[str, np.ndarray] = {"model.embed_tokens.weight": rng.standard_normal((67, width))}
    for i in range(layers):
        at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        for name, n in (("q", heads), ("k", groups), ("v", groups)):
            state[f"{at}{name}_proj.weight"] = np.concatenate([matrix(head_dim, width) for _ in range(n)])
        state[f"{at}o_proj.weight"] = np.concatenate([matrix(width, head_dim) for _ in range(heads)], axis=1)
        for name, shape in (("gate", (hidden, width)), ("up", (hidden, width)), ("down", (width, hidden))):
            state[f"{mlp}{name}_proj.weight"] = matrix(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{i}.{norm}.weight"] = 1 + 0.3 * rng.standard_normal(width)
    state["model.norm.weight"] = 1 + 0.1 * rng.standard_normal(width)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def opened(state: State, **others: Any) -> Checkpoint:
    """The state as a checkpoint."""
    return from_state_dict(state, config=config(**others))


def tuned(state: State, size: float, seed: int = 7) -> State:
    """The matrices of the layers moved at random by a share of their norm."""
    rng = torch.Generator().manual_seed(seed)

    def moved(value: torch.Tensor) -> torch.Tensor:
        step = torch.randn(value.shape, generator=rng, dtype=torch.float64)
        return value + size * value.norm() / step.norm() * step

    return {name: moved(v) if ".layers." in name and v.ndim == 2 else v.clone() for name, v in state.items()}
