"""Formats that are not read: their sentence has a line that converts them, and what it makes is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer
from specdiag_cli import door
from specdiag_cli.main import app

from specdiag.checkpoint import conversions
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.errors import SourceError

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", [name for name in vars(conversions) if name.isupper()])
def test_conversions_are_one_line_that_compiles(name: str) -> None:
    text = getattr(conversions, name)
    assert "\n" not in text
    if "python -c" in text:
        compile(text.partition('python -c "')[2].partition('"')[0], name, "exec")
        assert door.in_options(text, COMMANDS["analyze"].params) == text


@pytest.mark.parametrize("pick", [None, "2"])
def test_a_run_of_another_program_is_named(tmp_path: Path, pick: str | None) -> None:
    for step in ("2", "10"):
        (tmp_path / step / "default").mkdir(parents=True)
        (tmp_path / step / "_CHECKPOINT_METADATA").touch()
    with pytest.raises(SourceError) as raised:
        open_checkpoint(tmp_path, file=pick)
    named = " holds no weights of its own, and its folder 10" if pick is None else ""
    assert f"{tmp_path}{named} is an Orbax checkpoint, not supported: {conversions.ORBAX}" in str(raised.value)


def test_an_optimizer_among_the_arrays_is_left_out(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 6))
    arrays = {"params/Dense_0/kernel": weights, "opt_state/0/mu/Dense_0/kernel": weights, "optimizer/vars/1": weights}
    np.savez(tmp_path / "x.npz", **arrays)
    checkpoint = open_checkpoint(tmp_path / "x.npz")
    assert [matrix.name for matrix in checkpoint.matrices] == ["params.Dense_0.kernel"]
    assert checkpoint.notes == ("Left out 2 tensors of an optimizer's state.",)
