"""`specdiag analyze` of an adapter, alone and with --base."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from adapter_files import LORA, QUERY, lora, random, write
from command import execute
from models import write_checkpoint
from safetensors.numpy import load_file, save_file

from specdiag.report import load_report


def run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return execute("analyze", *args, cwd=cwd)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Folders `base` and `adapter`: two layers of attention and MLP, an update of rank 8 for each matrix."""
    shapes = {
        f"model.layers.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "self_attn.q_proj": (64, 64), "self_attn.o_proj": (64, 64), "mlp.up_proj": (160, 64),
            "mlp.down_proj": (64, 160),
        }.items()
    }  # fmt: skip
    write_checkpoint(
        tmp_path / "base", {f"{name}.weight": random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    )
    tensors = [lora(name, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())]
    write(tmp_path / "adapter", {name: value for part in tensors for name, value in part.items()}, LORA)
    return tmp_path


def test_analyze_prints_updates_without_exponents(pair: Path) -> None:
    done = run("adapter", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert "8 of 8 updates have a rank below 50: stable rank and norms, no exponent." in done.stdout
    assert "heavier-tailed than MLP" not in done.stdout
    assert "made for org/base: give --base org/base for W + s B A" in done.stderr
    assert load_report(pair / "adapter.specdiag.json").source.base is None


def test_analyze_with_a_base(pair: Path) -> None:
    run("adapter", cwd=pair)
    done = run("adapter", "--base", "base", cwd=pair)
    assert done.returncode == 0, done.stderr
    assert "adapter on base; reading adapter_model.safetensors" in done.stderr
    assert "no exponent" not in done.stdout
    report = load_report(pair / "adapter.merged.specdiag.json")
    assert report.source.base == "base"
    assert all(record.alpha is not None for record in report)
    assert len(load_report(pair / "adapter.specdiag.json")) == 8


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["adapter", "--tail", "farms"], 2, "--tail farms looks at the entries of a matrix, and 8 of 8 are updates"),
        (["adapter", "--randomize"], 2, "--randomize looks at the entries of a matrix"),
        (["adapter", "--randomize", "--dry-run"], 2, "--randomize looks at the entries of a matrix"),
        (["base", "--base", "base"], 2, "base is no adapter: leave out --base base"),
        (["adapter", "--base", "adapter"], 2, "adapter is an adapter, or carries one: --base takes the plain model"),
        (["adapter", "--base", "nowhere/at/all"], 3, "no such file or directory"),
        (["a.json", "--base", "base"], 2, "a.json is a saved report, shown as it is: --base needs the checkpoint"),
    ],
)
def test_refusals_of_the_command(pair: Path, args: list[str], code: int, sentence: str) -> None:
    if args[0] == "a.json":
        run("adapter", "-o", "a.json", cwd=pair)
    done = run(*args, cwd=pair)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_factor_is_exit_4(pair: Path) -> None:
    file = pair / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{QUERY}.lora_A.weight"][0, 0] = np.nan
    save_file(tensors, file)
    done = run("adapter", cwd=pair)
    assert done.returncode == 4
    assert f"1 of 8 matrices have no spectrum: {QUERY}.weight (nonfinite: 1 values)" in done.stderr
    assert run("adapter", "--base", "base", cwd=pair).returncode == 4


def test_dry_run_reads_no_values(pair: Path) -> None:
    file = pair / "adapter" / "adapter_model.safetensors"
    data = file.read_bytes()
    header = int.from_bytes(data[:8], "little") + 8
    file.write_bytes(data[:header] + b"\xff" * (len(data) - header))
    rows = json.loads(run("adapter", "--dry-run", "-f", "json", cwd=pair).stdout)
    assert sum(r["bytes"] for r in rows) == len(data) - header
    assert run("adapter", "--base", "base", "--dry-run", cwd=pair).returncode == 0
