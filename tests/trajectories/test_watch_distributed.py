"""watch over checkpoints of torch.distributed.checkpoint, which are whole once their `.metadata` is there."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from distributed_files import save_one
from models import llama_state, tensors

import specdiag
from specdiag.trajectories.records import DroppedStep

Q = "model.layers.0.self_attn.q_proj.weight"


def weights(seed: int) -> dict[str, torch.Tensor]:
    return tensors(llama_state(layers=1, seed=seed))


def norm(seed: int) -> float:
    return float(weights(seed)[Q].double().norm())


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("step-{}", None),
        ("checkpoint-{}/pytorch_model_fsdp_0", "model"),
        ("iter_{:07d}", "model"),
    ],
    ids=["torchtitan", "accelerate", "megatron"],
)
def test_checkpoints_are_taken_once_they_are_whole(tmp_path: Path, place: str, key: str | None) -> None:
    run, saved = tmp_path / "run", tmp_path / "saved"

    def save(step: int) -> Path:
        state = weights(step)
        moments = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in state.items()}
        content = state if key is None else {key: state}
        return save_one(saved / place.format(step), content | {"optimizer": {"state": moments}})

    first, second = save(10), save(20)
    shutil.copytree(first, run / place.format(10))

    def write() -> None:
        target = run / place.format(20)
        target.mkdir(parents=True)
        whole = (second / "__0_0.distcp").read_bytes()
        for end in (1, 2, 4):  # chunks before .metadata, which is renamed into place last
            (target / "__0_0.distcp").write_bytes(whole[: len(whole) * end // 4])
            time.sleep(0.2)
        shutil.copy(second / ".metadata", target / ".metadata.tmp")
        (target / ".metadata.tmp").rename(target / ".metadata")

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for observed in specdiag.watch(run, interval=0.1, jobs=1):
        seen.append(observed)
        if isinstance(observed.result, DroppedStep):
            assert "the save did not finish" in observed.result.reason
        elif observed.result.step == 20 or len(seen) > 20:
            break
    writer.join()
    assert not seen[-1].trajectory.dropped
    name = next(row.module for row in seen[-1].trajectory.rows if row.module.endswith("self_attn.q_proj.weight"))
    course = seen[-1].trajectory.series("frobenius_norm", module=name)
    assert course == [(step, pytest.approx(norm(step))) for step in (10, 20)]
    again = specdiag.trajectory(run, jobs=1)
    assert [s.resumed for s in again.steps] == [True, True]
