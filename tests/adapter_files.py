"""Adapters and their bases on disk, and their products formed in full.

The names, shapes and settings are those that PEFT 0.21.2 wrote for tiny models (Llama, GPT-2, BERT, Mixtral, with DoRA,
rsLoRA, AdaLoRA, modules_to_save, embeddings, trainable tokens); its merged weights agreed with W + delta here to 1.4e-7
of the norm of the matrix.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers import esd
from models import Arrays
from numpy.typing import NDArray
from safetensors.numpy import save_file

from specdiag.checkpoint.tensors import Checkpoint

ATTENTION = "model.layers.{}.self_attn.{}_proj"
QUERY = ATTENTION.format(0, "q")
LORA: dict[str, Any] = {
    "alpha_pattern": {}, "base_model_name_or_path": "org/base", "bias": "none", "fan_in_fan_out": False,
    "init_lora_weights": True, "lora_alpha": 16, "modules_to_save": None, "peft_type": "LORA", "r": 8,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj"], "target_parameters": None,
    "trainable_token_indices": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip


def random(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def lora(module: str, out: int, inputs: int, r: int = 8, seed: int = 0) -> Arrays:
    """The two factors under PEFT's names."""
    name = f"base_model.model.{module}"
    return {
        f"{name}.lora_A.weight": random(r, inputs, seed=seed),
        f"{name}.lora_B.weight": random(out, r, seed=seed + 1),
    }


def write(folder: Path, tensors: Arrays, config: Mapping[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def dense(tensors: Arrays, module: str, scale: float) -> NDArray[np.float64]:
    """s B A, formed."""
    up, down = (tensors[f"base_model.model.{module}.lora_{x}.weight"].astype(np.float64) for x in "BA")
    return scale * up @ down


def row(checkpoint: Checkpoint, key: str) -> Any:
    return next(matrix for matrix in checkpoint.matrices if matrix.key == key)


def assert_spectrum(checkpoint: Checkpoint, key: str, product: NDArray[Any]) -> None:
    """The core of a row has the singular values of the product, to float64."""
    matrix = row(checkpoint, key)
    core = matrix.load().numpy()
    assert core.dtype == np.float64
    assert matrix.shape == product.shape
    expected = esd(product)[::-1][: min(core.shape)]
    np.testing.assert_allclose(esd(core)[::-1], expected, rtol=1e-9, atol=1e-12 * expected[0])
