"""Folders that `from_pretrained` refuses, or reads nothing of: transformers itself says which, and the audit agrees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from audited_models import CONFIG, HIDDEN, WIDTH, found, llama
from models import EMBED, QUERY, tensors, write_checkpoint
from safetensors import SafetensorError

import specdiag

TWO = CONFIG | {"num_hidden_layers": 2, "intermediate_size": HIDDEN, "rope_scaling": None}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    gains = {f"model.layers.{i}.post_attention_layernorm.weight": np.ones(WIDTH, "f4") for i in range(2)}
    return tensors(llama(5, layers=2) | gains)


def plain(folder: Path, state: State) -> None:
    write_checkpoint(folder, state, TWO)


def named(file: str, config: dict | None = None) -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        write_checkpoint(folder, state, TWO | (config or {}), file)

    return write


def prefixed(prefix: str, file: str = "model.safetensors") -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        state = {prefix + key: value for key, value in state.items()}
        if file.endswith(".bin"):
            return pickled(lambda _: state)(folder, state)
        write_checkpoint(folder, state, TWO, file)
        return None

    return write


def pickled(content: Callable[[State], object]) -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        folder.mkdir()
        torch.save(content(state), folder / "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(TWO))

    return write


def misnamed(file: str) -> Callable[[Path, State], None]:
    """The other format under a name of one."""

    def write(folder: Path, state: State) -> None:
        plain(folder, state)
        if file == "model.safetensors":
            return torch.save(state, folder / file)
        (folder / "model.safetensors").rename(folder / file)
        return None

    return write


def sharded(index: dict | None, begin: bytes = b"") -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        places = {key: SHARDS[i % 2] for i, key in enumerate(state)}
        for file in SHARDS:
            write_checkpoint(folder, {key: state[key] for key in state if places[key] == file}, TWO, file)
        if index is not None:
            content = json.dumps(index | {"weight_map": places})
            (folder / "model.safetensors.index.json").write_bytes(begin + content.encode())

    return write


def single_beside_shards(folder: Path, state: State) -> None:
    """The shards are those of another model: the whole file is what loads."""
    sharded({"metadata": {}})(folder, {key: torch.full_like(value, torch.nan) for key, value in state.items()})
    plain(folder, state)


def misplaced(folder: Path, state: State) -> None:
    sharded({"metadata": {}})(folder, state)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][EMBED] = SHARDS[1]
    index.write_text(json.dumps(content))


def encoded(begin: bytes, encoding: str) -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        plain(folder, state)
        (folder / "config.json").write_bytes(begin + json.dumps(TWO).encode(encoding))

    return write


def bare(content: str | None) -> Callable[[Path, State], None]:
    def write(folder: Path, state: State) -> None:
        plain(folder, state)
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_text(content)

    return write


def integers(folder: Path, state: State) -> None:
    """Codes of 8 bits with a scale a row, as bitsandbytes stores them."""
    for key in [QUERY.format(i) for i in range(2)]:
        scale = state[key].abs().amax(1)
        state |= {key: (127 * state[key] / scale[:, None]).round().to(torch.int8), key.replace("weight", "SCB"): scale}
    plain(folder, state)


FAULTS: dict[str, tuple[Callable[[Path, State], None], str]] = {
    "module": (prefixed("module."), "wrapped"),
    "compiled": (prefixed("_orig_mod."), "wrapped"),
    "compiled twice": (prefixed("module._orig_mod."), "wrapped"),
    "fabric": (prefixed("_forward_module."), "wrapped"),
    "module in a pickle": (prefixed("module.", "pytorch_model.bin"), "wrapped"),
    "state dict in a dictionary": (pickled(lambda state: {"state_dict": state}), "wrapped"),
    "checkpoint of a trainer": (pickled(lambda state: {"model": state, "epoch": 3}), "wrapped"),
    "two deep": (pickled(lambda state: {"model": {"state_dict": state}}), "wrapped"),
    "beside an object": (pickled(lambda state: state | {"path": Path("x")}), "wrapped"),
    "no index": (sharded(None), "not_loaded"),
    "other name": (named("weights.safetensors"), "not_loaded"),
    "other case": (named("Model.safetensors"), "not_loaded"),
    "name of another format": (named("pytorch_model.safetensors"), "not_loaded"),
    "named and not there": (named("model.safetensors", {"transformers_weights": "x.safetensors"}), "not_loaded"),
    "no metadata": (sharded({}), "index"),
    "null metadata": (sharded({"metadata": None}), "index"),
    "another format": (misnamed("model.safetensors"), "not_loaded"),
    "safetensors under a pickle's name": (misnamed("pytorch_model.bin"), "not_loaded"),
    "an index behind a mark": (sharded({"metadata": {}}, b"\xef\xbb\xbf"), "index"),
    "byte order mark": (encoded(b"\xef\xbb\xbf", "utf-8"), "config"),
    "UTF-16": (encoded(b"", "utf-16"), "config"),
    "codes": (integers, "quantised"),
    "no method": (named("model.safetensors", {"quantization_config": {"bits": 4}}), "quantised"),
    "settings that are no object": (named("model.safetensors", {"quantization_config": "gptq"}), "quantised"),
    "only a variant": (named("model.fp16.safetensors"), "only_variant"),
    "no configuration": (bare(None), "no_config"),
    "an empty configuration": (bare("{}"), "no_config"),
}
WHOLE: dict[str, tuple[Callable[[Path, State], None], str | None]] = {
    "plain": (plain, None),
    "prefix of the model": (prefixed("model."), None),
    "pickled": (pickled(lambda state: state), None),
    "parameters": (pickled(lambda state: {k: torch.nn.Parameter(v) for k, v in state.items()}), None),
    "a number beside": (pickled(lambda state: state | {"epoch": 3}), None),
    "shards": (sharded({"metadata": {}}), None),
    "under another shard": (misplaced, "unlisted"),
    "named": (named("weights.safetensors", {"transformers_weights": "weights.safetensors"}), None),
    "unknown method": (named("model.safetensors", {"quantization_config": {"quant_method": "of tomorrow"}}), None),
    "no quantisation": (named("model.safetensors", {"quantization_config": None}), None),
}


def loads(folder: Path, state: State) -> bool:
    """Load a folder as its users do, and compare every value."""
    from transformers import AutoModelForCausalLM, utils

    utils.logging.set_verbosity_error()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RuntimeError,
        UnpicklingError,
        SafetensorError,
    ):
        return False
    loaded = model.state_dict()
    return all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("fault", FAULTS)
def test_what_transformers_does_not_load_is_found(tmp_path, monkeypatch, state, fault):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write, check = FAULTS[fault]
    write(tmp_path / "model", dict(state))
    assert not loads(tmp_path / "model", state)
    audit = specdiag.audit(tmp_path / "model", device="cpu")
    assert {check for check, _ in found(audit)} == {check}
    assert audit.verdict == ("warn" if check in ("only_variant", "no_config") else "fail")


@pytest.mark.parametrize("twin", WHOLE)
def test_what_transformers_loads_does_not_fail(tmp_path, monkeypatch, state, twin):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write, check = WHOLE[twin]
    write(tmp_path / "model", dict(state))
    assert loads(tmp_path / "model", state)
    audit = specdiag.audit(tmp_path / "model", device="cpu")
    assert {check for check, _ in found(audit)} == ({check} if check else set())
    assert "not_loaded" in audit.coverage.checks


def test_the_file_that_loads_is_the_one_that_is_judged(tmp_path, monkeypatch, state):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    single_beside_shards(tmp_path / "model", state)
    assert loads(tmp_path / "model", state)
    audit = specdiag.audit(tmp_path / "model", device="cpu")
    assert audit.source.files == ("model.safetensors",)
    assert {check for check, _ in found(audit)} == {"nonfinite", "twin"}
    assert all(f.module is not None and f.module.startswith("model-0000") for f in audit.findings)


def test_plain_weights_that_are_announced_as_codes(tmp_path, state):
    for method in ("bitsandbytes", "gptq", "awq"):
        settings = {"quantization_config": {"quant_method": method, "bits": 4}}
        named("model.safetensors", settings)(tmp_path / method, state)
        assert found(specdiag.audit(tmp_path / method, device="cpu")) == {("quantised", None)}
    named("model.safetensors", {"quantization_config": {"load_in_4bit": True}})(tmp_path / "four", state)
    assert found(specdiag.audit(tmp_path / "four", device="cpu")) == {("quantised", None)}


OTHERS: dict[str, tuple[str, dict | None]] = {
    "timm": ("model.safetensors", {"architecture": "vit_base_patch16_224", "num_classes": 1000}),
    "timm's pickle": ("pytorch_model.bin", {"architecture": "resnet50", "pretrained_cfg": {}}),
    "a module of diffusers": ("diffusion_pytorch_model.safetensors", {"_class_name": "UNet2DConditionModel"}),
    "a mixin of the hub": ("model.safetensors", {"width": 64}),
    "MLX": ("weights.00.safetensors", TWO | {"quantization": {"bits": 4, "group_size": 64}}),
    "a run": ("checkpoint.pt", TWO),
    "a file alone": ("net.pth", None),
}


@pytest.mark.parametrize("other", OTHERS)
def test_folders_of_other_libraries_are_left_alone(tmp_path, state, other):
    file, config = OTHERS[other]
    wrapped = {f"module.{key}": value for key, value in state.items()}
    if file.endswith(".safetensors"):
        write_checkpoint(tmp_path / "model", wrapped, config, file)
    else:
        (tmp_path / "model").mkdir()
        torch.save({"state_dict": wrapped}, tmp_path / "model" / file)
        if config is not None:
            (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    audit = specdiag.audit(tmp_path / "model", device="cpu")
    checks = ("not_loaded", "only_variant", "index", "wrapped", "quantised")
    assert not {check for check, _ in found(audit)} & {*checks, "no_config"}
    assert set(checks) <= audit.coverage.not_checked.keys()


def test_a_picked_file_and_a_report_say_nothing_of_the_folder(tmp_path, state):
    named("weights.safetensors")(tmp_path / "model", state)
    picked = specdiag.audit(tmp_path / "model", file="weights.safetensors", device="cpu")
    assert "no file was picked" in picked.coverage.not_checked["not_loaded"]
    assert not found(picked)
    report = specdiag.audit(specdiag.analyze(tmp_path / "model", device="cpu"))
    assert not found(report)
    assert {"not_loaded", "wrapped", "no_config"} <= report.coverage.not_checked.keys()


def test_the_words_of_each_finding(tmp_path, state):
    """They name what to look for."""
    said: dict[tuple[str, str | None], object] = {}
    for fault in (
        "module",
        "two deep",
        "beside an object",
        "no index",
        "no metadata",
        "an index behind a mark",
        "codes",
    ):
        FAULTS[fault][0](tmp_path / fault, dict(state))
        said |= {(fault, f.check): f.value for f in specdiag.audit(tmp_path / fault, device="cpu").findings}
    assert said == {
        ("module", "wrapped"): "names with the wrapper prefix 'module.'",
        ("two deep", "wrapped"): "the weights lie in a dictionary under 'model.state_dict'",
        ("beside an object", "wrapped"): "the file holds objects of pathlib.PosixPath beside tensors",
        ("no index", "not_loaded"): f"only {', '.join(SHARDS)}",
        ("no metadata", "index"): "has no metadata",
        ("an index behind a mark", "index"): "is written in UTF-8 with a byte order mark, not in plain UTF-8",
        ("codes", "quantised"): f"{QUERY.format(0)} is quantised, and config.json has no quantization_config",
    }
