"""Which GGUF file is read, and what it says of itself."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_writer import QUERY, floats, model, opened, quantised, write

from specdiag.checkpoint.file_selection import choose
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError


def test_shards(tmp_path: Path) -> None:
    for i in range(3):
        shard = {"split.no": i, "split.count": 3} | ({} if i else {"general.architecture": "qwen3"})
        tensors = {} if i == 0 else {f"blk.{i}.attn_q.weight": quantised(4, 32)}
        write(tmp_path / f"m-Q4_0-{i + 1:05d}-of-00003.gguf", model(tensors, shard))
    checkpoint = opened(tmp_path)
    assert [m.module.layer for m in checkpoint.matrices] == [1, 2]
    assert checkpoint.architecture == "qwen3"
    assert checkpoint.notes == tuple(f"Dequantised 1 tensor of m-Q4_0-0000{i}-of-00003.gguf from Q4_0." for i in (2, 3))
    (tmp_path / "m-Q4_0-00002-of-00003.gguf").unlink()
    with pytest.raises(SourceError, match=r"is incomplete: it lacks m-Q4_0-00002-of-00003\.gguf"):
        open_checkpoint(tmp_path)


def test_a_projector_beside_the_model(tmp_path: Path) -> None:
    write(tmp_path / "gemma-Q4_0.gguf", model({QUERY: floats(4, 4)}))
    clip = {"general.architecture": "clip", "clip.vision.patch_size": 14, "clip.vision.attention.head_count": 16}
    write(tmp_path / "mmproj-F16.gguf", model({"v.blk.0.attn_q.weight": floats(4, 4)}, clip))
    checkpoint = opened(tmp_path)
    assert checkpoint.source.files == ("gemma-Q4_0.gguf",)
    assert checkpoint.source.ignored == ("mmproj-F16.gguf",)
    assert checkpoint.notes == (
        "Left out mmproj-F16.gguf, a multimodal projector beside the model: analyse one with file=.",
    )
    picked = open_checkpoint(tmp_path, file="mmproj-F16.gguf")
    assert [(m.name, m.module.role) for m in picked.matrices] == [("v.blk.0.attn_q.weight", "q")]
    assert picked.notes == ()
    assert picked.config["vision_config"] == {"num_attention_heads": 16, "patch_size": 14}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["a.gguf", "model.bin"], "model.bin"),
        (["a.gguf", "x/b.gguf", "README.md"], "a.gguf"),
        (["a.gguf", "a-mmproj-f16.gguf", "MMPROJ-a.gguf", "a-imatrix.gguf"], "a.gguf"),
        (["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        (["model.onnx", "a.Q4_0.gguf"], "a.Q4_0.gguf"),
    ],
)
def test_precedence(names: list[str], chosen: str) -> None:
    assert choose(names, None, "org/name").name == chosen


def test_several_quantisations_are_never_guessed_between() -> None:
    names = ["m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-F16.gguf"]
    with pytest.raises(UsageError, match=r"2 different models: m-Q4_K_M\.gguf, m-Q8_0-00001-of-00002\.gguf; pick"):
        choose(names, None, "org/name")
    assert choose(names, "m-Q4_K_M.gguf", "org/name").files == ("m-Q4_K_M.gguf",)


def test_metadata_in_the_words_of_a_config(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "lfm2moe",
        "lfm2moe.attention.head_count": 32,
        "lfm2moe.attention.head_count_kv": [0, 0, 8, 0, 8],
        "lfm2moe.feed_forward_length": [16, 32],
        "lfm2moe.expert_count": 8,
        "lfm2moe.vocab_size": 7,
        "lfm2moe.block_count": True,
        "lfm2moe.embedding_length": 2.5,
        "tokenizer.ggml.tokens": ["a", "bc", ""],
        "tokenizer.ggml.scores": [0.5] * 3000,
    }
    checkpoint = opened(write(tmp_path / "x.gguf", model({QUERY: floats(4, 4)}, metadata)))
    assert checkpoint.config == {
        "architectures": ["lfm2moe"],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_experts": 8,
        "vocab_size": 3,
    }
    assert opened(write(tmp_path / "x.gguf", model({QUERY: floats(4, 4)}, {}))).config == {}


def test_fused_tensors_are_contiguous_whatever_the_architecture(tmp_path: Path) -> None:
    """llama.cpp's converter has put BLOOM's and GPT-NeoX's queries, keys and values one after the other."""
    tensors = {"blk.0.attn_qkv.weight": floats(24, 8), "blk.0.attn_output.weight": floats(8, 8)}
    for name in ("bloom", "gptneox", "falcon"):
        metadata = {"general.architecture": name, f"{name}.attention.head_count": 2}
        parts = opened(write(tmp_path / "x.gguf", model(tensors, metadata))).matrices[:3]
        stored = parts[0].tensor.read(None)
        assert [part.module.role for part in parts] == ["q", "k", "v"]
        for part, rows in zip(parts, (stored[:8], stored[8:16], stored[16:]), strict=True):
            assert np.array_equal(part.load().numpy(), rows)


@pytest.mark.parametrize("kind", ["adapter", "imatrix"])
def test_files_that_hold_no_model(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "x.gguf", model({QUERY: floats(4, 4)}, {"general.type": kind}))
    with pytest.raises(SourceError, match=r"x\.gguf' is an (adapter in GGUF|importance matrix)"):
        open_checkpoint(path)


@pytest.mark.parametrize(("version", "alignment"), [(2, 32), (3, 8), (3, 4096)])
def test_versions_and_alignments(tmp_path: Path, version: int, alignment: int) -> None:
    tensors = {QUERY: floats(3, 5), "blk.0.attn_k.weight": floats(3, 5, seed=1)}
    path = write(tmp_path / "x.gguf", model(tensors, version=version, alignment=alignment))
    values = [m.tensor.read(None).tobytes() for m in opened(path).matrices]
    assert values == [data for _, _, data in tensors.values()]


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (struct.pack("<I", 1), "version 1, not supported: convert the original again"),
        (struct.pack(">I", 3), "big-endian GGUF file, not supported: gguf-convert-endian turns it round"),
        (struct.pack("<I", 4), "version 4; this specdiag reads versions 2 and 3"),
    ],
)
def test_versions_that_are_refused(tmp_path: Path, head: bytes, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(write(tmp_path / "x.gguf", b"GGUF" + head + bytes(100)))
