"""Files of several processes that are not of one save, or of which one is missing, are refused and never joined."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layout_writers
import pytest
import torch
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

torch.manual_seed(0)
GROUP = {"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 4)}
FLAT = torch.cat([tensor.flatten() for tensor in GROUP.values()])
VECTORS = {2: "single_partition_of_fp32_groups", 3: "fp32_flat_groups"}
PARTITION = "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of a torch file in place."""
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)


def set_vectors(steps: Path, stage: int, *vectors: torch.Tensor) -> None:
    """Replace the partitions."""
    for rank, vector in enumerate(vectors):
        key = VECTORS[stage]
        change(
            steps / PARTITION.format(rank),
            lambda c, k=key, v=vector: c["optimizer_state_dict"].update({k: [v.clone()]}),
        )


@pytest.mark.parametrize("at", [50, 30, 47])
def test_partitions_of_unequal_length(tmp_path: Path, at: int) -> None:
    """The values are those of the shapes or two more, so that only the lengths tell."""
    steps = layout_writers.zero(tmp_path, 2, 2, [GROUP])
    more = torch.zeros(2) if at == 50 else torch.zeros(0)
    set_vectors(steps, 2, torch.cat([FLAT[: at - len(more)], more]), FLAT[at - len(more) :])
    with pytest.raises(SourceError, match=r"holds \d+ values of a group of parameters where another partition holds"):
        open_checkpoint(tmp_path)


def test_padding_that_was_cut_off_or_kept(tmp_path: Path) -> None:
    for name, last in {"kept": torch.cat([FLAT[50:], torch.zeros(4)]), "cut": FLAT[50:]}.items():
        steps = layout_writers.zero(tmp_path / name, 2, 2, [GROUP])
        set_vectors(steps, 2, FLAT[:50], last)
        if name == "kept":
            with pytest.raises(SourceError, match="holds 100 values where param_shapes needs 96"):
                open_checkpoint(tmp_path / name)
        else:
            assert_stored(open_checkpoint(tmp_path / name), GROUP)


OPTIMIZERS = {
    "Adam": lambda step: {"state": {0: {"step": torch.tensor(float(step))}}},
    "FusedAdam": lambda step: {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"step": step}]},
    "elastic": lambda step: [{"exp_avg": torch.zeros(2), "step": step}],
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("stage", [2, 3])
def test_partitions_of_different_steps(tmp_path: Path, stage: int, kind: str) -> None:
    steps = layout_writers.zero(tmp_path, stage, 2, [GROUP])
    key = "optimizer_state_dict" if stage == 3 else "base_optimizer_state"
    for number, rank in ((10, 0), (10, 1), (99, 1)):
        state = OPTIMIZERS[kind](number)
        change(steps / PARTITION.format(rank), lambda c, s=state: c["optimizer_state_dict"].update({key: s}))
        if number == 10:
            assert_stored(open_checkpoint(tmp_path), GROUP)
    with pytest.raises(SourceError, match=r"rank_0_.* has optimizer step 10\.0, and '.*rank_1_.*' has 99\.0: they are"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"global_steps": 20}, r"has global_steps 10, and '.*rank_1.*' has 20"),
        ({"param_shapes": [dict(reversed([(n, t.shape) for n, t in GROUP.items()]))]}, "list different parameters"),
        ({"param_shapes": [{"q.weight": torch.Size((3, 3))}]}, "list different parameters"),
    ],
)
def test_model_states_of_different_saves(tmp_path: Path, edit: dict[str, Any], sentence: str) -> None:
    steps = layout_writers.zero(tmp_path, 3, 2, [GROUP], {"global_steps": 10})
    change(steps / "zero_pp_rank_1_mp_rank_00_model_states.pt", lambda content: content.update(edit))
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_partitions_of_different_types(tmp_path: Path, stage: int) -> None:
    whole = {"a.weight": torch.cat([GROUP["a.weight"], GROUP["b.weight"].reshape(4, 8)])}
    steps = layout_writers.zero(tmp_path, stage, 2, [whole])
    set_vectors(steps, stage, FLAT[:48].half(), FLAT[48:])
    with pytest.raises(SourceError, match=r"'a.weight' are of torch.float16 in '.*rank_0.*' and of torch.float32 in"):
        open_checkpoint(tmp_path)
    for dtype in (torch.int64, torch.complex64):
        set_vectors(steps, stage, FLAT[:48].to(dtype), FLAT[48:].to(dtype))
        with pytest.raises(SourceError, match=rf"holds values of {dtype} under {VECTORS[stage]}, which are no weights"):
            open_checkpoint(tmp_path)
    set_vectors(steps, stage, FLAT[:48].half(), FLAT[48:].half())
    checkpoint = open_checkpoint(tmp_path)
    assert " F16 weights" in checkpoint.notes[0]
    assert_stored(checkpoint, {"a.weight": whole["a.weight"].half()})


def two_of_zero(folder: Path) -> tuple[str, str]:
    steps = layout_writers.zero(folder, 2, 2, [GROUP])
    other = PARTITION.format(0).removeprefix("bf16_")
    torch.save({"optimizer_state_dict": {}}, steps / other)
    return PARTITION.format(0), other


