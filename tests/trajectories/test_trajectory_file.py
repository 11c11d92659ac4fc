"""-o NAME.json: the trajectory in a file of its own, beside the reports in their usual folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import execute
from models import llama_state, write_checkpoint

from specdiag.trajectories.load import load_trajectory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 20):
        write_checkpoint(tmp_path / "run" / f"checkpoint-{step}", llama_state())
    return tmp_path / "run"


@pytest.mark.parametrize("command", [("trajectory",), ("trajectory", "-f", "json"), ("watch", "--once")])
def test_a_file_holds_the_trajectory(run: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = tmp_path / "found.json"
    done = execute(*command, run, "-o", file)
    assert done.returncode == 0, done.stderr
    kept = json.loads(load_trajectory(run / "specdiag_trajectory").to_json())
    assert json.loads(file.read_bytes())["rows"] == kept["rows"]
    assert "{" not in done.stdout


def test_a_folder_may_end_in_json(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    assert execute("trajectory", run, "-o", tmp_path / "out.json").returncode == 0
    assert (tmp_path / "out.json" / "ledger.json").is_file()


def test_the_source_itself_is_not_replaced(run: Path) -> None:
    rolling = run / "checkpoint.json"
    rolling.write_text("{}")
    done = execute("trajectory", rolling, "-o", rolling)
    assert done.returncode == 2
    assert rolling.read_text() == "{}"
