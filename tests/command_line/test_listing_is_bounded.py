"""`analyze --dry-run` of a model with more matrices than anybody reads."""

import numpy as np
from command import outcome
from safetensors.numpy import save_file


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
