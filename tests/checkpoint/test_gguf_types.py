"""Every type that GGUF files hold, decoded or named."""

from __future__ import annotations

import math
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from command import python
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf_writer import CODES, PLAIN, QUERY, decoded, floats, model, opened, quantised, random_codes, write

from specdiag.checkpoint.gguf import file as gguf_file
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import MissingExtraError


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
        done = python(code, path)
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
