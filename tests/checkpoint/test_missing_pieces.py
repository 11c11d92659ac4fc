"""Saves whose last piece is missing: refused where anything beside it tells, noted where only the model's end does."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

import layout_writers
import pytest
import torch
from read_back import assert_stored
from test_megatron import ARGS, AXES, megatron_state

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

torch.manual_seed(0)
BLOCK = {"attention.dense.weight": torch.randn(8, 8), "mlp.dense_4h_to_h.weight": torch.randn(8, 32)}
EMBEDDING, NORM, HEAD = (
    {"word_embeddings.weight": torch.randn(40, 8)},
    {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)},
    {"final_linear.weight": torch.randn(40, 8)},
)
NEOX = {0: EMBEDDING, 2: BLOCK, 3: BLOCK, 4: BLOCK, 6: NORM, 7: HEAD}
"""The files of GPT-NeoX: functions at 1 and 5 have none."""
NO_NORM = "No file behind layer_{:02d} holds a final norm: the model's last files may be missing."


def layer_file(number: int, rank: int = 0) -> str:
    return f"layer_{number:02d}-model_{rank:02d}-model_states.pt"


def save_pipeline(folder: Path, without: tuple[int, ...] = (), **states: Any) -> Path:
    """Write a pipeline, and the model states of its only process where there are any."""
    folder.mkdir(exist_ok=True, parents=True)
    for number, tensors in NEOX.items():
        if number not in without:
            torch.save(tensors, folder / layer_file(number))
    if states:
        torch.save({"module": None, "mp_world_size": 1, **states}, folder / "mp_rank_00_model_states.pt")
    return folder


def listed(*numbers: int) -> list[dict[str, torch.Size]]:
    return [{f"{n}.{name}": t.shape for n in numbers for name, t in NEOX[n].items()}]


def test_a_whole_pipeline_has_no_doubts(tmp_path: Path) -> None:
    save_pipeline(tmp_path, args={"num_layers": 3, "model_parallel_size": 1}, param_shapes=listed(*NEOX))
    checkpoint = open_checkpoint(tmp_path)
    assert_stored(checkpoint, {f"layers.{n}.{name}": t for n, layer in NEOX.items() for name, t in layer.items()})
    assert checkpoint.notes[0] == "Joined 6 files of layers, numbered as they are."
    assert not any("missing" in note for note in checkpoint.notes)


@pytest.mark.parametrize("missing", [0, 4, 6, 7])
def test_a_layer_that_the_optimizer_lists(tmp_path: Path, missing: int) -> None:
    save_pipeline(tmp_path, (missing,), param_shapes=listed(*NEOX))
    with pytest.raises(SourceError, match=f"lacks {layer_file(missing)}, of whose layer mp_rank_00_model_states.pt"):
        open_checkpoint(tmp_path)


def test_a_stage_whose_process_alone_lists_it(tmp_path: Path) -> None:
    """Each stage's process lists its own layers; tied modules have no number."""
    save_pipeline(tmp_path, (6, 7), param_shapes=[*listed(0, 2, 3), {"tied_modules.embed.weight": torch.Size((2, 2))}])
    assert open_checkpoint(tmp_path).notes[1:2] == (NO_NORM.format(4),)
    torch.save({"module": None, "param_shapes": listed(4, 6, 7)}, tmp_path / "mp_rank_01_model_states.pt")
    with pytest.raises(SourceError, match=f"lacks {layer_file(6)}, of whose layer mp_rank_01"):
        open_checkpoint(tmp_path)


def test_a_parameter_that_a_file_of_another_save_lacks(tmp_path: Path) -> None:
    save_pipeline(tmp_path, param_shapes=[{"3.attention.rotary.weight": torch.Size((2, 2))}])
    with pytest.raises(SourceError, match=r"holds layer_03.* without 'attention.rotary.weight', which mp_rank_00"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("args", [{"num_layers": 3}, argparse.Namespace(num_layers=3)], ids=["neox", "megatron"])
def test_fewer_layers_than_the_run_had(tmp_path: Path, args: object) -> None:
    save_pipeline(tmp_path, args=args)
    assert open_checkpoint(tmp_path).n_tensors == 10
    for number in (4, 3):
        (tmp_path / layer_file(number)).unlink()
        with pytest.raises(
            SourceError, match=rf"holds {number - 2} layers where num_layers in mp_rank_00.* is 3: fetch"
        ):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ['# "num-layers": 9\n"num-layers": 3,\n', "num_layers: 3", '{"hidden_size": 8, "num_layers": 3}']
)
def test_fewer_layers_than_the_settings_say(tmp_path: Path, text: str) -> None:
    steps = save_pipeline(tmp_path / "global_step5")
    (tmp_path / "latest").write_text("global_step5")
    (steps / "configs").mkdir()
    (steps / "configs" / "run.yml").write_text(text)
    assert open_checkpoint(tmp_path).n_tensors == 10
    (steps / layer_file(4)).unlink()
    for source in (tmp_path, steps):
        with pytest.raises(SourceError, match=r"holds 2 layers where num_layers in configs/run.yml is 3"):
            open_checkpoint(source)


