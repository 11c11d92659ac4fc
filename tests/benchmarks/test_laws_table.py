"""The table of laws in docs/optimizers.md is what the optimizers answer that are installed here."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
decay_laws = importlib.import_module("decay_laws")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_page_shows_what_the_optimizers_answer(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decay_laws.py", "--docs", "--check"])
    assert decay_laws.main() == 0, capsys.readouterr().err
    page = decay_laws.PAGE.read_text()
    assert "| torch `AdamW` | w <- (1 - lr L) w before the update | its law |" in page
    assert "| torchao `AdamW8bit` |" in page


def test_rows_of_what_is_not_installed_are_kept():
    text = (
        "<!-- laws -->\n| optimizer |\n| --- |\n| a `A` | old | old |\n| b `B` | kept | kept |\n<!-- /laws -->\n| `x` |"
    )
    assert decay_laws.merged(text, [["a `A`", "new", "new"]]).splitlines()[2:] == [
        "| a `A` | new | new |",
        "| b `B` | kept | kept |",
    ]
