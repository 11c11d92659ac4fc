"""Reports, models in memory, open checkpoints and adapters can be audited; every tensor is read once."""

from __future__ import annotations

import sys
from types import ModuleType

import gguf_writer
import numpy as np
import pytest
import torch
from audited_models import found, llama, name, row, save, wide
from command import python
from models import PLACES
from safetensors.numpy import save_file
from saved_reports import made

import specdiag
from specdiag.auditing.thresholds import Check, Observation, default_checks
from specdiag.errors import SourceError, UsageError
from specdiag.report import load_report


def test_a_report_is_taken_as_it_is(tmp_path):
    report = specdiag.analyze(wide(), device="cpu")
    with pytest.raises(UsageError, match="a report is taken as it is: randomize needs the checkpoint itself"):
        specdiag.audit(report, randomize=True)
    report.save(tmp_path / "r.json")
    assert specdiag.audit(tmp_path / "r.json") == specdiag.audit(load_report(tmp_path / "r.json"))
    audit = specdiag.audit(report)
    assert audit.coverage.n_others is None
    assert "a report does not carry config.json" in audit.coverage.not_checked["layers"]


@pytest.mark.parametrize("as_model", [False, True])
def test_models_and_state_dicts_in_memory(as_model):
    layer = torch.nn.TransformerEncoderLayer(64, 4, 160)
    with torch.no_grad():
        layer.norm1.weight[3] = torch.nan
        layer.linear1.weight[5] = 0
    audit = specdiag.audit(layer if as_model else layer.state_dict(), device="cpu")
    assert found(audit) == {("nonfinite", "norm1.weight"), ("dead_rows", "linear1.weight")}
    assert audit.coverage.n_others == 8


def test_an_open_checkpoint_and_an_adapter(tmp_path):
    from specdiag.analysis.source import open_source

    folder = save(tmp_path / "model", llama(0))
    audit = specdiag.audit(open_source(folder), device="cpu")
    assert (audit.verdict, audit.coverage.n_others) == ("pass", None)
    rng = np.random.default_rng(0)
    lora = {f"base_model.model.{name(i, PLACES[0])[:-7]}.lora_{side}.weight": rng.standard_normal(shape).astype("f4")
            for i in range(2) for side, shape in (("A", (8, 64)), ("B", (64, 8)))}  # fmt: skip
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8, "lora_alpha": 16}')
    assert {f.check for f in specdiag.audit(tmp_path / "lora", device="cpu").findings} == {"adapter_random"}


def test_ten_thousand_tensors_are_read_once(monkeypatch):
    from collections import Counter

    from specdiag.checkpoint import torch_tensors

    reads: Counter[str] = Counter()
    genuine = torch_tensors._read

    def counting(key, *given):
        reads[key] += 1
        return genuine(key, *given)

    monkeypatch.setattr(torch_tensors, "_read", counting)
    torch.manual_seed(0)  # among so many small matrices some draw has a rank that audit reports
    state = {}
    for layer in range(1250):
        for place in PLACES:
            state[name(layer, place)] = torch.randn(3, 3)
        state[name(layer, "input_layernorm")] = torch.ones(3)
    state[name(777, "input_layernorm")][1] = torch.inf
    audit = specdiag.audit(state, device="cpu")
    assert found(audit) == {("nonfinite", name(777, "input_layernorm"))}
    assert audit.coverage.n_matrices + audit.coverage.n_others == 10_000
    assert set(reads) == set(state)
    assert max(reads.values()) == 1


def test_ten_thousand_matrices_of_a_report_take_less_than_a_second(tmp_path):
    records = [
        row(name(i, PLACES[i % 7]), ("q", "k", "v", "o", "gate", "up", "down")[i % 7], i, alpha=2.0, z=-30.0,
            mp_spikes=9, stable_rank=40.0, spectral_norm=5.0, frobenius_norm=40.0, matrix_rank=512, n_eigenvalues=512,
            digest=f"{i:064x}", n_dead_rows=int(i % 500 == 0))
        for i in range(10_000)
    ]  # fmt: skip
    path = tmp_path / "large.specdiag.json"
    made(records).save(path)
    code = (
        "import sys, time; start = time.process_time(); import specdiag\n"
        f"audit = specdiag.audit({str(path)!r}); seconds = time.process_time() - start\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'heavy imports'\n"
        "print(seconds, len(audit.findings))"
    )
    done = python(code)
    seconds, n = done.stdout.split()
    assert int(n) == 20
    assert float(seconds) < 3  # 0.6 on an idle machine; processor time doubles where another thread shares the core


