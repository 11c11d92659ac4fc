"""GGUF: the real SmolLM2 against the gguf package, every type that it decodes, and headers that lie."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from helpers import esd, naive_hill
from hypothesis import given, settings
from hypothesis import strategies as st

import specdiag
from specdiag.checkpoint.choice import choose
from specdiag.checkpoint.gguf import file as gguf_file
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import MissingExtraError, SourceError, SpecdiagError, UsageError

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
QUERY = "blk.0.attn_q.weight"
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


@pytest.fixture(scope="session")
def smollm2(asset: Callable[[str], Path]) -> Path:
    """A Llama decoder of 30 layers in Q4_1 with its embedding in Q8_0."""
    return asset("smollm2-gguf") / SMOLLM2


# ------------------------------------------------------------------ files, written by hand


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def value(content: Any) -> bytes:
    """Type and content of a value of the metadata."""
    if isinstance(content, str):
        return struct.pack("<I", STRING) + text(content)
    if isinstance(content, list):
        inner, *_ = [value(item) for item in content] or [struct.pack("<I", U32)]
        data = b"".join(value(item)[4:] for item in content)
        return struct.pack("<I", ARRAY) + inner[:4] + struct.pack("<Q", len(content)) + data
    if isinstance(content, bool):
        return struct.pack("<I?", BOOL, content)
    return struct.pack("<If", F32, content) if isinstance(content, float) else struct.pack("<II", U32, content)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


def header(values: dict[str, bytes], entries: list[bytes], version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(entries), len(values))
    head += b"".join(text(key) + content for key, content in values.items()) + b"".join(entries)
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0")


def model(
    tensors: dict[str, tuple[tuple[int, ...], int, bytes]],
    metadata: dict[str, Any] | None = None,
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file of tensors by name: shape as numpy has it, ggml's number of the type, bytes."""
    values = {"general.architecture": "llama"} if metadata is None else metadata
    values = values if alignment == 32 else {**values, "general.alignment": alignment}
    entries, data = [], b""
    for name, (shape, kind, content) in tensors.items():
        entries.append(entry(name, shape, kind, len(data)))
        data += content.ljust(-(-len(content) // alignment) * alignment, b"\0")
    return header({key: value(content) for key, content in values.items()}, entries, version, alignment) + data


def floats(*shape: int, seed: int = 0) -> tuple[tuple[int, ...], int, bytes]:
    return shape, 0, np.random.default_rng(seed).standard_normal(shape).astype("<f4").tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def decoded(kind: GGMLQuantizationType, codes: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(codes, kind)


def can_decode(kind: GGMLQuantizationType) -> bool:
    try:
        decoded(kind, np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8))
    except NotImplementedError:
        return False
    return True


PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
CODES = [kind for kind in GGMLQuantizationType if kind not in PLAIN and can_decode(kind)]


def random_codes(kind: GGMLQuantizationType, n_blocks: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes [n_blocks, bytes] whose values are all finite."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8 * n_blocks, GGML_QUANT_SIZES[kind][1]), np.uint8)
    finite = np.isfinite(decoded(kind, blocks)).all(1)
    return blocks[finite][:n_blocks]


def opened(path: Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    names = {matrix.name for matrix in checkpoint.matrices} | {skipped.name for skipped in checkpoint.skipped}
    assert len(names) == checkpoint.n_tensors
    return checkpoint


# ------------------------------------------------------------------ the real file


def test_what_smollm2_stores(smollm2: Path) -> None:
    checkpoint = opened(smollm2)
    assert (checkpoint.n_tensors, checkpoint.n_parameters, checkpoint.architecture) == (272, 134_515_008, "llama")
    assert Counter(m.storage_dtype for m in checkpoint.matrices) == {"Q4_1": 210, "Q8_0": 1}
    assert Counter((s.dtype, s.reason) for s in checkpoint.skipped) == {("F32", "1-D: bias, norm or vector"): 61}
    blocks = Counter((m.module.family, m.shape) for m in checkpoint.matrices if m.module.layer is not None)
    assert blocks == {
        ("attention", (576, 576)): 60,
        ("attention", (192, 576)): 60,
        ("mlp", (1536, 576)): 60,
        ("mlp", (576, 1536)): 30,
    }
    layers = Counter((m.module.role, m.module.layer) for m in checkpoint.matrices)
    assert layers == {(role, i): 1 for role in ("q", "k", "v", "o", "gate", "up", "down") for i in range(30)} | {
        ("embed", None): 1
    }
    assert all(m.dequantized for m in checkpoint.matrices)
    assert checkpoint.notes == ("Dequantised 210 tensors from Q4_1 and 1 from Q8_0.",)
    assert checkpoint.config == {
        "architectures": ["llama"],
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }


def test_smollm2_against_the_gguf_package(smollm2: Path) -> None:
    """Another reader, another decomposition, another estimator."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
    names = [f"blk.7.{module}.weight" for module in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down")]
    report = specdiag.analyze(smollm2, include=names)
    assert [record.status for record in report.records] == ["ok"] * 5
    for name in names:
        weight = gguf.dequantize(stored[name].data, stored[name].tensor_type)
        assert (report[name].rows, report[name].cols) == weight.shape
        assert report[name].dequantized
        assert report[name].alpha == pytest.approx(naive_hill(esd(weight)), rel=1e-9)
    sizes = {tensor.name: tensor.n_bytes for tensor in stored.values()}
    assert all(m.tensor.nbytes == sizes[m.name] for m in open_checkpoint(smollm2).matrices)


def test_smollm2_from_the_command_line(smollm2: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "specdiag",
        "analyze",
        smollm2,
        "-f",
        "json",
        "--no-spectra",
        "--include",
        "blk.3.*",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)["records"]
    assert [(record["status"], record["dequantized"]) for record in records] == [("ok", True)] * 7
    assert "note: Dequantised 210 tensors from Q4_1 and 1 from Q8_0." in done.stderr


# ------------------------------------------------------------------ types


@pytest.mark.parametrize("kind", CODES, ids=lambda kind: kind.name)
def test_every_type_of_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: GGMLQuantizationType) -> None:
    block, nbytes = GGML_QUANT_SIZES[kind]
    cols, per_row = 2 * math.lcm(block, 64), 2 * math.lcm(block, 64) // block
    codes = random_codes(kind, 12 * per_row)
    assert len(codes) == 12 * per_row
    expected = decoded(kind, codes.reshape(12, per_row * nbytes))
    tensors = {
        QUERY: ((12, cols), int(kind), codes.tobytes()),
        "blk.0.ffn_up_exps.weight": ((3, 4, cols), int(kind), codes.tobytes()),
        "blk.0.attn_norm.weight": floats(8),
    }
    path = write(tmp_path / "x.gguf", model(tensors))
    matrix, *experts = opened(path).matrices
    assert (matrix.storage_dtype, matrix.tensor.nbytes) == (kind.name, codes.size)
    assert matrix.dequantized
    assert (matrix.tensor.values_dtype, matrix.module.role) == ("F32", "q")
    monkeypatch.setattr(gguf_file, "_VALUES_AT_ONCE", 3 * cols + 1)
    assert np.array_equal(matrix.tensor.read(None), expected)
    assert np.array_equal(matrix.tensor.read(11), expected[11])
    assert [m.module.part for m in experts] == ["expert=0", "expert=1", "expert=2"]
    assert np.array_equal(experts[2].tensor.read(2), expected[8:])
    assert np.array_equal(experts[1].load().numpy(), expected[4:8])
    assert 0 < matrix.float_type(expected[None]).eps < 0.4


def test_rounding_of_codes_is_about_what_it_was(tmp_path: Path) -> None:
    """Where the gguf package can encode, the error that the codes claim is the error that they have."""
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    for kind in (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")):
        codes = gguf.quantize(weight, kind)
        path = write(tmp_path / "x.gguf", model({QUERY: (weight.shape, int(kind), codes.tobytes())}))
        tensor = opened(path).matrices[0].tensor
        values = tensor.read(None)
        error = np.linalg.norm(values - weight) / np.linalg.norm(weight)
        assert tensor.rounding is not None
        assert tensor.rounding.error(values) == pytest.approx(error, rel=0.3)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_float_types(tmp_path: Path, dtype: str) -> None:
    number = {name: number for number, name in PLAIN.items()}[dtype]
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
    raw = np.random.default_rng(0).integers(0, 30_000, (6, 4)).astype(types[dtype])
    matrix = opened(write(tmp_path / "x.gguf", model({QUERY: ((6, 4), number, raw.tobytes())}))).matrices[0]
    assert (matrix.storage_dtype, matrix.tensor.values_dtype, matrix.tensor.nbytes) == (dtype, dtype, raw.nbytes)
    assert not matrix.dequantized
    assert np.array_equal(matrix.tensor.read(None), raw)
    assert np.array_equal(matrix.tensor.read(5), raw[5])


def test_integers_are_buffers(tmp_path: Path) -> None:
    ids = np.arange(12, dtype="<i4").reshape(3, 4)
    tensors = {"blk.0.ids": ((3, 4), 26, ids.tobytes()), QUERY: floats(4, 4)}
    checkpoint = opened(write(tmp_path / "x.gguf", model(tensors)))
    assert [(s.name, s.dtype, s.reason) for s in checkpoint.skipped] == [("blk.0.ids", "I32", "integer buffer")]


def test_types_that_nobody_decodes_are_named(tmp_path: Path) -> None:
    q8_k = GGML_QUANT_SIZES[GGMLQuantizationType.Q8_K][1]
    tensors = {
        "blk.0.attn_q.weight": ((2, 256), int(GGMLQuantizationType.Q8_K), bytes(2 * q8_k)),
        "blk.0.attn_k.weight": ((2, 256), 99, bytes(100)),
        "blk.0.attn_v.weight": floats(4, 4),
    }
    checkpoint = opened(write(tmp_path / "x.gguf", model(tensors)))
    assert [matrix.module.role for matrix in checkpoint.matrices] == ["v"]
    assert {s.name: (s.dtype, s.reason) for s in checkpoint.skipped} == {
        "blk.0.attn_q.weight": ("Q8_K", "quantised weights (Q8_K) that the gguf package cannot decode"),
        "blk.0.attn_k.weight": ("type 99", "quantised weights (type 99) that the gguf package cannot decode"),
    }
    assert checkpoint.notes == ()


def test_scales_beside_the_codes(tmp_path: Path) -> None:
    """NVFP4 and BitNet keep one factor a tensor, or one an expert, in a tensor of its own."""
    kind = GGMLQuantizationType.Q8_0
    codes = random_codes(kind, 6)
    plain = decoded(kind, codes)
    factors = np.array([2, 3, 5], "<f4")
    tensors = {
        QUERY: ((6, 32), int(kind), codes.tobytes()),
        "blk.0.attn_q.scale": ((1,), 0, factors[2:].tobytes()),
        "blk.0.ffn_up_exps.weight": ((3, 2, 32), int(kind), codes.tobytes()),
        "blk.0.ffn_up_exps.scale": ((3,), 0, factors.tobytes()),
        "blk.0.attn_k.scale": ((1,), 0, factors[:1].tobytes()),
        "blk.0.attn_k.weight": floats(4, 4),
    }
    checkpoint = opened(write(tmp_path / "x.gguf", model(tensors)))
    query, *experts = checkpoint.matrices[:4]
    assert np.array_equal(query.tensor.read(None), 5 * plain)
    assert np.array_equal(query.tensor.read(1), 5 * plain[1])
    assert np.array_equal(experts[1].tensor.read(1), 3 * plain[2:4])
    assert np.array_equal(experts[0].tensor.read(None), plain.reshape(3, 2, 32) * factors.reshape(3, 1, 1))
    assert {s.name: s.reason for s in checkpoint.skipped} == {
        "blk.0.attn_q.scale": "scale of a quantised tensor",
        "blk.0.ffn_up_exps.scale": "scale of a quantised tensor",
        "blk.0.attn_k.scale": "1-D: bias, norm or vector",
    }


def quantised(*shape: int) -> tuple[tuple[int, ...], int, bytes]:
    kind = GGMLQuantizationType.Q4_0
    return shape, int(kind), random_codes(kind, math.prod(shape) // 32).tobytes()


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gguf", "gguf.constants", "gguf.quants"):
        monkeypatch.setitem(sys.modules, module, None)
    path = write(tmp_path / "float.gguf", model({QUERY: floats(4, 4)}))
    assert opened(path).matrices[0].tensor.read(None).shape == (4, 4)
    path = write(tmp_path / "codes.gguf", model({QUERY: quantised(4, 32)}))
    with pytest.raises(MissingExtraError, match=r"codes.gguf' holds quantised weights.*pip install 'gguf>=0\.18'"):
        open_checkpoint(path)


def test_what_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from specdiag.checkpoint.reader import open_checkpoint\n"
        "for matrix in open_checkpoint(sys.argv[1]).matrices: matrix.tensor.read(None)\n"
        "print([name for name in ('torch', 'gguf') if name in sys.modules])"
    )
    for tensor, expected in ((floats(4, 4), "[]"), (quantised(4, 32), "['gguf']")):
        path = write(tmp_path / "x.gguf", model({QUERY: tensor}))
        done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True)
        assert done.stdout.strip() == expected


def test_memory_stays_at_the_result(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", model({QUERY: quantised(1024, 1024)}))
    matrix = open_checkpoint(path).matrices[0]
    tracemalloc.start()
    try:
        assert matrix.tensor.read(None).nbytes == 4 << 20
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------ which file, and what it says of itself


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
        "Left out mmproj-F16.gguf, a multimodal projector beside the model: analyse one with --file.",
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


# ------------------------------------------------------------------ damaged and malicious

GOOD = model(
    {QUERY: quantised(4, 32), "blk.0.attn_norm.weight": floats(8), "blk.0.attn_k.weight": floats(8, 4)},
    {"general.architecture": "llama", "llama.attention.head_count": [2, 2], "tokenizer.ggml.tokens": ["a", "b", "c"]},
)


def one(shape: tuple[int, ...] = (2,), kind: int = 0, offset: int = 0, data: int = 64) -> bytes:
    return header({}, [entry("a", shape, kind, offset)]) + bytes(data)


def array(inner: int, length: int, data: bytes = b"") -> bytes:
    return header({"a": struct.pack("<IIQ", ARRAY, inner, length) + data}, []) + bytes(64)


BROKEN = {
    "mark alone": (b"GGUF", "the version would reach beyond byte 4"),
    "truncated header": (GOOD[:120], "would reach beyond byte 120"),
    "truncated data": (GOOD[: -(8 * 4 * 4) - 1], "begins beyond the end|takes 128 bytes where"),
    "truncated last tensor": (GOOD[:-1], "takes 128 bytes where 127 are left"),
    "lying number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, 50_000, 0), "50000 tensors and 0 values"),
    "huge number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "tensors and 0 values"),
    "huge number of values": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "0 tensors and"),
    "key longer than the file": (header({}, [])[:16] + struct.pack("<QQ", 1, 2**62) + bytes(64), "a key of the"),
    "name that is not UTF-8": (header({}, [text(b"\xff") + struct.pack("<IIQ", 0, 0, 0)]) + bytes(9), "not UTF-8"),
    "string longer than the file": (header({"a": struct.pack("<IQ", STRING, 2**40)}, []), "the value of 'a'"),
    "unknown type of value": (header({"a": struct.pack("<IQ", 13, 0)}, []), "of the unknown type 13"),
    "array longer than the file": (array(U64, 2**61), "the value of 'a' would reach beyond"),
    "array of more strings than the file holds": (array(STRING, 2**61), "the value of 'a' would reach beyond"),
    "array of a string that is too long": (array(STRING, 1, struct.pack("<Q", 2**61)), "the value of 'a' would"),
    "array of arrays": (array(ARRAY, 1), "'a' is an array of arrays"),
    "array of an unknown type": (array(77, 1), "'a' is an array of the unknown type 77"),
    "key that comes twice": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + value(1)),
        "names 'a' twice",
    ),
    "name that comes twice": (header({}, 2 * [entry("a", (2,), 0, 0)]) + bytes(64), "names 'a' twice"),
    "too many axes": (one((1, 1, 1, 1, 1)), "'a' has 5 axes"),
    "axes that the file cannot hold": (header({}, [text("a") + struct.pack("<IQQ", 2**31, 0, 0)]), "axes"),
    "huge product": (one((2**62, 2**62)), "takes .* bytes where 64 are left"),
    "product that overflows to 4": (one((2**62, 4, 1)), "takes .* bytes where 64 are left"),
    "offset beyond the file": (one(offset=2**40), "'a' begins beyond the end of the file"),
    "offset that overflows": (one(offset=2**64 - 32), "'a' begins beyond the end of the file"),
    "unaligned offset": (one(offset=4), "'a' begins at 4, no multiple of 32"),
    "overlap": (
        header({}, [entry("a", (16,), 0, 0), entry("b", (4,), 0, 32)]) + bytes(64),
        "'a' takes 64 bytes where 32 are left",
    ),
    "rows that end within a block": (one((2, 16), 2), "rows of 16 values, which Q4_0 cannot hold"),
    "alignment of 0": (header({"general.alignment": value(0)}, []), "an alignment of 0"),
    "alignment of 48": (header({"general.alignment": value(48)}, []), "an alignment of 48"),
    "alignment that is a word": (header({"general.alignment": value("a")}, []), "an alignment of 'a'"),
    "huge alignment": (
        header({"general.alignment": struct.pack("<IQ", U64, 2**63)}, [entry("a", (2,), 0, 0)]) + bytes(64),
        "takes 8 bytes where 0 are left",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, case: str) -> None:
    content, problem = BROKEN[case]
    path = write(tmp_path / "model.gguf", content)
    with pytest.raises(SourceError, match=rf"model\.gguf' is not a readable GGUF file \(.*({problem})") as raised:
        open_checkpoint(path)
    assert str(raised.value).endswith("): truncated or damaged, fetch it again")


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", GOOD)
    matrices = open_checkpoint(path).matrices
    os.truncate(path, len(GOOD) - 300)
    for matrix in matrices:
        with pytest.raises(SourceError, match=r"ends before byte .* cut short or replaced meanwhile"):
            matrix.tensor.read(None)


def survives(content: bytes) -> None:
    """Opening and reading gives a checkpoint or a SpecdiagError of one sentence, and allocates little."""
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        tracemalloc.start()
        try:
            message = read_all(Path(file.name))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert "\n" not in message
    assert peak < 5_000_000


def read_all(path: Path) -> str:
    try:
        for matrix in open_checkpoint(path).matrices:
            matrix.tensor.read(None)
            matrix.tensor.read(0)
    except SpecdiagError as error:
        return str(error)
    return ""


sizes = st.one_of(st.integers(0, 300), st.sampled_from([2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
small = st.integers(0, 50)
names = st.one_of(
    st.sampled_from(["general.architecture", "general.alignment", "a", QUERY, ""]).map(text),
    st.tuples(sizes, st.binary(max_size=8)).map(lambda pair: struct.pack("<Q", pair[0]) + pair[1]),
)
values = st.one_of(
    st.sampled_from([1, 8, 32, 2.5, True, "llama", [1, 2], ["a", "b"], []]).map(value),
    st.tuples(small, st.binary(max_size=24)).map(lambda pair: struct.pack("<I", pair[0]) + pair[1]),
    st.tuples(small, sizes, st.binary(max_size=24)).map(lambda it: struct.pack("<IIQ", ARRAY, *it[:2]) + it[2]),
)
entries = st.tuples(names, st.lists(sizes, max_size=5), small, sizes).map(
    lambda it: it[0] + struct.pack(f"<I{len(it[1])}QIQ", len(it[1]), *it[1], *it[2:])
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(names, values), max_size=3), st.lists(entries, max_size=3), st.binary(max_size=400), st.data()
)
def test_made_up_headers(
    pairs: list[tuple[bytes, bytes]], infos: list[bytes], tail: bytes, data: st.DataObject
) -> None:
    counts = data.draw(st.one_of(st.just((len(infos), len(pairs))), st.tuples(sizes, sizes)))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join(key + content for key, content in pairs)
    survives(head + b"".join(infos) + tail)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_flipped_bytes(data: st.DataObject) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(content[: data.draw(st.integers(len(content) - 40, len(content)))]))
