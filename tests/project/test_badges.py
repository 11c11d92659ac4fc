"""The README's badges say what pyproject.toml says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("docs_badges", ROOT / "docs" / "badges.py")
docs_badges = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_badges)
DRAWN = docs_badges.badges()
SHOWN = {
    file: text
    for text, file in re.findall(r"!\[([^]]+)\]\(docs/figures/badges/(\w+)\.svg\)", (ROOT / "README.md").read_text())
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_badge_is_drawn_anew(name):
    assert (docs_badges.FOLDER / f"{name}.svg").read_text() == DRAWN[name], "run python docs/badges.py"


def test_the_readme_shows_each_with_its_text():
    labels = {name: re.search('aria-label="([^"]+)"', drawn)[1] for name, drawn in DRAWN.items()}
    assert labels == SHOWN
