"""Folders as training programs lay out checkpoints of torch.distributed.checkpoint."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command import outcome
from distributed_files import assert_holds, change_metadata, save_chunks, save_one
from models import llama_state, tensors
from safetensors.torch import save_file

from specdiag import analyze, trajectory
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError, UsageError

Tensors = dict[str, torch.Tensor]


def weights(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    names = [
        f"layers.{i}.{part}.weight" for i in range(2) for part in ("attention.wq", "attention.wo", "feed_forward.w1")
    ]
    made = {name: torch.randn(64, 64, generator=generator) for name in names}
    return {"tok_embeddings.weight": torch.randn(80, 64, generator=generator), **made}


def moments(model: Tensors) -> dict[str, Any]:
    state = {name: {"step": torch.tensor(1.0), "exp_avg": t * 0, "exp_avg_sq": t * 0} for name, t in model.items()}
    return {"state": state, "param_groups": [{"lr": 1e-3, "params": list(model)}]}


def flat_moments(model: Tensors) -> dict[str, Any]:
    flat: dict[str, Any] = {f"state.{n}.{m}": t * 0 for n, t in model.items() for m in ("exp_avg", "exp_avg_sq")}
    return flat | {f"state.{n}.step": torch.tensor(1.0) for n in model} | {f"param_groups.{n}.lr": 1e-3 for n in model}


MODEL = weights()
LAYOUTS: dict[str, dict[str, Any]] = {
    "torchtitan": {**MODEL, "optimizer": flat_moments(MODEL), "train_state": {"step": torch.tensor(3)}, "lr_scheduler": {"last_epoch": 3}},
    "accelerate": {"model": MODEL},
    "lightning fsdp": {"model": MODEL, "optimizer_0": moments(MODEL)},
    "lightning model parallel": {"state_dict": MODEL, "optimizer_0": flat_moments(MODEL)},
    "tutorial": {"app": {"model": MODEL, "optim": moments(MODEL)}},
    "averages": {"model": MODEL, "ema": weights(1), "optim": moments(MODEL)},
    "compiled": {"model": {f"_orig_mod.{name}": tensor for name, tensor in MODEL.items()}},
}  # fmt: skip
LEFT = {"torchtitan": 21, "lightning fsdp": 21, "lightning model parallel": 21, "tutorial": 21, "averages": 21}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_weights_are_taken(tmp_path: Path, name: str) -> None:
    where = save_one(tmp_path / "a", LAYOUTS[name])
    checkpoint = open_checkpoint(where)
    assert_holds(checkpoint, MODEL)
    left = [note for note in checkpoint.notes if "of an optimizer's state" in note]
    assert left == ([f"Left out {LEFT[name]} tensors of an optimizer's state in {where}."] if name in LEFT else [])
    assert any("left out 7 tensors under 'ema'" in note for note in checkpoint.notes) == (name == "averages")


def test_two_models_of_equal_standing_are_not_mixed(tmp_path: Path) -> None:
    save_one(tmp_path / "a", {"generator": MODEL, "critic": weights(1)})
    with pytest.raises(SourceError, match="holds 7 tensors under 'generator', 7 tensors under 'critic'"):
        open_checkpoint(tmp_path / "a")


def test_flat_names_without_their_paths(tmp_path: Path) -> None:
    """Planners that do not flatten write no paths: the flat names show the optimizer."""
    save_one(tmp_path / "a", {"layers.0.wq.weight": torch.randn(8, 8), "optimizer": flat_moments(MODEL)})
    change_metadata(tmp_path / "a", lambda metadata: setattr(metadata, "planner_data", None))
    checkpoint = open_checkpoint(tmp_path / "a")
    assert [tensor.name for tensor in checkpoint.stored or ()] == ["layers.0.wq.weight"]


def test_a_checkpoint_of_accelerate_with_its_configuration(tmp_path: Path) -> None:
    """As the Trainer saves it with sharded states: config.json lies above the folder of the model."""
    model = tensors(llama_state())
    folder = tmp_path / "checkpoint-5"
    save_one(folder / "pytorch_model_fsdp_0", {"model": model})
    save_one(folder / "optimizer_0", {"optimizer": {"state": {"a": {"exp_avg": torch.ones(2)}}}})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    torch.save({}, folder / "sampler.bin")
    for source in (folder, folder / "pytorch_model_fsdp_0", folder / "pytorch_model_fsdp_0" / ".metadata"):
        checkpoint = open_checkpoint(source)
        assert checkpoint.config["hidden_size"] == 64
        assert_holds(checkpoint, model)
    save_one(folder / "pytorch_model_fsdp_1", {"model": model})
    with pytest.raises(UsageError, match=r"holds 2 different models: pytorch_model_fsdp_0/\.metadata"):
        open_checkpoint(folder)
    (folder / "pytorch_model_fsdp_0" / ".metadata").unlink()
    with pytest.raises(SourceError, match="the save did not finish"):
        open_checkpoint(folder)


def test_what_lightning_saves_beside_the_weights_is_no_model(tmp_path: Path) -> None:
    save_one(tmp_path / "a.ckpt", LAYOUTS["lightning fsdp"])
    torch.save({"epoch": 1, "loops": {}, "hyper_parameters": {"lr": torch.ones(3, 3)}}, tmp_path / "a.ckpt" / "meta.pt")
    assert_holds(open_checkpoint(tmp_path / "a.ckpt"), MODEL)
    (tmp_path / "a.ckpt" / ".metadata").unlink()
    with pytest.raises(
        SourceError, match=r"no \.metadata, which a distributed checkpoint writes last: the save did not"
    ):
        open_checkpoint(tmp_path / "a.ckpt")


def test_a_save_of_each_process_for_itself(tmp_path: Path) -> None:
    save_one(tmp_path / "a", {"model": MODEL})
    (tmp_path / "a" / ".metadata").rename(tmp_path / "a" / "__0.metadata")
    with pytest.raises(SourceError, match=r"saved by each process for itself \(use_collectives=False\)"):
        open_checkpoint(tmp_path / "a")


def test_a_merged_model_beside_the_chunks_is_taken(tmp_path: Path) -> None:

    save_one(tmp_path / "a", {"model": MODEL})
    save_file({"a.weight": torch.ones(3, 3)}, tmp_path / "a" / "model.safetensors")
    assert [tensor.name for tensor in open_checkpoint(tmp_path / "a").stored or ()] == ["a.weight"]


def megatron(folder: Path, layers: int = 3) -> Tensors:
    """Save layers that are alike as Megatron's torch_dist does, cut for tensor parallelism; give the layers by name."""
    generator = torch.Generator().manual_seed(2)
    shapes = {
        "self_attention.linear_qkv.weight": (24, 8),
        "mlp.linear_fc2.weight": (8, 32),
        "mlp.linear_fc1.layer_norm_weight": (8,),
    }
    stacks = {f"decoder.layers.{n}": torch.randn(layers, *shape, generator=generator) for n, shape in shapes.items()}
    single = {"embedding.word_embeddings.weight": torch.randn(40, 8, generator=generator)}
    moments = {f"optimizer.state.exp_avg.{name}": tensor for name, tensor in stacks.items()}
    axis = {"decoder.layers.self_attention.linear_qkv.weight": 1, "decoder.layers.mlp.linear_fc2.weight": 2}
    everything = {**stacks, **single, **moments}
    cuts = {}
    for name, tensor in everything.items():
        parts = tensor.shape[axis[name]] // 2 if name in axis else None
        boxes = []
        for layer in range(layers) if name in stacks else ():
            for half in range(2 if parts else 1):
                offsets, sizes = [layer] + [0] * (tensor.dim() - 1), [1, *tensor.shape[1:]]
                if parts:
                    offsets[axis[name]], sizes[axis[name]] = half * parts, parts
                boxes.append((tuple(offsets), tuple(sizes)))
        cuts[name] = boxes or [((0,) * tensor.dim(), tuple(tensor.shape))]
    save_chunks(folder, everything, cuts)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))
    args = argparse.Namespace(num_attention_heads=2, group_query_attention=True, num_query_groups=1, hidden_size=8)
    torch.save({"iteration": 5, "checkpoint_version": 3.0, "args": args}, folder / "common.pt")
    named = {f"decoder.layers.{i}.{n}": stacks[f"decoder.layers.{n}"][i] for n in shapes for i in range(layers)}
    return named | single


