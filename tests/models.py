"""Small models under the names of LLaMA, in memory and on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import lcg
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

Arrays = dict[str, NDArray[Any]]
QUERY = "model.layers.{}.self_attn.q_proj.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PLACES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
VOCABULARY = 200
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
"""A config.json of which an analysis takes the name alone."""


def llama_shapes(
    layers: int = 2, width: int = 64, hidden: int = 160, *, whole: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shapes by name; `whole` with a head and a norm in each layer."""
    shapes: dict[str, tuple[int, ...]] = {EMBED: (VOCABULARY, width)}
    if whole:
        shapes[HEAD] = (VOCABULARY, width)
    shapes["model.norm.weight"] = (width,)
    for layer in range(layers):
        for place in PLACES:
            wide = {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
            shapes[f"model.layers.{layer}.{place}.weight"] = wide.get(place, (width, width))
        if whole:
            shapes[f"model.layers.{layer}.input_layernorm.weight"] = (width,)
    return shapes


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    """Standard normal matrices in float32 and vectors of ones, drawn in the order of the shapes."""
    rng = np.random.default_rng(seed)
    return {
        name: np.ones(shape, "f4") if len(shape) == 1 else rng.standard_normal(shape).astype("f4")
        for name, shape in shapes.items()
    }


def llama_state(layers: int = 2, width: int = 64, hidden: int = 160, seed: int = 0) -> Arrays:
    """Seven random matrices a layer, an embedding and a norm."""
    return random_state(llama_shapes(layers, width, hidden), seed)


def queries(n: int = 3, rows: int = 256, cols: int = 256, seed: int = 0) -> Arrays:
    """Make a random matrix for each layer."""
    return random_state({QUERY.format(i): (rows, cols) for i in range(n)}, seed)


def lcg_state(names: Iterable[str], rows: int = 64, cols: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    """Matrices that any language can make, each of the next seed."""
    return {name: torch.from_numpy(lcg(rows, cols, seed + i)) for i, name in enumerate(names)}


def tensors(state: Mapping[str, NDArray[Any]]) -> dict[str, torch.Tensor]:
    """The same values for torch."""
    return {name: torch.from_numpy(values) for name, values in state.items()}


def write_checkpoint(
    folder: Path, state: Mapping[str, NDArray[Any]] | Mapping[str, torch.Tensor],
    config: Mapping[str, Any] | None = LLAMA, name: str = "model.safetensors",
) -> Path:  # fmt: skip
    """Write a safetensors file and a config.json into a folder that may not be there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if all(isinstance(value, np.ndarray) for value in state.values()):
        save_file({key: np.ascontiguousarray(value) for key, value in state.items()}, folder / name)
    else:
        save_tensors({key: torch.as_tensor(value).contiguous() for key, value in state.items()}, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
