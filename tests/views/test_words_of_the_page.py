"""A page that a command made speaks of options as they are typed; one made in Python speaks of arguments."""

import re

import pytest
from command import execute
from models import LLAMA, llama_state, write_checkpoint

import specdiag


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, llama_state(), LLAMA)
    return specdiag.analyze(folder, device="cpu").save(folder / "m.json")


def visible(page):
    return re.sub(r"<(script|style).*?</\1>|<[^>]+>", "", page, flags=re.DOTALL)


def test_a_page_of_the_command(report):
    page = report.with_suffix(".html")
    assert execute("report", report, "-o", page).returncode == 0
    text = visible(page.read_text())
    assert "needs --randomize" in text
    assert "needs --baseline" in text
    assert "randomize=True" not in text
    assert "baseline=" not in text


def test_a_page_of_python(report):
    found = specdiag.load_report(report)
    text = visible(specdiag.html_report(found, audit=specdiag.audit(found)))
    assert "needs randomize=True" in text


def test_a_phone_sees_the_heatmap_first(report):
    page = specdiag.html_report(specdiag.load_report(report))
    phone = page.partition("@media (max-width: 40rem)")[2].partition("@media print")[0]
    assert "#heatmap { order: -1; }" in phone
    assert ".heat, .heat.wide { min-width: 0; }" in phone
