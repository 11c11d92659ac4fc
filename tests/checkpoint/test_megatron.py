"""Checkpoints of Megatron's legacy layout and Meta's parts, joined tensor by tensor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import layout_writers
import pytest
import torch
from read_back import assert_stored

from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

WIDTH, HIDDEN, HEADS, GROUPS, HEAD = 16, 24, 4, 2, 4
AXES = {
    "word_embeddings.weight": 0,
    "output_layer.weight": 0,
    "linear_qkv.weight": 0,
    "linear_qkv.bias": 0,
    "linear_fc1.weight": 0,
    "linear_proj.weight": 1,
    "linear_fc2.weight": 1,
}
ARGS = {
    "num_attention_heads": HEADS, "num_query_groups": GROUPS, "group_query_attention": True, "hidden_size": WIDTH,
    "ffn_hidden_size": HIDDEN, "num_layers": 4, "kv_channels": HEAD, "vocab_size": 50, "swiglu": True,
}  # fmt: skip


def megatron_state(*, gated: bool = True, layers: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state = {"embedding.word_embeddings.weight": torch.randn(64, WIDTH)}
    rows = (HEADS + 2 * GROUPS) * HEAD
    for i in range(layers):
        state |= {
            f"decoder.layers.{i}.self_attention.linear_qkv.weight": torch.randn(rows, WIDTH),
            f"decoder.layers.{i}.self_attention.linear_qkv.bias": torch.randn(rows),
            f"decoder.layers.{i}.self_attention.linear_qkv.layer_norm_weight": torch.randn(WIDTH),
            f"decoder.layers.{i}.self_attention.linear_proj.weight": torch.randn(WIDTH, WIDTH),
            f"decoder.layers.{i}.mlp.linear_fc1.weight": torch.randn((2 if gated else 1) * HIDDEN, WIDTH),
            f"decoder.layers.{i}.mlp.linear_fc2.weight": torch.randn(WIDTH, HIDDEN),
        }
    return state | {
        "decoder.final_layernorm.weight": torch.randn(WIDTH),
        "output_layer.weight": torch.randn(64, WIDTH),
    }


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (2, 1), (1, 2), (2, 2), (2, 4)])
def test_ranks_and_stages_are_joined(tmp_path: Path, tensor: int, stages: int, gated: bool) -> None:
    state = megatron_state(gated=gated)
    layout_writers.megatron(tmp_path, state, AXES, tensor=tensor, stages=stages, gated=gated, args=ARGS, layers=4)
    for source in (tmp_path, tmp_path / "iter_0000005"):
        checkpoint = open_checkpoint(source)
        assert_stored(checkpoint, state)
        assert checkpoint.config["num_key_value_heads"] == GROUPS
        assert "Matrices of the vocabulary keep 14 rows of padding: 64 rows for 50 tokens." in checkpoint.notes
        if tensor * stages > 1:
            assert checkpoint.notes[0] == f"Joined {tensor} tensor-parallel ranks and {stages} pipeline stages."


def test_virtual_stages_follow_one_another(tmp_path: Path) -> None:
    """Chunk 0 of every stage comes before chunk 1 of the first."""
    state = {f"decoder.layers.{i}.mlp.linear_fc2.weight": torch.full((4, 4), float(i)) for i in range(8)}
    for stage in range(2):
        folder = tmp_path / f"mp_rank_00_{stage:03d}"
        folder.mkdir()
        chunks = {
            f"model{chunk}": {
                f"decoder.layers.{i}.mlp.linear_fc2.weight": torch.full((4, 4), float(4 * chunk + 2 * stage + i))
                for i in range(2)
            }
            for chunk in range(2)
        }
        torch.save({**chunks, "checkpoint_version": 3.0}, folder / "model_optim_rng.pt")
    assert_stored(open_checkpoint(tmp_path), state)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 1.0}, r"is of checkpoint_version 1.0, which orders queries, keys and values otherwise"),
        ({"args": {"expert_model_parallel_size": 2}}, r"divides its experts among processes, which is not joined"),
    ],
)
def test_parts_that_are_not_joined(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, tensor=2, gated=True, layers=4, **change)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=sentence):
        open_checkpoint(tmp_path)


def test_an_old_version_in_one_part_is_read(tmp_path: Path) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, version=0, layers=4)
    assert_stored(open_checkpoint(tmp_path), megatron_state())


def lone(folder: Path, state: dict[str, torch.Tensor], **change: Any) -> Path:
    """Write the file of one process, and give its copy without the folders around it."""
    layout_writers.megatron(folder, state, AXES, gated=True, layers=4, **({"args": ARGS} | change))
    return shutil.copy(folder / "iter_0000005/mp_rank_00/model_optim_rng.pt", folder / "lone.pt")


def test_a_file_alone_is_split_by_the_arguments_in_it(tmp_path: Path) -> None:
    path = lone(tmp_path, megatron_state())
    alone, whole = open_checkpoint(path), open_checkpoint(tmp_path / "iter_0000005")
    assert [(m.key, m.shape) for m in alone.matrices] == [(m.key, m.shape) for m in whole.matrices]
    name = "decoder.layers.2.self_attention.linear_qkv.weight"
    groups = megatron_state()[name].reshape(GROUPS, (HEADS // GROUPS + 2) * HEAD, WIDTH)
    keys = next(matrix for matrix in alone.matrices if matrix.key == f"{name}[k]")
    assert torch.equal(keys.load(), groups[:, -2 * HEAD : -HEAD].reshape(-1, WIDTH))


def test_layers_from_before_megatron_core_are_split_too(tmp_path: Path) -> None:
    name = "language_model.encoder.layers.0.self_attention.query_key_value.weight"
    path = lone(tmp_path, {name: torch.randn((HEADS + 2 * GROUPS) * HEAD, WIDTH)})
    assert [matrix.module.role for matrix in open_checkpoint(path).matrices] == ["q", "k", "v"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 1.0}, "Fused queries, keys and values stay whole: that of checkpoint_version 1.0 is no known"),
        ({"args": ARGS | {"attention_output_gate": True}}, "that of attention_output_gate True is no known order"),
        ({"args": {}}, "is fused and could not be split: the config does not say how many heads it has"),
    ],
)
def test_a_file_alone_that_is_not_split(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = lone(tmp_path, megatron_state(), **change)
    for source in (path, tmp_path / "iter_0000005"):
        checkpoint = open_checkpoint(source)
        assert {m.module.role for m in checkpoint.matrices if "linear_qkv" in m.name} == {"other"}
        assert any(sentence in note for note in checkpoint.notes)


@pytest.mark.parametrize("world", [{"tensor": 2}, {"stages": 2}])
def test_a_file_alone_of_several(tmp_path: Path, world: dict[str, int]) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, gated=True, args=ARGS, layers=4, **world)
    path = shutil.copy(next(tmp_path.rglob("model_optim_rng.pt")), tmp_path / "lone.pt")
    with pytest.raises(
        SourceError, match=r"'.*lone.pt' is one of several parts of a model, for .*_parallel_size in its"
    ):
        open_checkpoint(path)


def test_a_rank_that_is_missing(tmp_path: Path) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, tensor=2, stages=2, layers=4)
    shutil.rmtree(tmp_path / "iter_0000005/mp_rank_01_000")
    with pytest.raises(SourceError, match="lacks mp_rank_01_000: fetch all of its mp_rank folders"):
        open_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "iter_0000005/mp_rank_01_001")
    with pytest.raises(SourceError, match="holds 1 ranks where its tensor_model_parallel_size is 2"):
        open_checkpoint(tmp_path)


def test_a_matrix_of_an_unknown_axis(tmp_path: Path) -> None:
    state = {"decoder.layers.0.mlp.odd.weight": torch.randn(8, 8)}
    layout_writers.megatron(tmp_path, state, {"odd.weight": 0}, tensor=2, layers=1)
    with pytest.raises(SourceError, match=r"odd.weight' in 2 parts that differ, and nothing says along which axis"):
        open_checkpoint(tmp_path)


def test_parts_of_different_checkpoints(tmp_path: Path) -> None:
    layout_writers.megatron(tmp_path, megatron_state(), AXES, tensor=2, layers=4)
    path = tmp_path / "iter_0000005/mp_rank_01/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    del content["model"]["output_layer.weight"]
    torch.save(content, path)
    with pytest.raises(SourceError, match=r"'output_layer.weight' in only one of its parts 1 and 2"):
        open_checkpoint(tmp_path)


META_AXES = {
    "wq.weight": 0, "wk.weight": 0, "wv.weight": 0, "wo.weight": 1, "w1.weight": 0, "w3.weight": 0, "w2.weight": 1,
    "output.weight": 0,
}  # fmt: skip


def meta_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state = {"tok_embeddings.weight": torch.randn(40, WIDTH), "norm.weight": torch.randn(WIDTH)}
    for i in range(2):
        shapes = {"wq": (16, 16), "wk": (8, 16), "wv": (8, 16), "wo": (16, 16)}
        state |= {f"layers.{i}.attention.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
        shapes = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}
        state |= {f"layers.{i}.feed_forward.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
        state[f"layers.{i}.attention_norm.weight"] = torch.randn(WIDTH)
    return state | {"output.weight": torch.randn(40, WIDTH), "rope.freqs": torch.randn(2)}


@pytest.mark.parametrize("embedding", [0, 1])
@pytest.mark.parametrize("ranks", [2, 4])
def test_parts_of_meta_are_joined(tmp_path: Path, ranks: int, embedding: int) -> None:
    state = meta_state()
    layout_writers.meta(tmp_path, state, {**META_AXES, "tok_embeddings.weight": embedding}, ranks)
    checkpoint = open_checkpoint(tmp_path)
    assert_stored(checkpoint, state)
    assert checkpoint.notes[0] == f"Joined the {ranks} parts of {tmp_path}."
    assert len(checkpoint.source.files) == ranks
    for source, file in ((tmp_path / "consolidated.00.pth", None), (tmp_path, "consolidated.01.pth")):
        with pytest.raises(SourceError, match=rf"is part [12] of {ranks} of a model cut .*: give its folder"):
            open_checkpoint(source, file=file)


def test_parts_of_meta_that_are_missing(tmp_path: Path) -> None:
    layout_writers.meta(tmp_path, meta_state(), {**META_AXES, "tok_embeddings.weight": 1}, 4)
    (tmp_path / "consolidated.03.pth").unlink()
    with pytest.raises(SourceError, match=r"holds 3 parts, whose attention.wo has 4 columns each: .* width is 16"):
        open_checkpoint(tmp_path)
    (tmp_path / "consolidated.01.pth").unlink()
    with pytest.raises(SourceError, match=r"lacks consolidated.01.pth"):
        open_checkpoint(tmp_path)
    (tmp_path / "consolidated.02.pth").unlink()
    for source in (tmp_path, tmp_path / "consolidated.00.pth"):
        with pytest.raises(SourceError, match=r"attention.wo has 4 columns, and the model's width is 16"):
            open_checkpoint(source)
