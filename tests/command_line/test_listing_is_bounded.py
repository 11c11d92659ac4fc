"""`analyze --dry-run` of a model with more matrices than anybody reads."""

import subprocess
import sys

import numpy as np
import pytest
from command import outcome
from safetensors.numpy import save_file

from specdiag.analysis import cost
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.records import Settings


def test_a_dry_run_lists_the_first_rows_and_all_where_asked(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({f"model.layers.{i}.mlp.up_proj.weight": np.ones((2, 2), np.float32) for i in range(600)}, path)
    code, shown, _ = outcome("analyze", path, "--dry-run", width=112)
    assert code == 0
    assert "600 matrices would be analysed, the first 500 of them (--all: every one)" in shown
    assert "model.layers.499.mlp" in shown
    assert "model.layers.500.mlp" not in shown
    _, every, _ = outcome("analyze", path, "--dry-run", "--all", width=112)
    assert "model.layers.599.mlp" in every
    _, rows, _ = outcome("analyze", path, "--dry-run", "-f", "csv")
    assert len(rows.splitlines()) == 601


def test_matrices_of_one_shape_have_one_estimate(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path, calls = tmp_path / "model.safetensors", list[int]()
    save_file({f"model.layers.{i}.mlp.up_proj.weight": np.ones((7, 5), np.float32) for i in range(50)}, path)
    true = cost.terms
    monkeypatch.setattr(cost, "terms", lambda n, m: calls.append(n) or true(n, m))
    matrices = open_checkpoint(path).matrices
    assert len({cost.seconds(m, Settings(seed=4)) for m in matrices}) == 1
    assert calls == [5]
    (flops,) = {cost.flops(m, Settings(seed=4)) for m in matrices}
    assert flops == 5 * 5 * 7 + 4 / 3 * 5**3


def test_a_dry_run_loads_no_eigensolver(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"model.layers.0.mlp.up_proj.weight": np.ones((4, 4), np.float32)}, path)
    program = (
        "import sys\nfrom specdiag_cli.entry import run\nsys.argv = ['specdiag', *sys.argv[1:]]\n"
        "try:\n    run()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'scipy', 'torch'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "analyze", path, "--dry-run"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "1 matrix would be analysed" in done.stdout