def two_stages_of_zero(folder: Path) -> tuple[str, str]:
    steps = layout_writers.zero(folder, 3, 1, [GROUP])
    torch.save({"module": {}}, steps / "mp_rank_00_model_states.pt")
    return "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"


def two_of_megatron(folder: Path) -> tuple[str, str]:
    (folder / "mp_rank_00").mkdir()
    names = ("mp_rank_00/model_optim_rng.pt", "mp_rank_00/model_rng.pt")
    for name in names:
        torch.save({"model": {"decoder.layers.0.mlp.linear_fc2.weight": torch.ones(4, 4)}}, folder / name)
    return names


def two_of_meta(folder: Path) -> tuple[str, str]:
    names = ("consolidated.00.pt", "consolidated.00.pth")
    for name in (*names, "consolidated.01.pth"):
        torch.save({"norm.weight": torch.ones(8), "layers.0.attention.wo.weight": torch.ones(8, 4)}, folder / name)
    return names


def two_of_neox(folder: Path) -> tuple[str, str]:
    names = ("layer_02-model_00-model_states.pt", "layer_2-model_00-model_states.pt")
    for name in names:
        torch.save({"attention.dense.weight": torch.ones(4, 4)}, folder / name)
    return names


@pytest.mark.parametrize("write", [two_of_zero, two_stages_of_zero, two_of_megatron, two_of_meta, two_of_neox])
def test_two_files_of_one_process(tmp_path: Path, write: Callable[[Path], tuple[str, str]]) -> None:
    one, other = write(tmp_path)
    with pytest.raises(SourceError, match=rf"holds both '{one}' and '{other}'.* delete the older one"):
        open_checkpoint(tmp_path)


def test_an_expert_that_two_files_hold(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 1, 1, [GROUP])
    for name in ("layer_0_expert_0", "layer_0_expert_1"):
        torch.save({"experts.0.fc1.weight": torch.ones(4, 4)}, steps / f"{name}_mp_rank_00_model_states.pt")
    with pytest.raises(SourceError, match=r"expert_1_.* and another file hold 'experts\.0\.fc1\.weight'"):
        open_checkpoint(tmp_path)


def save_rank(folder: Path, name: str, model: dict[str, Any], **more: Any) -> None:
    """Write the file of one process of Megatron; `model` by the names of its chunks."""
    (folder / name).mkdir(parents=True)
    torch.save({"checkpoint_version": 3.0, **model, **more}, folder / name / "model_optim_rng.pt")


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"iteration": 90000}, r"has iteration 100, and '.*mp_rank_01.*' has 90000"),
        ({"checkpoint_version": 1.0}, r"has checkpoint_version 3\.0, and"),
        ({"args": argparse.Namespace(tensor_model_parallel_size=8)}, "has tensor_model_parallel_size 2, and .* has 8"),
        ({"args": argparse.Namespace(num_attention_heads=2)}, "has num_attention_heads 4, and .* has 2"),
    ],
)
def test_ranks_of_different_runs(tmp_path: Path, second: dict[str, Any], sentence: str) -> None:
    model = {"model": {"decoder.layers.0.mlp.linear_fc2.weight": torch.ones(4, 2)}}
    same = {"iteration": 100, "args": argparse.Namespace(tensor_model_parallel_size=2, num_attention_heads=4)}
    save_rank(tmp_path, "mp_rank_00", model, **same)
    save_rank(tmp_path, "mp_rank_01", model, **{**same, **second})
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


def test_a_chunk_that_one_stage_lacks(tmp_path: Path) -> None:
    chunk = {"decoder.layers.0.mlp.linear_fc2.weight": torch.ones(4, 4)}
    save_rank(tmp_path, "mp_rank_00_000", {"model0": chunk})
    save_rank(tmp_path, "mp_rank_00_001", {"model0": chunk, "model1": chunk})
    with pytest.raises(SourceError, match=r"mp_rank_00_000/.*' lacks 'model1', which other ranks hold"):
        open_checkpoint(tmp_path)


def test_a_chunk_under_two_names(tmp_path: Path) -> None:
    chunk = {"decoder.layers.0.mlp.linear_fc2.weight": torch.ones(4, 4)}
    save_rank(tmp_path, "mp_rank_00", {"model": chunk, "model0": chunk})
    with pytest.raises(SourceError, match="holds both 'model' and 'model0'"):
        open_checkpoint(tmp_path)