def test_layers_that_megatron_stacks(tmp_path: Path) -> None:
    truth = megatron(tmp_path / "iter_0000005")
    checkpoint = open_checkpoint(tmp_path / "iter_0000005")
    assert_holds(checkpoint, truth)
    where = tmp_path / "iter_0000005"
    assert f"Left out 3 tensors of an optimizer's state in {where}." in checkpoint.notes
    assert f"Read 3 tensors of {where} as 9: Megatron stacks the layers of a network." in checkpoint.notes
    assert {m.module.layer for m in checkpoint.matrices} >= {0, 1, 2}
    assert [m.shape for m in checkpoint.matrices if "layers.1.self_attention.linear_qkv" in m.name] == [
        (12, 8), (6, 8), (6, 8)
    ]  # fmt: skip
    (where / "common.pt").write_bytes(b"damaged")
    broken = open_checkpoint(where)
    assert any("Went on without the arguments of the run: '" in note for note in broken.notes)
    assert [m.shape for m in broken.matrices if "layers.1.self_attention.linear_qkv" in m.name] == [(24, 8)]

    def other(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["decoder.layers.mlp.linear_fc1.layer_norm_weight"]
        entry.size, entry.chunks = torch.Size([2, 8]), entry.chunks[:2]

    change_metadata(where, other)
    with pytest.raises(SourceError, match=r"different numbers of layers under 'decoder\.layers': 3 for .*, 2 for"):
        open_checkpoint(where)


@pytest.mark.parametrize(
    ("pointer", "text", "target"),
    [
        ("latest_checkpointed_iteration.txt", "5\n", "iter_0000005"),
        ("latest_checkpointed_iteration.txt", "release", "release"),
        ("latest", "global_step7", "global_step7"),
    ],
)
def test_a_file_that_points_to_it_is_followed(tmp_path: Path, pointer: str, text: str, target: str) -> None:
    megatron(tmp_path / "run" / "iter_0000003")
    truth = megatron(tmp_path / "run" / target, layers=4)
    (tmp_path / "run" / pointer).write_text(text)
    for source, pick in ((tmp_path / "run", None), (tmp_path, "run")):
        checkpoint = open_checkpoint(source, file=pick)
        assert_holds(checkpoint, truth)
        assert f"{target}/.metadata" in checkpoint.source.files[0]
    (tmp_path / "run" / target / ".metadata").unlink()
    with pytest.raises(SourceError, match="the save did not finish"):
        open_checkpoint(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / target)
    with pytest.raises(SourceError, match=f"names '{target}', which is not there"):
        open_checkpoint(tmp_path / "run")


def test_a_whole_model_beside_the_pointer_is_read(tmp_path: Path) -> None:
    megatron(tmp_path / "iter_0000005")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("5")
    save_file({"a.weight": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    assert [tensor.name for tensor in open_checkpoint(tmp_path).stored or ()] == ["a.weight"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pytorch_model_fsdp_rank{}.bin", ": give its folder"),
        ("pytorch_model_fsdp_1_rank{}.bin", ", and its slices are not joined"),
        ("model_world_size_2_rank_{}.pt", ": give its folder"),
        ("optim_world_size_2_rank_{}.pt", ", and its slices are not joined"),
    ],
)
def test_one_file_a_process_is_refused_as_what_it_is(tmp_path: Path, name: str, hint: str) -> None:
    for rank in range(2):
        torch.save(
            {"_fsdp_wrapped_module.flat_param": torch.ones(64), "a.weight": torch.ones(8, 16)},
            tmp_path / name.format(rank),
        )
    for source, file in ((tmp_path, name.format(1)), (tmp_path / name.format(0), None)):
        with pytest.raises(SourceError, match=f"process's part of a model that FSDP divided{hint}"):
            open_checkpoint(source, file=file)
    with pytest.raises(SourceError, match=r"and its slices are not joined" if "and" in hint else "FSDP flattened"):
        open_checkpoint(tmp_path)


def test_a_run(tmp_path: Path) -> None:
    for step in (10, 20):
        save_one(tmp_path / "checkpoint" / f"step-{step}", LAYOUTS["torchtitan"] | weights(step))
    rows = trajectory(tmp_path / "checkpoint", out=tmp_path / "out").rows
    assert {row.step for row in rows} == {10, 20}
    whole = analyze(save_one(tmp_path / "whole", {"model": weights(20)}))
    alphas = {row.module: row.value for row in rows if (row.step, row.metric) == (20, "alpha")}
    assert alphas == {record.key: record.alpha for record in whole.records}


def test_commands(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_one(tmp_path / f"step-{seed}", {"model": weights(seed)})
    code, stdout, _ = outcome("compare", tmp_path / "step-0", tmp_path / "step-1")
    assert code == 0
    assert "wq" in stdout
    assert outcome("audit", tmp_path / "step-0")[0] in (0, 1)
    shutil.rmtree(tmp_path / "step-0")
    code, _, stderr = outcome("analyze", tmp_path / "step-1" / "__0_0.distcp")
    assert code != 0
    assert "give the whole folder, with its .metadata" in " ".join(stderr.split())