def test_missing_files_are_source_errors(tmp_path):
    with pytest.raises(SourceError):
        specdiag.audit(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b'{"num_hidden_layers": 3,', b"[1]", b"\xff\xfe{", b"", b"null"])
def test_a_damaged_configuration_is_a_finding(tmp_path, content):
    folder = save(tmp_path / "m", llama())
    (folder / "config.json").write_bytes(content)
    audit = specdiag.audit(folder)
    assert found(audit) == {("config", None)}
    assert audit.verdict == "fail"
    assert audit.coverage.not_checked["layers"] == "config.json is damaged"
    assert audit.coverage.names_alone == "config.json is damaged"
    assert not any(reason.endswith("absent or empty") for reason in audit.coverage.not_checked.values())
    report = specdiag.analyze(folder).save(tmp_path / "report.json")
    assert found(specdiag.audit(report)) == {("config", None)}


@pytest.mark.parametrize("content", [None, b"{}"])
def test_a_configuration_that_says_nothing_is_a_warning(tmp_path, content):
    folder = save(tmp_path / "m", llama())
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    audit = specdiag.audit(folder)
    assert found(audit) == {("no_config", None)}
    assert audit.verdict == "warn"
    assert audit.coverage.not_checked["layers"] == "config.json is absent or empty"


def test_a_check_is_one_file_and_one_entry(monkeypatch):
    """A function of its own file, named by its entry, and the reason why it is not made, both without another line."""
    tiny = ModuleType("specdiag.auditing.tiny")
    tiny.smallest = lambda subject: [Observation("tiny", r.key, min(r.rows, r.cols)) for r in subject.report]
    tiny.not_checked = lambda subject: {} if len(subject.report) > 1 else {"tiny": "one matrix alone"}
    monkeypatch.setitem(sys.modules, "specdiag.auditing.tiny", tiny)
    entry = Check(id="tiny", by="tiny.smallest", severity="info", metric="m", threshold=9, fires="below", why="w", advice="a", origin="o")  # fmt: skip
    monkeypatch.setattr("specdiag.auditing.audit.load_checks", lambda _: {**default_checks(), "tiny": entry})
    state = {
        "layers.0.self_attn.q_proj.weight": torch.randn(8, 8),
        "layers.0.self_attn.k_proj.weight": torch.randn(9, 9),
    }
    assert ("tiny", "layers.0.self_attn.q_proj.weight") in found(specdiag.audit(state))
    assert ("tiny", "layers.0.self_attn.k_proj.weight") not in found(specdiag.audit(state))
    alone = specdiag.audit({name: w for name, w in state.items() if "q_proj" in name})
    assert alone.coverage.not_checked["tiny"] == "one matrix alone"
    assert "tiny" not in {check for check, _ in found(alone)}


def test_a_gguf_file_has_metadata_in_the_place_of_config_json(tmp_path):
    content = gguf_writer.model({gguf_writer.QUERY: gguf_writer.floats(64, 64)})
    audit = specdiag.audit(gguf_writer.write(tmp_path / "a.gguf", content), device="cpu")
    said = audit.coverage.not_checked
    assert said["n_experts"] == "the metadata of the GGUF file does not say it"
    assert not [check for check, reason in said.items() if "config.json" in reason]


@pytest.mark.parametrize(
    ("n_tokens", "width", "wrong"), [(96, 64, set()), (90, 64, {"vocabulary"}), (96, 32, {"hidden_size"})]
)
def test_the_embedding_of_a_gguf_file_is_held_against_its_metadata(n_tokens, width, wrong, tmp_path):
    tensors = {"token_embd.weight": gguf_writer.floats(96, 64), gguf_writer.QUERY: gguf_writer.floats(64, 64)}
    sizes = {"llama.vocab_size": n_tokens, "llama.embedding_length": width, "llama.block_count": 1}
    stated = {"general.architecture": "llama", **sizes}
    path = gguf_writer.write(tmp_path / "a.gguf", gguf_writer.model(tensors, stated))
    assert {check for check, _ in found(specdiag.audit(path, device="cpu"))} & {"vocabulary", "hidden_size"} == wrong
