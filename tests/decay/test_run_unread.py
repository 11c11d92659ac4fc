"""`recommend --run` on a run whose optimizer is kept in a form that is not read says where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import invoke
from distributed_files import save_one
from models import llama_state, tensors, write_checkpoint
from paper_report import PAPER

STATE = {"state": {0: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": [{"params": [0]}]}


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("distributed", ".metadata, as torch.distributed.checkpoint saves it"),
        ("beside", "optimizer_0"),
        ("partitions", "global_step5"),
        ("nested", "'trainer.optimizer_state' of ckpt.pt"),
    ],
)
def test_the_place_is_named(tmp_path: Path, kind: str, place: str) -> None:
    report = PAPER.save(tmp_path / "r.json")
    run = tmp_path / "run"
    weights = tensors(llama_state(layers=1))
    if kind == "distributed":
        save_one(run, {"model": weights, "optimizer": {"state": {"w": {"exp_avg": torch.zeros(4, 4)}}}})
    elif kind == "nested":
        run.mkdir()
        torch.save({"model": weights, "trainer": {"optimizer_state": STATE, "epoch": 3}}, run / "ckpt.pt")
    else:
        write_checkpoint(run, llama_state(layers=1))
        (run / ("optimizer_0" if kind == "beside" else "global_step5")).mkdir()
        if kind == "partitions":
            torch.save({}, run / "global_step5" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    done = invoke("recommend", report, "--run", run)
    assert done.exit_code == 3
    assert f"keeps its optimizer in {place}, whose settings are not read: give --weight-decay" in done.stderr


def test_a_run_without_any(tmp_path: Path) -> None:
    report = PAPER.save(tmp_path / "r.json")
    run = write_checkpoint(tmp_path / "run", llama_state(layers=1))
    torch.save({"model": tensors(llama_state(layers=1))}, run / "other.pt")
    (run / "torn.pt").write_bytes(b"PK\x03\x04")
    assert "holds no optimizer or trainer state" in invoke("recommend", report, "--run", run).stderr
