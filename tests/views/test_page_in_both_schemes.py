"""Cells of a page in light and in dark, rows of matrices without the number, frames of findings, lists that are folded."""

from __future__ import annotations

import browser
import pytest
import torch
from drawn_models import llama
from html_pages import Read
from safetensors.torch import load_file

import specdiag
from specdiag.views.figures.palette import contrast
from specdiag.views.html.heat import heatmap

BACKGROUND = "getComputedStyle([...document.querySelectorAll('.heat a')][%d]).backgroundColor"


@pytest.fixture(scope="module")
def report():
    """Noise, with keys and values too short for an exponent."""
    state = {name: torch.randn(w.shape, generator=torch.Generator().manual_seed(1)) for name, w in llama(3).items()}
    for layer in range(3):
        for role in "kv":
            state[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = torch.randn(24, 64)
    return specdiag.analyze(state, jobs=1)


def test_noise_has_the_colour_of_the_page_in_both_schemes(report, tmp_path):
    executable = browser.find()
    if executable is None:
        pytest.skip("no browser: install chromium, or name one in SPECDIAG_BROWSER")
    path = tmp_path / "page.html"
    specdiag.html_report(report, path=path)
    with browser.chromium(executable) as page:
        for dark, paper in ((False, "#ffffff"), (True, "#14171a")):
            page.open(path, dark=dark)
            numbers = page.run(BACKGROUND % 0).removeprefix("rgb(").removesuffix(")").split(", ")
            cell = "#" + "".join(f"{int(n):02x}" for n in numbers)
            assert contrast(cell, paper) < 2


def test_roles_without_an_exponent_have_a_row(report):
    heat = heatmap(report.records)
    rows = {row.label: row.cells for row in heat.rows}
    assert list(rows) == ["q", "k", "v", "o", "gate", "up", "down"]
    assert [cell.text for cell in rows["k"]] == ["×"] * 3
    assert rows["k"][1].about == "k, layer 1: no square_alpha (too_few)"
    page = specdiag.html_report(report)
    assert "the report has no such matrix" not in page


def test_cells_with_a_finding_are_framed(minilm):
    read = Read(specdiag.html_report(specdiag.analyze(minilm)))
    framed = [attrs for attrs in read.of("a") if "found" in attrs.get("class", "")]
    assert [attrs["title"].split(":")[0] for attrs in framed if "chip" not in attrs["class"]] == ["o, layer 5"]
    assert len(framed) == 2  # and the pooler, outside of the layers


def test_every_matrix_of_a_finding_is_framed(minilm, tmp_path):
    state = load_file(minilm / "model.safetensors")
    random = torch.Generator().manual_seed(0)
    again = {
        n: torch.randn(w.shape, generator=random) if ".layer.2." in n and w.ndim == 2 else w for n, w in state.items()
    }
    read = Read(specdiag.html_report(specdiag.analyze(again)))
    framed = [attrs["title"].split(":")[0] for attrs in read.of("a") if attrs.get("class") == "found"]
    assert [f"{role}, layer 2" in framed for role in ("q", "k", "v", "o", "up", "down")] == [True] * 6


def test_scree_names_matrices_outside_of_the_layers(minilm):
    panels = {axes.get_title(): axes for axes in specdiag.plot.scree(specdiag.analyze(minilm)).axes}
    assert "other: pooler.dense" in panels
    names = {text.get_text() for text in panels["embed"].texts}
    assert names == {"token_type_embeddings", "word_embeddings", "position_embeddings"}


def test_print_shows_folded_findings(report):
    page = specdiag.html_report(report, audit=specdiag.audit(report))
    assert "details:not(.small)::details-content { content-visibility: visible; }" in page.partition("@media print")[2]


def test_a_phone_shows_the_stable_ranks_of_heads(report):
    read = Read(specdiag.html_report(report))
    assert any(attrs.get("class") == "n" and "spectral norm" in attrs.get("title", "") for attrs in read.of("th"))


def test_the_plan_answers_first_and_lists_of_checks_are_folded(report):
    page = specdiag.html_report(report, plan=specdiag.recommend(report), audit=specdiag.audit(report))
    section = page[page.index('<section id="plan">') :]
    assert section.index('<p class="answer">') < section.index("<li>") < section.index("linear rule on alpha")
    folded = page[page.index("Checks that did not run") :]
    assert folded.index("Not checked:") < folded.index("</details>")
    assert page.count("Not checked:") == 1


def test_the_law_of_noise_lies_within_its_chart(report):
    """A spectrum that ends before the law does had it cut at the edge of the picture."""
    from specdiag.views.html.spectrum import spectrum

    for record in report:
        drawn = spectrum(report, record)
        if drawn is not None and drawn.bulk:
            assert max(x for x, _ in drawn.bulk) < drawn.high