def test_slices_of_a_pipeline_that_are_missing(tmp_path: Path) -> None:
    save_pipeline(tmp_path, args={"model_parallel_size": 2})
    with pytest.raises(SourceError, match=r"holds 1 parts of each layer where mp_rank_00.* says 2"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("without", "notes"),
    [
        ((), ()),
        ((7,), ()),
        ((6,), (NO_NORM.format(4),)),
        ((6, 7), (NO_NORM.format(4),)),
        ((4, 6, 7), (NO_NORM.format(3),)),
        ((0,), ("No file before layer_02 holds an embedding: the model's first files may be missing.",)),
    ],
)
def test_ends_that_are_not_there_are_noted(tmp_path: Path, without: tuple[int, ...], notes: tuple[str, ...]) -> None:
    """A tied head has no file of its own."""
    assert tuple(n for n in open_checkpoint(save_pipeline(tmp_path, without)).notes if "missing" in n) == notes


def test_model_states_that_cannot_be_read_cost_no_weights(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert any(
        re.match("What mp_rank_00_model_states.pt says of the number of pieces was not read: ", note)
        for note in open_checkpoint(tmp_path).notes
    )


@pytest.mark.parametrize("args", [{}, {"num_layers": None}])
def test_a_last_stage_of_megatron_that_nothing_counts(tmp_path: Path, args: dict[str, Any]) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, stages=2, layers=4, args=args)
    steps = tmp_path / "iter_0000005"
    for path in steps.rglob("*.pt"):
        content = torch.load(path, weights_only=False)
        torch.save({key: value for key, value in content.items() if key != "args"}, path)
    assert not any("final norm" in note for note in open_checkpoint(tmp_path).notes)
    shutil.rmtree(steps / "mp_rank_00_001")
    assert (
        "No final norm is there, which the last stage holds: a stage may be missing, or the run had none."
        in open_checkpoint(tmp_path).notes
    )


def test_fewer_layers_than_megatrons_arguments_say(tmp_path: Path) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, stages=2, layers=4, args=ARGS | {"num_layers": 6})
    with pytest.raises(
        SourceError, match=r"holds 4 layers where num_layers in its args is 6: fetch all of its mp_rank"
    ):
        open_checkpoint(tmp_path)


def test_slices_of_an_old_megatron(tmp_path: Path) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, layers=4, args={"model_parallel_size": 2})
    with pytest.raises(SourceError, match="holds 1 ranks where its model_parallel_size is 2"):
        open_checkpoint(tmp_path)


def test_an_output_layer_that_the_arguments_promise(tmp_path: Path) -> None:
    promised = {"untie_embeddings_and_output_weights": True}
    sentence = "No output_layer is there, which untie_embeddings_and_output_weights in the args promises."
    state = megatron_state()
    layout_writers.megatron(tmp_path / "whole", state, AXES, layers=4, args=promised)
    del state["output_layer.weight"]
    layout_writers.megatron(tmp_path / "part", state, AXES, layers=4, args=promised)
    assert sentence not in open_checkpoint(tmp_path / "whole").notes
    assert sentence in open_checkpoint(tmp_path / "part").notes


def test_experts_of_deepspeed_that_are_missing(tmp_path: Path) -> None:
    steps = layout_writers.zero(tmp_path, 1, 1, [{"a.weight": torch.randn(8, 8)}], {"num_experts": [2, 3]})
    for layer, count in ((0, 2), (1, 3)):
        for i in range(count):
            name = f"layers.{layer}.deepspeed_moe.experts.deepspeed_experts.{i}.fc1.weight"
            torch.save({name: torch.randn(4, 4)}, steps / f"layer_{layer}_expert_{i}_mp_rank_00_model_states.pt")
    assert open_checkpoint(tmp_path).n_tensors == 6
    (steps / "layer_1_expert_2_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(SourceError, match=r"holds 2 experts of its expert layer 1, and num_experts in .* says 3"):
        open_checkpoint(tmp_path)
    for path in steps.glob("layer_1_*"):
        path.unlink()
    with pytest.raises(SourceError, match="holds 0 experts of its expert layer 1"):
        open_checkpoint(tmp_path)


def test_a_parameter_that_a_universal_checkpoint_lacks(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 4)}
    layout_writers.universal(tmp_path, state)
    shapes = [{name: tensor.shape for name, tensor in state.items()}]
    torch.save({"module": None, "param_shapes": shapes}, tmp_path / "mp_rank_00_model_states.pt")
    assert_stored(open_checkpoint(tmp_path), state)
    shutil.rmtree(tmp_path / "zero" / "b.weight")
    with pytest.raises(SourceError, match=r"lacks zero/b.weight/fp32.pt, a parameter that mp_rank_00_model_states.pt"):
        open_checkpoint(tmp_path)
