"""`make docs` checks links and turns notebooks into pages. The site itself is not built here."""

import importlib.util
from base64 import b64encode
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


@pytest.fixture(autouse=True)
def pages(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PAGES", tmp_path)
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h2 id="here">a</h2><a href="#here">1</a><a href="b.html#there">2</a><a href="/b.html">3</a>'
        '<a href="https://example.org/x">4</a><img src="figures/x.png"><a href="#no">5</a><a href="b.html#no">6</a>'
        '<a href="c.html">7</a>'
    )
    (tmp_path / "b.html").write_text('<a name="there">b</a>')
    assert build.broken_links(tmp_path) == [
        f"a.html: {link}" for link in ("figures/x.png", "#no", "b.html#no", "c.html")
    ]


def test_links_of_a_page_become_those_of_the_site(tmp_path):
    text = "[a](../SECURITY.md) [b](../notebooks/01_checkpoint_to_spectra.ipynb) [c](numbers.md#the-exponent) [d](../Makefile)"
    moved = build.relinked(f"{text} ![e](figures/heatmap.png) [f](https://example.org)", ROOT / "docs")
    assert moved == (
        "[a](security.md) [b](01_checkpoint_to_spectra.md) [c](numbers.md#the-exponent) [d](source/Makefile) "
        "![e](figures/heatmap.png) [f](https://example.org)"
    )
    assert (tmp_path / "source" / "Makefile").read_text() == (ROOT / "Makefile").read_text()


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path):
    shown = {"data": {"image/png": b64encode(b"picture").decode(), "text/plain": "<Figure>"}}
    code = {"cell_type": "code", "source": ["1 + 1\n", "plot()"], "outputs": [{"text": ["2\n"]}, shown]}
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# Title"]}, code]}
    assert build.as_markdown(notebook, "n") == (
        "# Title\n\n```python\n1 + 1\nplot()\n```\n\n```text\n2\n```\n\n![output](figures/n_1_1.png)\n"
    )
    assert (tmp_path / "figures" / "n_1_1.png").read_bytes() == b"picture"


def test_every_public_name_has_its_entry():
    import specdiag

    page = build.api()
    assert [name for name in specdiag.__all__ if name != "plot" and f"::: specdiag.{name}\n" not in page] == []
    assert "::: specdiag.plot.heatmap\n" in page
    assert "::: specdiag.optim.AlphaDecay\n" in page
