"""The checkpoints that the benchmark reads: MiniLM as it was published, and random weights of LLaMA shapes.

Random weights have a covariance with a broad spectrum, as trained ones do: pure noise has so steep a power law that
float32 does not settle its fit, and the largest of such matrices would be measured in both types.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"


@dataclass(frozen=True, slots=True)
class Shape:
    """A LLaMA, as its config.json spells it."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int = 32000


SHAPES = {
    "tiny": Shape(64, 172, 2, 4, vocab_size=320),
    "60m": Shape(512, 1376, 8, 8),
    "135m": Shape(768, 2048, 12, 12),
    "350m": Shape(1024, 2736, 24, 16),
    "1b": Shape(2048, 5461, 24, 32),
    "7b-layer": Shape(4096, 11008, 1, 32, vocab_size=320),
}
COARSE = "-bf16"
"""Ends the name of a model in bfloat16."""
TITLES = {
    "minilm": "MiniLM-L6", "tiny": "tiny LLaMA", "60m": "LLaMA-60M shapes", "135m": "LLaMA-135M shapes",
    "350m": "LLaMA-350M shapes", "1b": "LLaMA-1B shapes", "7b-layer": "one layer of a 7B LLaMA",
    "135m-bf16": "LLaMA-135M shapes in bfloat16", "1b-bf16": "LLaMA-1B shapes in bfloat16",
}  # fmt: skip


def fetch(name: str) -> Path:
    """The folder of a model, made or downloaded on the first call, in a process of its own."""
    script = ROOT / "tests" / "assets.py" if name == "minilm" else Path(__file__)
    done = subprocess.run([sys.executable, script, name, "--print-path"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.split("\n")[-2])


def write(name: str) -> Path:
    """Random weights of seed 0 under Hugging Face's names, embeddings and head included; float32 or bfloat16."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    folder = BUILD / name
    if (folder / "model.safetensors").exists():
        return folder
    shape, dtype = SHAPES[name.removesuffix(COARSE)], torch.bfloat16 if name.endswith(COARSE) else torch.float32
    rng = np.random.default_rng(0)
    weights = {key: random_weight(size, rng) for key, size in _matrices(shape).items()}
    norms = [f"model.layers.{i}.{n}.weight" for i in range(shape.num_hidden_layers) for n in _NORMS]
    weights |= {key: np.ones(shape.hidden_size, np.float32) for key in [*norms, "model.norm.weight"]}
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config | asdict(shape), indent=1))
    tensors = {key: torch.from_numpy(weight).to(dtype) for key, weight in weights.items()}
    save_file(tensors, folder / "part", metadata={"format": "pt"})
    (folder / "part").rename(folder / "model.safetensors")
    return folder


def random_weight(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian values times a lognormal scale for each line of the shorter side, which its spectrum shows."""
    import numpy as np

    n_rows, n_cols = size
    scales = 0.02 * np.exp(0.3 * rng.standard_normal(min(size), np.float32))
    along = scales if n_cols <= n_rows else scales[:, None]
    return rng.standard_normal(size, np.float32) * along.astype(np.float32)


def write_7b() -> Path:
    """A 7B LLaMA in bfloat16, a file for each layer: 13.5 GB, a few minutes. One layer at a time is in memory."""
    folder, shape = BUILD / "7b", Shape(4096, 11008, 32, 32)
    tensors = _matrices(shape)
    files = {key: f"{key.split('.')[2] if '.layers.' in key else 'ends'}.safetensors" for key in tensors}
    for file in dict.fromkeys(files.values()):
        write_bfloat16(folder / file, {key: tensors[key] for key, name in files.items() if name == file})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config | asdict(shape), indent=1))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def write_bfloat16(path: Path, tensors: dict[str, tuple[int, int]]) -> Path:
    """Weights N(0, 0.02^2) by name, unless the file is there."""
    import torch
    from safetensors.torch import save_file

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        random = torch.Generator().manual_seed(len(path.stem))
        part = path.with_suffix(".part")
        weights = {key: torch.empty(size, dtype=torch.bfloat16) for key, size in tensors.items()}
        for weight in weights.values():
            for rows in weight.split(1024):
                rows.copy_(torch.randn(rows.shape, generator=random) * 0.02)
        save_file(weights, part, metadata={"format": "pt"})
        part.rename(path)
    return path


_NORMS = ("input_layernorm", "post_attention_layernorm")


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    d, m = shape.hidden_size, shape.intermediate_size
    block = {f"self_attn.{n}_proj": (d, d) for n in "qkvo"}
    block |= {"mlp.gate_proj": (m, d), "mlp.up_proj": (m, d), "mlp.down_proj": (d, m)}
    layers = range(shape.num_hidden_layers)
    inner = {f"model.layers.{i}.{n}.weight": size for i in layers for n, size in block.items()}
    ends = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (shape.vocab_size, d))
    return ends | inner


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights under build/bench.")
    parser.add_argument("name", choices=[name for name in TITLES if name != "minilm"])
    parser.add_argument("--print-path", action="store_true", help="accepted, as by tests/assets.py")
    print(write(parser.parse_args().name))
