"""Every weight file of a repository is looked into: twins by value, variants, module folders, stray shards."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import LORA, QUERY, lora, write
from audited_models import CONFIG, found, llama, name
from command import execute
from hub_stand_in import HubStandIn, Repo
from models import EMBED, HEAD, PLACES, tensors, write_checkpoint
from safetensors.torch import save_file

import specdiag
from specdiag.auditing.other_files import read_other_files
from specdiag.auditing.thresholds import default_checks
from specdiag.checkpoint.reader import open_checkpoint

CHECKS = ("nonfinite", "saturated", "zero", "damaged_file", "twin", "variant", "not_audited")
UP, GAIN = name(1, PLACES[5]), "model.norm.weight"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return tensors(llama(3, layers=2))


@pytest.fixture
def folder(tmp_path, state) -> Path:
    return write_checkpoint(tmp_path / "model", state, CONFIG | {"num_hidden_layers": 2})


def seen(folder: Path, **options) -> set[tuple[str, str | None]]:
    return {pair for pair in found(specdiag.audit(folder, device="cpu", **options)) if pair[0] in CHECKS}


def with_nan(state: dict[str, torch.Tensor], key: str) -> dict[str, torch.Tensor]:
    changed = {k: v.clone() for k, v in state.items()}
    changed[key].view(-1)[3] = torch.nan
    return changed


def torch_save(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    torch.save(state, path)


def safe_save(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    keys = sorted(state)
    files = {"pytorch_model-00001-of-00002.bin": keys[::2], "pytorch_model-00002-of-00002.bin": keys[1::2]}
    for file, names in files.items():
        torch_save(folder / file, {key: state[key] for key in names})
    places = {key: file for file, names in files.items() for key in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("key", [UP, GAIN])
@pytest.mark.parametrize(
    ("put", "file"),
    [
        (lambda f, s: torch_save(f / "pytorch_model.bin", s), "pytorch_model.bin"),
        (shards, None),
        (lambda f, s: safe_save(f / "model-00001-of-00001.safetensors", s), "model-00001-of-00001.safetensors"),
        (lambda f, s: safe_save(f / "model.fp16.safetensors", {k: v.half() for k, v in s.items()}), "model.fp16.safetensors"),
        (lambda f, s: torch_save(f / "pytorch_model.bf16.bin", {k: v.bfloat16() for k, v in s.items()}), "pytorch_model.bf16.bin"),
        (lambda f, s: safe_save(f / "model.non_ema.safetensors", s), "model.non_ema.safetensors"),
        (lambda f, s: torch_save(f / "original" / "consolidated.00.pth", s), "original/consolidated.00.pth"),
        (lambda f, s: safe_save(f / "text" / "deep" / "model.safetensors", s), "text/deep/model.safetensors"),
    ],
    ids=["twin", "sharded twin", "other shards", "fp16", "bf16", "non_ema", "original", "deep"],
)  # fmt: skip
def test_nan_in_any_other_file(folder, state, put: Callable, file, key):
    put(folder, state)
    assert not seen(folder)
    put(folder, with_nan(state, key))
    hits = {module for check, module in seen(folder) if check == "nonfinite"}
    (hit,) = hits
    assert hit.endswith(f": {key}")
    assert file is None or hit == f"{file}: {key}"


def test_modules_of_a_sentence_encoder(folder):
    dense = torch.randn(64, 64)
    dense[1, 1] = torch.inf
    safe_save(
        folder / "2_Dense" / "model.safetensors", {"linear.weight": dense, "linear.bias": torch.full((64,), torch.nan)}
    )
    safe_save(
        folder / "3_Dense" / "model.safetensors", {"linear.weight": torch.zeros(64, 64), "linear.bias": torch.zeros(64)}
    )
    torch_save(
        folder / "4_Dense" / "pytorch_model.bin",
        {"linear.weight": torch.full((64, 64), torch.finfo(torch.half).max).half()},
    )
    assert seen(folder) == {
        ("nonfinite", "2_Dense/model.safetensors: linear.weight"), ("nonfinite", "2_Dense/model.safetensors: linear.bias"),
        ("zero", "3_Dense/model.safetensors: linear.weight"), ("saturated", "4_Dense/pytorch_model.bin: linear.weight"),
    }  # fmt: skip
    one = specdiag.audit(folder, file="model.safetensors", device="cpu")
    assert {pair for pair in found(one) if pair[0] in CHECKS} == {
        ("not_audited", f"{i}_Dense/{file}") for i, file in ((2, "model.safetensors"), (3, "model.safetensors"), (4, "pytorch_model.bin"))
    }  # fmt: skip
    assert {f.severity for f in one.findings if f.check == "not_audited"} == {"info"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_twins_are_compared_by_value(folder, state, dtype):
    twin = {k: v.to(dtype) for k, v in state.items()}
    torch_save(folder / "pytorch_model.bin", twin)
    assert not seen(folder)
    twin[UP][2, 5] *= 1.05
    twin[GAIN][0] = 3
    torch_save(folder / "pytorch_model.bin", twin)
    audit = specdiag.audit(folder, device="cpu")
    assert {(f.check, f.module) for f in audit.findings if f.check in CHECKS} == {
        ("twin", f"pytorch_model.bin: {UP}"), ("twin", f"pytorch_model.bin: {GAIN}")
    }  # fmt: skip
    (gain,) = [f for f in audit.findings if f.module == f"pytorch_model.bin: {GAIN}"]
    assert (gain.severity, str(gain.value)[:27]) == ("fail", "1 of 64 values differ, by 0")
    assert audit.coverage.files == {"pytorch_model.bin": "values, compared with the model"}


def test_names_and_shapes_of_twins(folder, state):
    """Buffers, a tied head and a prefix are no differences; a missing or reshaped tensor is one."""
    harmless = {f"transformer.{k}": v for k, v in state.items()} | {
        "transformer.position_ids": torch.arange(64),
        "transformer.model.layers.0.self_attn.rotary_emb.inv_freq": 10000 ** -(torch.arange(0, 16, 2) / 16),
    }
    torch_save(folder / "pytorch_model.bin", harmless)
    assert not seen(folder)
    tied = {**state, HEAD: state[EMBED].clone()}
    write_checkpoint(folder, {k: v for k, v in tied.items() if k != HEAD}, None)
    torch_save(folder / "pytorch_model.bin", tied)
    assert not seen(folder)
    other = {k: v for k, v in tied.items() if k != UP} | {HEAD: state[HEAD], GAIN: torch.ones(65)}
    torch_save(folder / "pytorch_model.bin", other)
    assert seen(folder) == {("twin", f"pytorch_model.bin: {key}") for key in (UP, HEAD, GAIN)}
    torch_save(folder / "pytorch_model.bin", {f"x{i}.weight": v for i, v in enumerate(state.values())})
    assert seen(folder) == {("twin", "pytorch_model.bin")}


def test_variants_of_other_values(folder, state):
    """A precision that differs is a warning, an average of its own is none."""
    changed = {k: v * 1.5 for k, v in state.items()}
    safe_save(folder / "model.non_ema.safetensors", changed)
    safe_save(folder / "model.fp16.safetensors", {k: v.half() for k, v in changed.items()})
    audit = specdiag.audit(folder, device="cpu")
    hits = [f for f in audit.findings if f.check in CHECKS]
    assert {f.check for f in hits} == {"variant"}
    assert {f.severity for f in hits} == {"warn"}
    assert len(hits) == len(state)
    off = {"variant": {"enabled": False}}
    assert not seen(folder, thresholds=off)


def test_damaged_and_foreign_files(folder, state):
    (folder / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.bin").write_bytes(np.arange(999, dtype="f4").tobytes())
    safe_save(folder / "2_Dense" / "model.safetensors", {"linear.weight": torch.ones(8, 8)})
    cut = (folder / "2_Dense" / "model.safetensors").read_bytes()[:-40]
    (folder / "2_Dense" / "model.safetensors").write_bytes(cut)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more")
    (folder / "model.fp16.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    safe_save(folder / "checkpoint-500" / "model.safetensors", with_nan(state, UP))
    assert seen(folder) == {
        ("not_audited", "tf_model.h5"), ("not_audited", "openvino/openvino_model.bin"),
        ("not_audited", "model.fp16.safetensors"), ("not_audited", "checkpoint-500/model.safetensors"),
        ("damaged_file", "2_Dense/model.safetensors"), ("damaged_file", "pytorch_model.bin"),
    }  # fmt: skip


def test_folders_too_deep_and_links_that_circle(folder, state):
    safe_save(folder / "a" / "b" / "c" / "d" / "model.safetensors", state)
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "model.safetensors").write_bytes(b"nothing")
    assert seen(folder) == {("not_audited", "a/b/c/d")}


def test_a_folder_that_cannot_be_listed_is_said_to_be_one(folder, monkeypatch):
    genuine = os.walk

    def walk(root, onerror):
        onerror(PermissionError(13, "Permission denied", str(Path(root) / "secret")))
        yield from genuine(root)

    monkeypatch.setattr("specdiag.checkpoint.other_files.os.walk", walk)
    (finding,) = [f for f in specdiag.audit(folder, device="cpu").findings if f.check == "not_audited"]
    assert (finding.module, finding.value) == ("secret", "it cannot be listed: Permission denied")


def test_a_shard_that_the_index_does_not_name(tmp_path, state):
    keys = sorted(state)
    parts = {f"model-0000{i + 1}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for file, names in parts.items():
        safe_save(tmp_path / file, {key: with_nan(state, keys[1])[key] for key in names})
    first = next(iter(parts))
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(parts[first], first)})
    )
    hits = found(specdiag.audit(tmp_path, device="cpu"))
    assert ("nonfinite", f"model-00002-of-00002.safetensors: {keys[1]}") in hits
    assert ("index_part", "model-00002-of-00002.safetensors") in hits


def test_an_adapter_beside_its_model_and_twins_of_adapters(tmp_path, folder):
    factors = lora(QUERY, 64, 64)
    fresh = {key: value * (0 if "lora_B" in key else 1) for key, value in factors.items()}
    write(folder, fresh, LORA)
    assert not seen(folder)
    adapter = write(tmp_path / "adapter", factors, LORA)
    torch_save(adapter / "adapter_model.bin", tensors(factors))
    assert not seen(adapter)
    torch_save(adapter / "adapter_model.bin", tensors({k: v * np.float32(2) for k, v in factors.items()}))
    assert {check for check, _ in seen(adapter)} == {"twin"}


def test_pipelines_have_a_twin_in_each_folder(tmp_path, state):
    (tmp_path / "model_index.json").write_text(json.dumps(
        {"_class_name": "Pipe", "unet": ["diffusers", "UNet"], "text_encoder": ["transformers", "CLIPTextModel"]}
    ))  # fmt: skip
    for part in ("unet", "text_encoder"):
        safe_save(tmp_path / part / "diffusion_pytorch_model.safetensors", state)
        torch_save(tmp_path / part / "diffusion_pytorch_model.bin", state)
    assert not seen(tmp_path)
    torch_save(
        tmp_path / "unet" / "diffusion_pytorch_model.bin", {k: v + 1 if k == UP else v for k, v in state.items()}
    )
    assert seen(tmp_path) == {("twin", f"unet/diffusion_pytorch_model.bin: {UP}")}


def test_reports_say_what_they_do_not_hold(folder, state):
    torch_save(folder / "pytorch_model.bin", state)
    report = specdiag.analyze(folder, device="cpu")
    audit = specdiag.audit(report)
    assert ("not_audited", "pytorch_model.bin") in found(audit)
    assert "twin" in audit.coverage.not_checked
    assert not {pair for pair in found(specdiag.audit(state, device="cpu")) if pair[0] in CHECKS}


def test_one_tensor_at_a_time(tmp_path):
    """Twins of 64 MB each: at no time lies more than a pair of tensors of 8 MB in memory, and the block being compared."""
    big = {name(i, PLACES[0]): torch.randn(1024, 1024, dtype=torch.float64) for i in range(8)}
    safe_save(tmp_path / "model.safetensors", big)
    safe_save(tmp_path / "model-00001-of-00001.safetensors", big)
    checkpoint = open_checkpoint(tmp_path)
    tracemalloc.start()
    observations, files, _ = read_other_files(checkpoint, default_checks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (observations, list(files.values())) == ((), ["values, compared with the model"])
    assert peak < 48e6


@pytest.mark.parametrize("stream", [False, True])
def test_a_repository_on_the_hub(tmp_path, folder, state, stream):
    safe_save(folder / "model.fp16.safetensors", {k: v.half() for k, v in with_nan(state, UP).items()})
    torch_save(folder / "pytorch_model.bin", state)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with HubStandIn({"org/model": Repo(files)}) as hub:
        more = ["--stream"] if stream else []
        done = execute(
            "audit", "org/model", "-f", "json", "--device", "cpu", *more, env=hub.environment(tmp_path / "home")
        )
    assert done.returncode == 1, done.stderr
    hits = {(f["check"], f.get("module")) for f in json.loads(done.stdout)["findings"] if f["check"] in CHECKS}
    bad = {("nonfinite", f"model.fp16.safetensors: {UP}"), ("variant", f"model.fp16.safetensors: {UP}")}
    assert hits == bad | ({("not_audited", "pytorch_model.bin")} if stream else set())
