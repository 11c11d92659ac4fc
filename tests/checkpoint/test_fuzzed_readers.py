"""Every reader of a file ends every input with an answer or with one of specdiag's own errors, in bounded time.

Seeded; SPECDIAG_FUZZ_SECONDS is the time of each target, some seconds by default.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import numpy as np
import pytest
import torch
from distributed_files import save_chunks
from gguf_writer import QUERY, floats, model, quantised
from quantisers import FORMATS
from safetensors.numpy import save
from safetensors.torch import save as torch_bytes

from specdiag.checkpoint.gguf.file import list_gguf
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.safetensors_file import list_safetensors

RNG = np.random.default_rng(0)
WIDE = {
    "model.embed_tokens.weight": (40, 16),
    **{f"model.layers.{i}.self_attn.{n}_proj.weight": (16, 16) for i in range(2) for n in "qkvo"},
    **{f"model.layers.{i}.mlp.experts.gate_up_proj": (4, 32, 16) for i in range(2)},
    **{f"h.{i}.attn.c_attn.weight": (16, 48) for i in range(2)},
    "visual.patch_embed.proj.weight": (16, 3, 4, 4),
    "model.norm.weight": (16,),
}
WEIGHTS = save({name: RNG.standard_normal(shape, np.float32) for name, shape in WIDE.items()})
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "text_config": {
        "model_type": "falcon",
        "num_attention_heads": 4,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
    },
    "vision_config": {"patch_size": 4, "num_heads": 4},
    "attn_config": {"kv_n_heads": 2},
    "num_experts": 4,
}


def opens(folder: Path, name: str) -> Callable[[Any], object]:
    """Opens a folder whose file `name` is the input: bytes, or a value as JSON."""

    def read(value: Any) -> object:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(data)
        return open_checkpoint(folder)

    return read


def header_of(file: bytes) -> Any:
    return json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])


def test_safetensors_bytes(tmp_path: Path) -> None:
    small = save({"a.weight": np.ones((2, 3), np.float32), "b": np.ones(2, np.float16)}, metadata={"x": "y"})
    path = tmp_path / "model.safetensors"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for tensor in list_safetensors(path, "model.safetensors").tensors:
            tensor.read(None)

    fuzzing.fuzz(read, fuzzing.mutations(small, 1))


def test_safetensors_headers(tmp_path: Path) -> None:
    data = WEIGHTS[8 + int.from_bytes(WEIGHTS[:8], "little") :]

    def read(header: Any) -> None:
        text = json.dumps(header).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        open_checkpoint(tmp_path)

    fuzzing.fuzz(read, fuzzing.json_mutations(header_of(WEIGHTS), 2))


def test_gguf_bytes(tmp_path: Path) -> None:
    whole = model(
        {QUERY: quantised(4, 32), "blk.0.attn_norm.weight": floats(8), "blk.0.attn_k.weight": floats(8, 4)},
        {"general.architecture": "llama", "llama.attention.head_count": [2, 2], "tokenizer.ggml.tokens": ["a", "b"]},
    )
    path = tmp_path / "model.gguf"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for stored in list_gguf(path, "model.gguf").tensors:
            if stored.reason is None:
                stored.read(None)
        open_checkpoint(path)

    fuzzing.fuzz(read, fuzzing.mutations(whole, 3))


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_indices(tmp_path: Path, kind: str) -> None:
    names = list(WIDE)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        (tmp_path / file).write_bytes(save({name: np.ones(WIDE[name], np.float32) for name in held}))
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    read = opens(tmp_path, "model.safetensors.index.json")
    read(index)
    mutated = fuzzing.json_mutations(index, 4) if kind == "values" else fuzzing.mutations(json.dumps(index).encode(), 4)
    fuzzing.fuzz(read, mutated)


@pytest.mark.parametrize("kind", ["bytes", "values"])
def test_configurations(tmp_path: Path, kind: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    read = opens(tmp_path, "config.json")
    read(CONFIG)
    mutated = (
        fuzzing.json_mutations(CONFIG, 5) if kind == "values" else fuzzing.mutations(json.dumps(CONFIG).encode(), 5)
    )
    fuzzing.fuzz(read, mutated)


@pytest.mark.parametrize("method", ["LORA", "ADALORA"])
def test_adapter_configurations(tmp_path: Path, method: str) -> None:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": (4, 16), f"{module}.lora_B.weight": (16, 4)}
    more = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": (2, 16)}
    (tmp_path / "adapter_model.safetensors").write_bytes(
        save({name: RNG.standard_normal(shape, np.float32) for name, shape in (factors | more).items()})
    )
    config = {
        "peft_type": method,
        "r": 4,
        "init_r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True] * 4}
        if method == "ADALORA"
        else {"q_proj": 4},
        "alpha_pattern": {r"(.*)\.q_proj": 8, "k_proj": 4},
        "target_parameters": ["experts.up_proj"],
        "trainable_token_indices": {"embed_tokens": [1, 2]},
        "init_lora_weights": True,
        "use_rslora": False,
        "fan_in_fan_out": False,
    }
    read = opens(tmp_path, "adapter_config.json")
    read(config)

    def measured(value: Any) -> None:
        checkpoint: Any = read(value)
        for matrix in checkpoint.matrices:
            matrix.tensor.read(None)

    fuzzing.fuzz(measured, fuzzing.json_mutations(config, 6))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_quantised_weights(tmp_path: Path, name: str) -> None:
    """Its configuration and its header, one after the other; what is taken can be read."""
    form = FORMATS[name]
    file = torch_bytes(
        form.quantise("model.layers.0.self_attn.q_proj", RNG.standard_normal((128, 256), np.float32)).tensors
    )
    data = file[8 + int.from_bytes(file[:8], "little") :]

    def read(both: Any) -> None:
        if not isinstance(both, dict) or set(both) != {"config", "header"}:
            return
        text = json.dumps(both["header"]).encode()
        (tmp_path / "config.json").write_text(json.dumps(both["config"]))
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        for matrix in open_checkpoint(tmp_path).matrices:
            matrix.tensor.read(None)

    whole = {"config": form.config, "header": header_of(file)}
    read(whole)
    fuzzing.fuzz(read, fuzzing.json_mutations(whole, 7), fuzzing.seconds() / 4)


def test_distributed_checkpoints(tmp_path: Path) -> None:
    """`.metadata`, and the file of chunks; what is taken can be read."""
    tensors = {"a.weight": torch.randn(8, 6), "b.weight": torch.randn(4, 4).to(torch.bfloat16)}
    cuts: Any = {"a.weight": [((0, 0), (8, 4)), ((0, 4), (8, 2))], "b.weight": [((0, 0), (4, 4))]}
    save_chunks(tmp_path / "a", tensors, cuts)
    for name, seed in ((".metadata", 10), ("__0_0.distcp", 11)):
        path = tmp_path / "a" / name
        whole = path.read_bytes()

        def read(data: bytes, path: Path = path) -> None:
            path.write_bytes(data)
            for tensor in open_checkpoint(tmp_path / "a").stored or ():
                tensor.read(None)
                tensor.read(0)

        fuzzing.fuzz(read, fuzzing.mutations(whole, seed))
        read(whole)


@pytest.mark.parametrize("kind", ["header", "offsets"])
def test_slices(tmp_path: Path, kind: str) -> None:
    offsets = {"a.weight": {"saved_offsets": [0, 0]}, "b.weight": {"saved_offsets": [0]}}
    first = {"a.weight": np.ones((4, 3), np.float32), "b.weight": np.ones(5, np.float32)}
    text = {"DCP_SHARDING_INFO": json.dumps(offsets | {"a.weight": {"saved_offsets": [4, 0]}})}
    (tmp_path / "shard-00002-model-00001-of-00001.safetensors").write_bytes(
        save({"a.weight": np.ones((2, 3), np.float32)}, metadata=text)
    )
    whole = save(first, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
    data = whole[8 + int.from_bytes(whole[:8], "little") :]

    def read(value: Any) -> None:
        header = header_of(whole) | {"__metadata__": {"DCP_SHARDING_INFO": json.dumps(value)}}
        text = json.dumps(value if kind == "header" else header).encode()
        path = tmp_path / "shard-00001-model-00001-of-00001.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        for tensor in open_checkpoint(tmp_path).stored or ():
            tensor.read(None)

    start: Any = header_of(whole) if kind == "header" else offsets
    read(start)
    fuzzing.fuzz(read, fuzzing.json_mutations(start, 12), fuzzing.seconds() / 2)


def test_role_maps(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WEIGHTS)
    role_map = tmp_path / "roles.toml"
    text = b"""[[rule]]
pattern = "model.layers.*.self_attn.q_proj.weight"
role = "q"
family = "attention"
layer = 3

[[rule]]
pattern = "*embed*"
role = "embed"
"""

    def read(data: bytes) -> None:
        role_map.write_bytes(data)
        open_checkpoint(path, role_map=role_map)

    read(text)
    fuzzing.fuzz(read, fuzzing.mutations(text, 8))


def test_pipelines(tmp_path: Path) -> None:
    for folder in ("unet", "text_encoder"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(WEIGHTS)
    index = {
        "_class_name": "Some",
        "unet": ["diffusers", "UNet"],
        "text_encoder": ["a", "B"],
        "vae": ["diffusers", "V"],
    }
    read = opens(tmp_path, "model_index.json")
    read(index)
    fuzzing.fuzz(read, fuzzing.json_mutations(index, 9))