def test_every_stack_counts_its_own_layers(tmp_path: Path) -> None:
    """An encoder on the first two stages, a decoder on the others, and a list of layers within a layer."""
    truth = {
        f"{stack}.layers.{i}.{name}.weight": torch.randn(4, 4)
        for stack in ("encoder", "decoder")
        for i in range(4)
        for name in ("mlp.linear_fc2", "mlp.layers.0.linear_fc2")
    }
    for stage in range(4):
        stack = ("encoder", "decoder")[stage // 2]
        local = {
            f"{stack}.layers.{i}.{name}.weight": truth[f"{stack}.layers.{stage % 2 * 2 + i}.{name}.weight"]
            for i in range(2)
            for name in ("mlp.linear_fc2", "mlp.layers.0.linear_fc2")
        }
        save_rank(tmp_path, f"mp_rank_00_{stage:03d}", {"model": local})
    assert_stored(open_checkpoint(tmp_path), truth)


META = {"layers.0.attention.wo.weight": torch.ones(8, 4)}


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"tok_embeddings.weight": torch.randn(16, 8)}, r"no norm\.weight, which tells the width of the model"),
        (
            {"norm.weight": torch.ones(8), "tok_embeddings.weight": torch.ones(16, 5)},
            r"tok_embeddings\.weight' in 2 parts that differ, and nothing says along which axis",
        ),
    ],
)
def test_parts_of_meta_whose_axis_is_not_known(tmp_path: Path, part: dict[str, torch.Tensor], sentence: str) -> None:
    for rank in range(2):
        torch.save(
            {**META, **part, **{n: t + rank for n, t in part.items() if "tok" in n}},
            tmp_path / f"consolidated.0{rank}.pth",
        )
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


def save_layers(folder: Path, layers: dict[int, dict[str, torch.Tensor]]) -> None:
    """Write a pipeline of DeepSpeed of one part."""
    folder.mkdir(exist_ok=True)
    for number, layer in layers.items():
        torch.save(layer, folder / f"layer_{number:02d}-model_00-model_states.pt")


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("rows", [2, 1])
def test_gated_layers_of_a_pipeline(tmp_path: Path, ranks: int, rows: int) -> None:
    """Each part holds [gate; up] of its slice."""
    first, bias, second = torch.randn(rows * 16, 8), torch.randn(rows * 16), torch.randn(8, 16)

    def part(tensor: torch.Tensor, rank: int) -> torch.Tensor:
        return torch.cat([half.chunk(ranks)[rank] for half in tensor.chunk(rows)])

    for rank in range(ranks):
        torch.save(
            {
                "mlp.dense_h_to_4h.weight": part(first, rank),
                "mlp.dense_h_to_4h.bias": part(bias, rank),
                "mlp.dense_4h_to_h.weight": second.chunk(ranks, 1)[rank].clone(),
            },
            tmp_path / f"layer_03-model_{rank:02d}-model_states.pt",
        )
    names = ("mlp.dense_h_to_4h.weight", "mlp.dense_h_to_4h.bias", "mlp.dense_4h_to_h.weight")
    truth = dict(zip((f"layers.3.{name}" for name in names), (first, bias, second), strict=True))
    assert_stored(open_checkpoint(tmp_path), truth)


@pytest.mark.parametrize("second", [{}, {"mlp.dense_4h_to_h.weight": torch.ones(8, 5)}])
def test_a_matrix_that_may_be_gated(tmp_path: Path, second: dict[str, torch.Tensor]) -> None:
    for rank in range(2):
        torch.save(
            {"mlp.dense_h_to_4h.weight": torch.ones(16, 8), **second},
            tmp_path / f"layer_03-model_{rank:02d}-model_states.pt",
        )
    with pytest.raises(SourceError, match="no dense_4h_to_h of as many or half as many columns tells whether it is"):
        open_checkpoint(tmp_path)


BLOCK = {"attention.dense.weight": torch.ones(4, 4)}
EXPERTS = {"mlp.experts.0.weight": torch.ones(4, 4)}


@pytest.mark.parametrize(("numbers", "missing"), [((3, 4, 6), 5), ((3, 5), 4), ((2, 4, 6, 10), 8), ((1, 3, 4, 5), 2)])
def test_a_layer_that_is_missing(tmp_path: Path, numbers: tuple[int, ...], missing: int) -> None:
    save_layers(tmp_path, {0: {"word_embeddings.weight": torch.ones(8, 4)}, **dict.fromkeys(numbers, BLOCK)})
    with pytest.raises(SourceError, match=f"lacks layer_{missing:02d}-model_00-model_states.pt, between files of"):
        open_checkpoint(tmp_path)


def test_a_layer_that_is_missing_between_two_kinds(tmp_path: Path) -> None:
    layers = {number: (BLOCK, EXPERTS)[number % 2] for number in range(2, 10)}
    save_layers(tmp_path, layers)
    assert len(open_checkpoint(tmp_path).matrices) == 8
    (tmp_path / "layer_07-model_00-model_states.pt").unlink()
    with pytest.raises(SourceError, match="lacks layer_07-model_00"):
        open_checkpoint(tmp_path)


def test_functions_between_layers_have_no_files(tmp_path: Path) -> None:
    layers = {0: {"word_embeddings.weight": torch.ones(8, 4)}, 9: {"norm.weight": torch.ones(4)}}
    for name, numbers in {"all": (2, 3, 4), "every other": (2, 4, 6)}.items():
        save_layers(tmp_path / name, {**layers, **dict.fromkeys(numbers, BLOCK)})
        assert len(open_checkpoint(tmp_path / name).matrices) == 4
