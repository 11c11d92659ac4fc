"""Real weights: MiniLM with an adapter merged by numpy, rightly and wrongly, and SmolLM2's GGUF beside a copy of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import gguf_writer
import numpy as np
import pytest
import torch
from adapter_files import LORA, write
from models import write_checkpoint
from safetensors.numpy import load_file

import specdiag

MODULES = [f"encoder.layer.{i}.attention.self.{x}" for i in range(6) for x in ("query", "value")]
KEY = "encoder.layer.2.attention.self.key.weight"
OTHER = KEY.replace("layer.2", "layer.4")
Weights = dict[str, Any]


@pytest.fixture(scope="module")
def made(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights, Weights]:
    folder = tmp_path_factory.mktemp("minilm")
    state: Weights = load_file(minilm / "model.safetensors")
    rng = np.random.default_rng(0)
    pairs = {
        m: (rng.standard_normal((16, 384)).astype("f4"), (rng.standard_normal((384, 16)) * 1e-4).astype("f4"))
        for m in MODULES
    }
    tensors = {
        f"base_model.model.{m}.lora_{x}.weight": f for m, pair in pairs.items() for x, f in zip("AB", pair, strict=True)
    }
    return write(folder / "adapter", tensors, LORA | {"r": 16, "lora_alpha": 32}), state, pairs


def merged(state: Weights, pairs: Weights, scale: float = 2.0) -> Weights:
    result = dict(state)
    for module, (a, b) in pairs.items():
        result[f"{module}.weight"] = result[f"{module}.weight"].astype("f8") + scale * b.astype("f8") @ a.astype("f8")
    return result


def save(folder: Path, state: Weights, dtype: torch.dtype, config: dict[str, Any]) -> Path:
    tensors = {n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in state.items()}
    return write_checkpoint(
        folder, {n: w.to(dtype) if w.is_floating_point() else w for n, w in tensors.items()}, config
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_merges_of_minilm(minilm: Path, made: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    adapter, state, pairs = made
    config = json.loads((minilm / "config.json").read_text())
    found = specdiag.verify(minilm, adapter, save(tmp_path, merged(state, pairs), dtype, config))
    assert (found.verdict, found.faults, found.not_compared) == ("verified", (), ())
    assert len(found.tensors) == len(state)
    assert sum(t.updated for t in found.tensors) == 12


@pytest.mark.parametrize(
    ("how", "cause", "n"),
    [
        ("none", "not applied", 12), ("scale", "wrong scale", 12), ("twice", "applied twice", 12),
        ("other", "wrong module", 6), ("swapped", "values of another tensor", 1), ("permuted", "rows permuted", 1),
        ("transposed", "transposed", 1), ("dtype", "other dtype", 50),
    ],
)  # fmt: skip
def test_wrong_merges_of_minilm(minilm: Path, made: Any, tmp_path: Path, how: str, cause: str, n: int) -> None:
    adapter, state, pairs = made
    right, dtype = merged(state, pairs), torch.bfloat16
    if how == "none":
        right = state
    elif how == "scale":
        right = merged(state, pairs, 32.0)
    elif how == "twice":
        right = merged({n: _low(w) for n, w in right.items()}, pairs)
    elif how == "other":
        right = merged(state, {m.replace("value", "key"): pair for m, pair in pairs.items()})
    elif how == "swapped":
        right[KEY] = state[OTHER]
    elif how == "permuted":
        right[KEY] = state[KEY][np.random.default_rng(0).permutation(384)]
    elif how == "transposed":
        right[KEY] = state[KEY].T
    else:
        right, dtype = {n: _low(w) for n, w in right.items()}, torch.float32
    found = specdiag.verify(minilm, adapter, save(tmp_path, right, dtype, {}))
    assert found.verdict == "not verified"
    assert [f.cause for f in found.faults].count(cause) >= n
    assert {f.cause for f in found.faults} <= {cause, "not applied"}, "6 values got no update where keys got it"


def _low(w: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(w)).to(torch.bfloat16).float().numpy() if w.dtype.kind == "f" else w


NAMES = {
    "token_embd": "model.embed_tokens", "blk": "model.layers", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "output_norm": "model.norm",
}  # fmt: skip


LAYERS, TOKENS = 8, 4096
"""Layers and tokens that stand for SmolLM2's 30 and 49152: every type of its codes, a quarter of its values."""


def shortened(path: Path, folder: Path) -> Path:
    reader = gguf.GGUFReader(path)
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]] = {}
    for tensor in reader.tensors:
        layer = tensor.name.split(".")[1]
        if layer.isdigit() and int(layer) >= LAYERS:
            continue
        shape, data = [int(n) for n in reversed(tensor.shape)], np.asarray(tensor.data)
        if tensor.name.startswith("token_embd"):
            shape[0], data = TOKENS, data[:TOKENS]
        tensors[tensor.name] = (tuple(shape), int(tensor.tensor_type), data.tobytes())
    keys = ("llama.attention.head_count", "llama.attention.head_count_kv", "llama.embedding_length")
    metadata = {"general.architecture": "llama"} | {key: int(reader.fields[key].contents()) for key in keys}
    return gguf_writer.write(folder / "short.gguf", gguf_writer.model(tensors, metadata))


def test_a_gguf_and_what_was_decoded_from_it(asset: Any, tmp_path: Path) -> None:
    """In both directions, and with one matrix that is left in the order of GGUF."""
    folder = shortened(next(asset("smollm2-gguf").glob("*.gguf")), tmp_path)
    state: dict[str, torch.Tensor] = {}
    for tensor in gguf.GGUFReader(folder).tensors:
        values = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        name = ".".join(NAMES.get(word, word) for word in tensor.name.split("."))
        if "q_proj" in name or "k_proj" in name:
            heads = len(values) // 64
            values = values.reshape(heads, 32, 2, -1).swapaxes(1, 2).reshape(values.shape)
        state[name] = torch.from_numpy(np.array(values)).to(torch.bfloat16)
    config = {"model_type": "llama", "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    copy = write_checkpoint(tmp_path / "copy", state, config)
    found = specdiag.verify(folder, copy)
    assert (found.verdict, {t.outcome for t in found.tensors}) == ("verified", {"equal", "rounded"})
    found = specdiag.verify(copy, folder)
    assert (found.verdict, len(found.tensors), found.not_compared) == ("verified", 2 + 9 * LAYERS, ())
    name = "model.layers.7.self_attn.k_proj.weight"
    state[name] = state[name].view(3, 2, 32, 576).transpose(1, 2).reshape(192, 576)
    wrong = specdiag.verify(folder, write_checkpoint(tmp_path / "wrong", state, config))
    assert [(f.name_after, f.cause) for f in wrong.faults] == [(name, "rotary order")]
