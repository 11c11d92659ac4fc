"""Adapters in folders beside models, torch files, state dicts and live models; fresh ones and bad values."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from adapter_files import ATTENTION, LORA, QUERY, assert_spectrum, lora, random, row, write
from models import write_checkpoint
from read_back import values

import specdiag
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import UsageError


def test_the_model_comes_before_an_adapter_beside_it(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {f"{QUERY}.weight": random(96, 64)})
    write(tmp_path, lora(QUERY, 96, 64), LORA)
    source = open_checkpoint(tmp_path).source
    assert (source.files, source.ignored) == (("model.safetensors",), ("adapter_model.safetensors",))
    picked = open_checkpoint(tmp_path, file="adapter_model.safetensors")
    assert row(picked, f"{QUERY}.weight").rank == 8
    assert row(open_checkpoint(tmp_path / "adapter_model.safetensors"), f"{QUERY}.weight").rank == 8


def test_torch_files_and_live_names(tmp_path: Path) -> None:
    """adapter_model.bin, and a state dict of a model that carries its adapter."""
    a, b, w = torch.randn(8, 64), torch.randn(96, 8), torch.randn(96, 64)
    name = f"base_model.model.{QUERY}"
    torch.save({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps(LORA))
    assert_spectrum(open_checkpoint(tmp_path), f"{QUERY}.weight", 2 * (b.double() @ a.double()).numpy())
    state = {
        f"{name}.base_layer.weight": w,
        f"{name}.lora_A.default.weight": a,
        f"{name}.lora_B.default.weight": b,
        "base_model.model.lm_head.original_module.weight": torch.randn(96, 64),
        "base_model.model.lm_head.modules_to_save.default.weight": torch.randn(96, 64),
        "base_model.model.model.norm.weight": torch.ones(64),
    }
    torch.save(state, tmp_path / "model.pt")
    live = open_checkpoint(tmp_path / "model.pt")
    assert [m.key for m in live.matrices] == [f"{QUERY}.weight", f"{QUERY}.weight[delta]", "lm_head.weight"]
    assert_spectrum(live, f"{QUERY}.weight[delta]", 2 * (b.double() @ a.double()).numpy())
    assert np.array_equal(values(live, f"{QUERY}.weight"), w.numpy())
    reasons = {s.name: s.reason for s in live.skipped}
    assert reasons["base_model.model.lm_head.original_module.weight"] == "replaced by modules_to_save"
    with pytest.raises(UsageError, match="holds the weights that its adapter changes: leave out base="):
        open_checkpoint(tmp_path / "model.pt", base=tmp_path)
    report = specdiag.analyze(state)
    assert report.summary.analysed_parameters == 2 * 96 * 64
    assert any("No scale" in note for note in report.provenance.notes)


class Adapted(torch.nn.Module):
    """The names and settings of a PeftModel with two adapters."""

    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.Module()
        layer.base_layer = torch.nn.Linear(64, 96, bias=False)
        layer.lora_A = torch.nn.ModuleDict({n: torch.nn.Linear(64, 4, bias=False) for n in ("one", "two")})
        layer.lora_B = torch.nn.ModuleDict({n: torch.nn.Linear(4, 96, bias=False) for n in ("one", "two")})
        self.q_proj = layer
        self.peft_config = {
            "one": SimpleNamespace(to_dict=lambda: LORA | {"r": 4, "lora_alpha": 8}),
            "two": SimpleNamespace(to_dict=lambda: LORA | {"r": 4, "lora_alpha": 4}),
        }


def test_a_live_model_knows_its_scales() -> None:
    from specdiag.checkpoint.memory import from_model

    live = Adapted()
    checkpoint = from_model(live)
    assert [m.key for m in checkpoint.matrices] == [
        "q_proj.weight", "q_proj.weight[delta=one]", "q_proj.weight[delta=two]",
    ]  # fmt: skip
    state = {name: value.double().numpy() for name, value in live.state_dict().items()}
    for name, scale in (("one", 2.0), ("two", 1.0)):
        product = scale * state[f"q_proj.lora_B.{name}.weight"] @ state[f"q_proj.lora_A.{name}.weight"]
        assert_spectrum(checkpoint, f"q_proj.weight[delta={name}]", product)
    with pytest.raises(UsageError, match="a model in memory holds its own weights"):
        specdiag.analyze(live, base="org/base")


def test_bad_values_and_fresh_adapters(tmp_path: Path) -> None:
    """PEFT starts with B = 0."""
    tensors = lora(QUERY, 96, 64) | lora(ATTENTION.format(0, "k"), 96, 64) | lora(ATTENTION.format(0, "v"), 96, 64)
    tensors[f"base_model.model.{QUERY}.lora_B.weight"][:] = 0
    tensors[f"base_model.model.{ATTENTION.format(0, 'k')}.lora_A.weight"][3, :2] = np.nan
    tensors[f"base_model.model.{ATTENTION.format(0, 'v')}.lora_B.weight"][0, 0] = np.inf
    report = specdiag.analyze(write(tmp_path, tensors, LORA))
    assert {record.role: (record.status, record.n_nonfinite) for record in report} == {
        "q": ("zero", 0), "k": ("nonfinite", 2), "v": ("nonfinite", 1),
    }  # fmt: skip


def test_fresh_adapters_of_embedding_and_head_are_not_tied(tmp_path: Path) -> None:
    tensors = lora("lm_head", 96, 64) | lora("model.embed_out", 96, 64, seed=5)
    for name in tensors:
        if "lora_B" in name:
            tensors[name][:] = 0
    report = specdiag.analyze(write(tmp_path, tensors, LORA))
    assert [record.status for record in report] == ["zero", "zero"]
