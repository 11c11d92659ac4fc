"""What the README shows is what the program prints."""

import json
import re
from pathlib import Path
from statistics import fmean

from command import execute

import specdiag

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_shown_output_is_real(minilm, tmp_path):
    shown = next(block for block in README.split("```") if block.startswith("\nLooks like a trained model"))
    printed = output("-q", "analyze", minilm, cwd=tmp_path)
    lines = [line for line in shown.splitlines() if line and line != "..."]
    assert len(lines) > 25
    assert [line for line in lines if line not in printed] == []


def output(*arguments, cwd):
    """The lines that a command prints, as wide as they are in README."""
    done = execute(*arguments, cwd=cwd, env={"COLUMNS": "112"})
    assert done.returncode == 0, done.stderr
    return [line.rstrip() for line in done.stdout.splitlines()]


def test_the_shown_plans_are_real(minilm, asset, tmp_path):
    encoder, decoder = (
        [line for line in block.splitlines() if line and line != "..."]
        for block in README.split("```")
        if block.startswith("\nDo not use this plan") or block.startswith("\n210 Parameters")
    )
    specdiag.analyze(minilm).save(tmp_path / "r.json")
    printed = output(
        "-q", "recommend", "r.json", "--weight-decay", "0.1", "--lr", "3e-4", "--steps-left", "20000", cwd=tmp_path
    )
    assert len(encoder) == 17
    assert [line for line in encoder if line not in printed] == []
    square = specdiag.recommend(tmp_path / "r.json", basis="square")
    means = [fmean(e.ratio for e in square.entries if e.family == f) for f in ("attention", "mlp")]
    assert f"attention gets {means[0]:.2f} and MLP {means[1]:.2f}" in README
    printed = output("-q", "recommend", asset("smollm2-gguf"), cwd=tmp_path)
    assert [line for line in decoder if line not in printed] == []


def test_the_shown_share_of_roles_is_measured():
    measured = json.loads((Path(__file__).parents[2] / "benchmarks" / "results" / "zoo.json").read_text())
    assert f"right for {100 * measured['mean']:.2f} % " in README
    assert f"over {measured['types_scored']} types" in README


def test_links_and_commands_exist():
    root = Path(__file__).parents[2]
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert "docs/numbers.md" in links
    assert [target for target in links if not (root / target).exists()] == []
    makefile = (root / "Makefile").read_text()
    for word in ("demo", "test", "bench", "zoo"):
        assert f"make {word}" in README
        assert f"\n{word}:" in makefile
