"""DeepSpeed's folders, rebuilt tensor by tensor: ZeRO 1 to 3, universal checkpoints, pipelines."""

from __future__ import annotations

from pathlib import Path

import layout_writers
import numpy as np
import pytest
import torch
from models import write_checkpoint
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

QUERY = "layers.0.self_attn.q_proj.weight"
SHAPES = (
    {QUERY: (13, 7), "layers.0.self_attn.k_proj.weight": (5, 11), "norm.weight": (3,)},
    {"layers.0.mlp.up_proj.weight": (9, 16), "layers.0.mlp.down_proj.weight": (4, 5)},
)
GROUPS = [
    {
        name: torch.from_numpy(np.random.default_rng(i).standard_normal(shape, np.float32))
        for name, shape in group.items()
    }
    for i, group in enumerate(SHAPES)
]
TRUTH = {name: tensor for group in GROUPS for name, tensor in group.items()}
ALONE = "mp_rank_00_model_states.pt"


@pytest.mark.parametrize("world", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp32_weights_are_rebuilt(tmp_path: Path, stage: int, world: int) -> None:
    mask = {"layers.0.self_attn.bias": torch.ones(3)}
    steps = layout_writers.zero(tmp_path, stage, world, GROUPS, buffers=mask)
    for source in (tmp_path, steps):
        checkpoint = open_checkpoint(source)
        assert_stored(checkpoint, TRUTH | mask)
        assert "fp32 weights" in checkpoint.notes[0]
        assert f"{world} partition" in checkpoint.notes[0]
    assert len(open_checkpoint(tmp_path).source.files) == (2 * world if stage == 3 else world + 1)


@pytest.mark.parametrize("stage", [2, 3])
def test_shared_parameters_are_tied(tmp_path: Path, stage: int) -> None:
    head = {"shared_params": {"lm_head.weight": QUERY}}
    buffers = {} if stage == 3 else {"lm_head.weight": TRUTH[QUERY].bfloat16()}
    layout_writers.zero(tmp_path, stage, 2, GROUPS, head, buffers)
    checkpoint = open_checkpoint(tmp_path)
    assert {s.name: s.reason for s in checkpoint.skipped}["lm_head.weight"] == f"tied to {QUERY}"


def test_frozen_parameters_of_stage_3(tmp_path: Path) -> None:
    frozen = torch.arange(10.0).reshape(5, 2)
    steps = layout_writers.zero(tmp_path, 3, 3, GROUPS, {"frozen_param_shapes": {"adapter.weight": torch.Size((5, 2))}})
    for rank, piece in enumerate(torch.cat([frozen.flatten(), torch.zeros(2)]).split(4)):
        path = steps / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        content = torch.load(path, weights_only=False)
        torch.save({**content, "frozen_param_fragments": {"adapter.weight": piece.clone()}}, path)
    assert_stored(open_checkpoint(tmp_path), {**TRUTH, "adapter.weight": frozen})


def test_16_bit_weights_without_partitions(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 2, 2, GROUPS)
    for path in steps.glob("*optim_states.pt"):
        path.unlink()
    for source in (tmp_path, steps, steps / ALONE):
        checkpoint = open_checkpoint(source)
        assert_stored(checkpoint, {name: tensor.bfloat16() for name, tensor in TRUTH.items()})
    assert open_checkpoint(steps).notes == (f"Read the weights of {ALONE} (BF16).",)


def test_partitions_that_do_not_say_how_many_they_are(tmp_path: Path) -> None:
    for stage in (2, 3):
        steps = layout_writers.zero(tmp_path / str(stage), stage, 1, GROUPS)
        path = steps / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
        content = torch.load(path, weights_only=False)
        del content["optimizer_state_dict"]["partition_count"]
        torch.save(content, path)
    checkpoint = open_checkpoint(tmp_path / "2")
    assert_stored(checkpoint, {name: tensor.bfloat16() for name, tensor in TRUTH.items()})
    assert "were not read: they do not say how many they are (partition_count)" in checkpoint.notes[0]
    with pytest.raises(SourceError, match=r"does not say into how many partitions .* zero_to_fp32\.py"):
        open_checkpoint(tmp_path / "3")


@pytest.mark.parametrize("stage", [2, 3])
def test_a_missing_partition_is_named(tmp_path: Path, stage: int) -> None:
    steps = layout_writers.zero(tmp_path, stage, 4, GROUPS)
    (steps / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(SourceError, match=r"holds 3 of 4 partitions.*bf16_zero_pp_rank_2_mp_rank_00") as raised:
        open_checkpoint(tmp_path)
    assert ("has the 16-bit weights" in str(raised.value)) == (stage == 2)
    if stage == 2:
        assert_stored(
            open_checkpoint(str(raised.value).split("'")[-2]),
            {name: tensor.bfloat16() for name, tensor in TRUTH.items()},
        )


def test_missing_model_states_of_stage_3_are_named(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 3, 3, GROUPS)
    (steps / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(SourceError, match=r"holds 2 of 3 files .*: fetch zero_pp_rank_1_mp_rank_00_model_states\.pt$"):
        open_checkpoint(tmp_path)


def test_partitions_of_an_older_run_are_named(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 2, 2, GROUPS)
    first = steps / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    (steps / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").write_bytes(first.read_bytes())
    with pytest.raises(SourceError, match="holds 3 partitions, and each says that they are 2: some are of an older"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_partitions_of_another_size_are_refused(tmp_path: Path, stage: int) -> None:
    steps = layout_writers.zero(tmp_path, stage, 2, GROUPS)
    other = layout_writers.zero(
        tmp_path / "other", stage, 2, [GROUPS[0], {**GROUPS[1], "more.weight": torch.ones(6, 6)}]
    )
    name = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    (steps / name).write_bytes((other / name).read_bytes())
    with pytest.raises(SourceError, match=r"holds \d+ values where param_shapes needs \d+: its files are not of one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("size", [(1 << 40, 1 << 40), (-3, 4), ("x",), 7])
def test_false_shapes_are_refused(tmp_path: Path, size: object) -> None:
    layout_writers.zero(tmp_path, 2, 2, GROUPS, {"param_shapes": [{QUERY: size}, {"b": (9, 16)}]})
    with pytest.raises(SourceError, match=r"param_shapes gives .* the shape"):
        open_checkpoint(tmp_path)


def test_a_model_cut_for_tensor_parallelism_too(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 2, 1, GROUPS)
    (steps / "mp_rank_01_model_states.pt").write_bytes((steps / ALONE).read_bytes())
    with pytest.raises(SourceError, match=r"cut among 2 model-parallel processes.*ds_to_universal\.py"):
        open_checkpoint(tmp_path)


def test_a_part_says_that_it_is_one(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 2, 1, GROUPS, {"mp_world_size": 2})
    for source in (steps, steps / ALONE):
        with pytest.raises(SourceError, match="is one of 2 parts of a model cut for tensor parallelism"):
            open_checkpoint(source)


def test_parts_alone_name_the_folder(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 3, 1, GROUPS)
    for path in sorted(steps.iterdir()):
        with pytest.raises(SourceError, match="DeepSpeed ZeRO divided among processes: give its folder"):
            open_checkpoint(path)


def test_the_whole_model_of_a_trainer_is_preferred(tmp_path: Path) -> None:
    layout_writers.zero(tmp_path, 2, 2, GROUPS)
    write_checkpoint(tmp_path, {"embed_tokens.weight": np.ones((4, 4), np.float32)})
    assert open_checkpoint(tmp_path).source.files == ("model.safetensors",)
    (tmp_path / "model.safetensors").unlink()
    checkpoint = open_checkpoint(tmp_path)
    assert_stored(checkpoint, TRUTH)
    assert checkpoint.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize("text", ["", "../elsewhere", "a b", "gone", "/etc", "x" * 300, ".."])
def test_a_pointer_to_nothing(tmp_path: Path, text: str) -> None:
    layout_writers.zero(tmp_path, 2, 1, GROUPS)
    (tmp_path / "latest").write_text(text)
    with pytest.raises(SourceError, match=r"latest' names"):
        open_checkpoint(tmp_path)


def test_experts_beside_the_model(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 1, 1, GROUPS)
    expert = {
        f"layers.0.deepspeed_moe.experts.deepspeed_experts.{i}.fc1.weight": torch.ones(4, 4) + i for i in range(2)
    }
    for i, (name, tensor) in enumerate(expert.items()):
        torch.save({name: tensor}, steps / f"layer_0_expert_{i}_mp_rank_00_model_states.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert_stored(checkpoint, {**{name: tensor.bfloat16() for name, tensor in TRUTH.items()}, **expert})
    assert "were not read: experts have partitions of their own" in checkpoint.notes[0]


def test_universal_checkpoints(tmp_path: Path) -> None:
    folder = layout_writers.universal(tmp_path / "global_step10_universal", TRUTH)
    (tmp_path / "latest_universal").write_text("global_step10_universal")
    for source in (tmp_path, folder):
        assert_stored(open_checkpoint(source), TRUTH)
    torch.save({"other": 1}, folder / "zero" / QUERY / "fp32.pt")
    with pytest.raises(SourceError, match=r"fp32.pt' holds no tensor under 'param'"):
        open_checkpoint(folder)


LAYER = {
    "attention.query_key_value.weight": torch.randn(24, 8),
    "attention.query_key_value.bias": torch.randn(24),
    "attention.dense.weight": torch.randn(8, 8),
    "attention.dense.bias": torch.randn(8),
    "mlp.dense_h_to_4h.weight": torch.randn(32, 8),
    "mlp.dense_4h_to_h.weight": torch.randn(8, 32),
    "input_layernorm.weight": torch.randn(8),
}
AXES = {
    "attention.query_key_value.weight": 0,
    "attention.query_key_value.bias": 0,
    "attention.dense.weight": 1,
    "mlp.dense_h_to_4h.weight": 0,
    "mlp.dense_4h_to_h.weight": 1,
    "word_embeddings.weight": 0,
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_pipelines_are_joined(tmp_path: Path, ranks: int) -> None:
    layers = {0: {"word_embeddings.weight": torch.randn(40, 8)}, 9: LAYER, 10: {n: t + 1 for n, t in LAYER.items()}}
    for number, layer in layers.items():
        slices = {name: layout_writers.cut(tensor, AXES.get(name), ranks) for name, tensor in layer.items()}
        for rank in range(ranks):
            torch.save(
                {name: cuts[rank] for name, cuts in slices.items()},
                tmp_path / f"layer_{number:02d}-model_{rank:02d}-model_states.pt",
            )
    torch.save({"module": None, "mp_world_size": ranks}, tmp_path / ALONE)
    truth = {f"layers.{n}.{name}": tensor for n, layer in layers.items() for name, tensor in layer.items()}
    assert_stored(open_checkpoint(tmp_path), truth)
    if ranks > 1:
        (tmp_path / "layer_10-model_01-model_states.pt").unlink()
        with pytest.raises(SourceError, match=f"lacks layer_10-model_01-model_states.pt, part 2 of {ranks}"):
            open_checkpoint(tmp_path)
