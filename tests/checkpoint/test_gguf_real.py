"""The real SmolLM2 in GGUF against the gguf package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf_writer import opened
from helpers import esd, naive_hill

import specdiag
from specdiag.checkpoint.reader import open_checkpoint

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2(asset: Callable[[str], Path]) -> Path:
    """A Llama decoder of 30 layers in Q4_1 with its embedding in Q8_0."""
    return asset("smollm2-gguf") / SMOLLM2


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
        "rope_theta": 100000.0,
        "rotary_dim": 64,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    }


def test_smollm2_against_the_gguf_package(smollm2: Path) -> None:
    """Another reader, another decomposition, another estimator."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
    names = [f"blk.7.{module}.weight" for module in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_down")]
    report = specdiag.analyze(smollm2, include=names, dtype="float64")
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
