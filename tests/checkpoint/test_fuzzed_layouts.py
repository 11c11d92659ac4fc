"""Folders of models in pieces and archives of programs end every input with an answer or a sentence, too."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzzing
import layout_writers
import numpy as np
import pytest
import torch

from specdiag.checkpoint.reader import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

QUERY, KEY = "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"
GROUPS = [{QUERY: torch.ones(6, 4), "norm.weight": torch.ones(3)}, {KEY: torch.ones(4, 5)}]
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 0.5, 1 << 40, 1 << 70, "", "x", "model", "../x", b"x", (), (1 << 40, 2), [], {}, {"x": {"x": [1]}},
    [torch.ones(2, 2)], torch.ones(3), torch.ones(2, 2), torch.zeros(0), torch.tensor(1.0), torch.ones(4, 5).half(),
    torch.ones(2, 2).to_sparse(), {QUERY: torch.ones(6, 4)}, argparse.Namespace(swiglu=True), torch.nn.Linear(2, 2),
)  # fmt: skip


def copied(value: Any) -> Any:
    """The same containers anew around the same tensors."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [copied(inner) for inner in value]
    return argparse.Namespace(**vars(value)) if isinstance(value, argparse.Namespace) else value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    held = vars(value) if isinstance(value, argparse.Namespace) else value
    keys = list(held) if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ()
    for key in keys:
        yield held, key
        yield from places(held[key])


def spoilt(content: Any, seed: int) -> Iterator[Any]:
    """Endless variants of a dictionary: one or two entries are gone, renamed, or something odd."""
    rng = random.Random(seed)
    while True:
        made = copied(content)
        for _ in range(rng.choice((1, 1, 2))):
            there = list(places(made))
            if not there:
                break
            holder, key = rng.choice(there)
            if isinstance(holder, dict) and rng.random() < 0.2:
                holder[rng.choice((7, "model1", "other", (1, 2)))] = holder.pop(key)
            elif isinstance(holder, dict) and rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = copied(rng.choice(ODD))
        yield made


def written(folder: Path, layout: str) -> list[Path]:
    """A folder in a layout, and the files of it that are spoilt."""
    if layout in ("zero2", "zero3"):
        steps = layout_writers.zero(folder, int(layout[-1]), 2, GROUPS, {"shared_params": {"head.weight": QUERY}})
        return sorted(steps.glob("*.pt"))
    if layout == "megatron":
        axes = {"linear_fc1.weight": 0, "linear_fc2.weight": 1}
        state = {"decoder.layers.0.mlp.linear_fc1.weight": torch.ones(8, 4),
                 "decoder.layers.0.mlp.linear_fc2.weight": torch.ones(4, 4)}  # fmt: skip
        args = {"vocab_size": 8, "num_query_groups": 2, "group_query_attention": True}
        layout_writers.megatron(folder, state, axes, tensor=2, gated=True, layers=1, args=args)
        return sorted(folder.rglob("*.pt"))
    if layout == "universal":
        return sorted(layout_writers.universal(folder, GROUPS[0]).rglob("fp32.pt"))
    if layout == "pipeline":
        for rank in range(2):
            torch.save({"attention.dense.weight": torch.ones(4, 2)}, folder / f"layer_02-model_0{rank}-model_states.pt")
        states = {"args": {"num_layers": 1}, "param_shapes": [{"2.attention.dense.weight": torch.Size((4, 2))}]}
        torch.save(states, folder / "mp_rank_00_model_states.pt")
        return sorted(folder.glob("*.pt"))
    if layout == "fsdp":
        for rank in range(2):
            torch.save({"model": {QUERY: torch.ones(6, 4)}}, folder / f"model_world_size_2_rank_{rank}.pt")
        return sorted(folder.glob("*.pt"))
    state = {"tok_embeddings.weight": torch.ones(6, 4), "norm.weight": torch.ones(4),
             "layers.0.attention.wo.weight": torch.ones(4, 4)}  # fmt: skip
    axes = {"tok_embeddings.weight": 1, "wo.weight": 1}
    return sorted(layout_writers.meta(folder, state, axes, 2).glob("*.pth"))


def read_all(path: Path) -> None:
    for tensor in open_checkpoint(path).stored or ():
        if tensor.reason is None and "(" not in tensor.dtype:
            tensor.read(None)


@pytest.mark.parametrize("layout", ["zero2", "zero3", "megatron", "universal", "pipeline", "fsdp", "meta"])
def test_contents_of_layouts(tmp_path: Path, layout: str) -> None:
    files = written(tmp_path, layout)
    contents = [torch.load(path, weights_only=False) for path in files]
    streams = [spoilt(content, seed) for seed, content in enumerate(contents)]
    read_all(tmp_path)
    rng = random.Random(0)

    def inputs() -> Iterator[tuple[int, Any]]:
        while True:
            which = rng.randrange(len(files))
            yield which, next(streams[which])

    def read(value: tuple[int, Any]) -> None:
        which, content = value
        torch.save(content, files[which])
        try:
            read_all(tmp_path)
        finally:
            torch.save(contents[which], files[which])

    fuzzing.fuzz(read, inputs(), fuzzing.seconds() / 2)


@pytest.mark.parametrize("kind", ["script", "export", "npz", "whole"])
def test_bytes_of_archives(tmp_path: Path, kind: str) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    path = tmp_path / "model.pt"
    if kind == "script":
        torch.jit.script(net).save(str(path))
    elif kind == "export":
        torch.export.save(torch.export.export(net, (torch.ones(2, 4),)), path)
    elif kind == "npz":
        np.savez(tmp_path / "x", a=np.ones((4, 4)), b=np.ones(3, "f2"))
        path = (tmp_path / "x.npz").rename(path)
    else:
        torch.save(net, path)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_all(path)

    fuzzing.fuzz(read, fuzzing.mutations(path.read_bytes(), 5), fuzzing.seconds() / 2)


@pytest.mark.parametrize("pointer", ["latest", "latest_checkpointed_iteration.txt"])
def test_bytes_of_pointers(tmp_path: Path, pointer: str) -> None:
    layout_writers.zero(tmp_path, 2, 1, GROUPS, tag="5")

    def read(data: bytes) -> None:
        (tmp_path / pointer).write_bytes(data)
        read_all(tmp_path)

    fuzzing.fuzz(read, fuzzing.mutations(b"global_step10", 6), fuzzing.seconds() / 4)
