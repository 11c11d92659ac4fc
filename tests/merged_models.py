"""A base model, an adapter, and merges made in float64 by numpy alone, right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapter_files import LORA, write
from models import Arrays, llama_shapes, write_checkpoint

Wide = dict[str, Any]
TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160,
    "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2, "vocab_size": 200,
}  # fmt: skip
RANK, ALPHA = 8, 16


def modules(layers: int = 2) -> list[str]:
    return [f"model.layers.{layer}.{target}" for layer in range(layers) for target in TARGETS]


def base_state(seed: int = 0) -> Arrays:
    """Weights of the sizes that trained ones have; gains that differ."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * 0.05 + (len(shape) == 1)).astype("f4")
        for name, shape in llama_shapes(whole=True).items()
    }


def factors(state: Mapping[str, Any], size: float = 0.1, rank: int = RANK, seed: int = 5) -> Wide:
    """A and B of each module, their product `size` times as large as the weight."""
    rng, found = np.random.default_rng(seed), {}
    for module in modules():
        weight = state[f"{module}.weight"].astype("f8")
        a, b = rng.standard_normal((rank, weight.shape[1])), rng.standard_normal((weight.shape[0], rank))
        b *= size * np.linalg.norm(weight) / np.linalg.norm(b @ a) / (ALPHA / RANK)
        found[module] = (a.astype("f4").astype("f8"), b.astype("f4").astype("f8"))
    return found


def merged(state: Mapping[str, Any], pairs: Mapping[str, Any], scale: float = ALPHA / RANK) -> Wide:
    """W + s B A in float64."""
    result = {name: value.astype("f8") for name, value in state.items()}
    for module, (a, b) in pairs.items():
        result[f"{module}.weight"] += scale * b @ a
    return result


def cast(state: Mapping[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(dtype) for name, value in state.items()}


def save(folder: Path, state: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> Path:
    return write_checkpoint(folder, cast(state, dtype), CONFIG)


def save_adapter(folder: Path, pairs: Mapping[str, Any], **settings: Any) -> Path:
    tensors = {
        f"base_model.model.{module}.lora_{x}.weight": factor.astype("f4")
        for module, pair in pairs.items()
        for x, factor in zip("AB", pair, strict=True)
    }
    return write(folder, tensors, LORA | {"r": RANK, "lora_alpha": ALPHA} | settings)


Plant = Callable[[Wide, Wide], Wide]
"""Makes a wrong model of the base and the factors."""


def _shifted(state: Wide, pairs: Wide) -> Wide:
    """Give the update of q to v, and that of k to o."""
    to = {"q_proj": "v_proj", "k_proj": "o_proj"}
    return merged(state, {m.replace(m[-6:], to.get(m[-6:], m[-6:])): pair for m, pair in pairs.items()})


def _with(state: Wide, name: str, change: Callable[[Any], Any]) -> Wide:
    return state | {name: change(state[name])}


Q, UP, NORM = (f"model.layers.1.{m}.weight" for m in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm"))
V, K = Q.replace("q_proj", "v_proj"), Q.replace("q_proj", "k_proj")


def _quantised(state: Wide) -> Wide:
    """Matrices on 16 levels for each row."""
    steps = {n: np.abs(w).max(axis=-1, keepdims=True) / 8 for n, w in state.items()}
    return {n: np.round(w / steps[n]) * steps[n] if w.ndim == 2 else w for n, w in state.items()}


def _rotated(w: Any) -> Any:
    return w.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)


PLANTED: dict[str, tuple[Plant, str, int]] = {
    "none": (lambda s, p: s, "not applied", 6),
    "double scale": (lambda s, p: merged(s, p, 4.0), "wrong scale", 6),
    "subtracted": (lambda s, p: merged(s, p, -2.0), "subtracted", 6),
    "alpha": (lambda s, p: merged(s, p, 16.0), "wrong scale", 6),
    "unscaled": (lambda s, p: merged(s, p, 1.0), "wrong scale", 6),
    "rslora": (lambda s, p: merged(s, p, 16 / 8**0.5), "wrong scale", 6),
    "80 %": (lambda s, p: merged(s, p, 1.6), "wrong scale", 6),
    "half the rank": (lambda s, p: merged(s, {m: (a[:4], b[:, :4]) for m, (a, b) in p.items()}), "part of the update", 6),
    "one left out": (lambda s, p: merged(s, dict(list(p.items())[1:])), "not applied", 1),
    "other modules": (_shifted, "wrong module", 4),
    "another adapter": (lambda s, p: merged(s, factors(s, seed=9)), "other update", 6),
    "another base": (lambda s, p: merged(_quantised(s), p), "other base", 6),
    "transposed": (lambda s, p: _with(merged(s, p), V, np.transpose), "transposed", 1),
    "transposed update": (lambda s, p: _with(merged(s, p), Q, np.transpose), "transposed", 1),
    "rows permuted": (lambda s, p: _with(merged(s, p), UP, lambda w: w[np.random.default_rng(0).permutation(160)]), "rows permuted", 1),
    "columns permuted": (lambda s, p: _with(merged(s, p), V, lambda w: w[:, ::-1]), "columns permuted", 1),
    "rotary": (lambda s, p: _with(merged(s, p), Q, _rotated), "rotary order", 1),
    "swapped": (lambda s, p: merged(s, p) | {V: s[V.replace("s.1", "s.0")]}, "values of another tensor", 1),
    "norm scaled": (lambda s, p: _with(merged(s, p), NORM, lambda g: 1.5 * g), "scaled", 1),
    "norm of ones": (lambda s, p: _with(merged(s, p), NORM, np.ones_like), "changed", 1),
    "noise": (lambda s, p: _with(merged(s, p), V, lambda w: w + 0.1 * base_state(7)[V]), "changed", 1),
    "random": (lambda s, p: _with(merged(s, p), V, lambda w: base_state(7)[V]), "other values", 1),
    "not finite": (lambda s, p: _with(merged(s, p), UP, lambda w: np.where(np.arange(64) == 3, np.nan, w)), "not finite", 1),
    "one value": (lambda s, p: _with(merged(s, p), V, lambda w: w + (np.arange(64 * 64) == 77).reshape(64, 64)), "few values differ", 1),
    "a norm missing": (lambda s, p: {n: w for n, w in merged(s, p).items() if n != NORM}, "missing", 1),
    "one more": (lambda s, p: merged(s, p) | {"model.layers.1.extra.weight": s[V] * 2}, "added", 1),
}  # fmt: skip
"""Faults: how the model is made, the name that it must get, and the tensors that must get it."""
