"""Losses that Lightning's CSVLogger left beside its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from specdiag.trajectories.losses import Losses, read_losses

TABLE = "epoch,step,train_loss,val_loss\n0,49,2.5,\n0,99,2.25,\n0,99,,2.75\n1,149,2.0,\n"


@pytest.mark.parametrize(
    ("table", "checkpoint"),
    [
        ("lightning_logs/version_0/metrics.csv", "lightning_logs/version_0/checkpoints/epoch=0-step=100.ckpt"),
        ("lightning_logs/version_3/metrics.csv", "epoch=0-step=100.ckpt"),
        ("metrics.csv", "epoch=0-step=100.ckpt"),
    ],
)
def test_the_last_losses_before_a_step(tmp_path: Path, table: str, checkpoint: str) -> None:
    (tmp_path / table).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / table).write_text(TABLE)
    assert read_losses(tmp_path / checkpoint, 100) == Losses(2.25, 99, 2.75)
    assert read_losses(tmp_path / checkpoint, 40) == Losses()


def test_no_loss_is_guessed_between_two_runs(tmp_path: Path) -> None:
    for version in ("version_0", "version_1"):
        (tmp_path / "lightning_logs" / version).mkdir(parents=True)
        (tmp_path / "lightning_logs" / version / "metrics.csv").write_text(TABLE)
    assert read_losses(tmp_path / "epoch=0-step=100.ckpt", 100) == Losses()


@pytest.mark.parametrize(
    "table",
    ["", "a\n1\n", "step,accuracy\n1,2\n", "step,train_loss\nx,y\n1\n", "step,loss\n1,nan\n", "\0", "\xff" * 9, "step,loss\n" + "9" * 200_000],
)  # fmt: skip
def test_a_table_that_says_nothing(tmp_path: Path, table: str) -> None:
    (tmp_path / "metrics.csv").write_text(table, encoding="latin-1")
    assert read_losses(tmp_path / "x.ckpt", 5).loss is None
