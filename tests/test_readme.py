"""What the README shows is what the program prints."""

import os
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_shown_output_is_real(minilm, tmp_path):
    shown = next(block for block in README.split("```") if block.startswith("\nRoles (medians"))
    done = subprocess.run(
        [sys.executable, "-m", "specdiag", "-q", "analyze", str(minilm)],
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "112"},
    )  # fmt: skip
    printed = [line.rstrip() for line in done.stdout.splitlines()]
    lines = [line for line in shown.splitlines() if line and line != "..."]
    assert len(lines) > 25
    assert [line for line in lines if line not in printed] == []


def test_links_and_commands_exist():
    root = Path(__file__).parents[1]
    for target in ("notebooks/01_checkpoint_to_spectra.ipynb", "docs/numbers.md"):
        assert f"({target})" in README
        assert (root / target).is_file()
    makefile = (root / "Makefile").read_text()
    for word in ("demo", "test", "bench"):
        assert f"make {word}" in README
        assert f"\n{word}:" in makefile
