"""The page of a report: its parts, its size, hostile names, the command, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import browser
import numpy as np
import pytest
import torch
from command import execute, python
from html_pages import COLUMN, HOSTILE, Read
from msgspec.structs import replace as replace_record

import specdiag
from specdiag.analysis.summary import summarise
from specdiag.errors import UsageError
from specdiag.views.html import interactive, page
from specdiag.views.html.heat import heatmap
from specdiag.views.html.spectrum import spectrum

ROLES = {
    "self_attn.q_proj": ("q", "attention"), "self_attn.k_proj": ("k", "attention"),
    "self_attn.v_proj": ("v", "attention"), "self_attn.o_proj": ("o", "attention"), "mlp.gate_proj": ("gate", "mlp"),
    "mlp.up_proj": ("up", "mlp"), "mlp.down_proj": ("down", "mlp"),
}  # fmt: skip


def noise(rows: int, cols: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((rows, cols)))


def made_up(n_layers: int, extra: tuple[str, ...] = (), n: int = 2048):
    """A report of a decoder with true spectra of n eigenvalues each."""
    rng = np.random.default_rng(0)
    real = specdiag.analyze({"model.layers.0.self_attn.q_proj.weight": noise(96, 128)})
    names = [(f"model.layers.{i}.{kind}.weight", *role, i) for i in range(n_layers) for kind, role in ROLES.items()]
    names += [(name, "other", "other", None) for name in extra]
    records, spectra = [], {}
    for name, role, family, layer in names:
        spectra[name] = np.sort(rng.pareto(1.5, n) + rng.random(n))
        alpha, square = rng.uniform(1.5, 3.5, 2).tolist()
        records.append(
            replace_record(
                real.records[0], name=name, role=role, family=family, layer=layer, rows=4096, cols=n, alpha=alpha,
                square_alpha=square, n_eigenvalues=n, xmin=float(np.median(spectra[name])), k=n // 2,
                spectral_norm=float(spectra[name][-1]) ** 0.5, mp_edge=2.0,
            )
        )  # fmt: skip
    summary = summarise(records, (), n_tensors=len(records), n_parameters=len(records) * 4096 * n)
    return replace(real, records=tuple(records), skipped=(), summary=summary, _spectra=spectra)


def whole(report, **given):
    """A page with all of its parts."""
    return specdiag.html_report(report, plan=specdiag.recommend(report), audit=specdiag.audit(report), **given)


@pytest.fixture(scope="module")
def minilm_report(minilm):
    return specdiag.analyze(minilm)


@pytest.fixture(scope="module")
def minilm_page(minilm_report):
    return whole(minilm_report)


@pytest.fixture
def bare(monkeypatch):
    """As in an environment without plotly."""
    monkeypatch.setattr(interactive, "find_spec", lambda name: None)


def test_all_parts_are_there_findings_first(minilm_page, minilm_report):
    read = Read(minilm_page)
    sections = [attrs["id"] for attrs in read.of("section")]
    assert sections == [
        "findings", "heatmap", "facts", "roles", "audit", "extremes", "plan", "matrices", "methods", "provenance",
    ]  # fmt: skip
    assert len([a for a in read.of("article") if a["class"] == "module"]) == len(minilm_report)
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    inner = {attrs["href"] for attrs in read.of("a") if attrs["href"].startswith("#")}
    assert inner - {f"#{i}" for i in ids} == {"#-"}
    heat = minilm_page.split('<table class="heat')[1].split("</table>")[0]
    assert heat.count("<a ") == 36
    assert "The shapes alone give this ordering, so it is no evidence." in minilm_page
    assert "linear rule on alpha" in minilm_page
    assert "Looks like a trained model. 2 things stand out." in minilm_page
    assert len(read.of("figure")) == 6


def test_numbers_are_the_reports(minilm_page, minilm_report):
    for i, r in enumerate(minilm_report):
        panel = minilm_page.split(f'id="m{i}"')[1].split("</article>")[0]
        assert r.name in re.sub("<wbr>", "", panel)
        if r.alpha is not None:
            assert f"<dt>alpha<dd>{r.alpha:.6g}" in panel
            assert f">stable rank<dd>{r.stable_rank:.6g}" in panel
        assert ("<svg" in panel) == (r.spectral_norm is not None)


def test_provenance_is_json(minilm_page, minilm_report):
    said = json.loads(Read(minilm_page).text["pre"])
    assert said["source"]["location"] == minilm_report.source.location
    assert said["settings"]["tail"] == "hill"
    assert said["provenance"]["versions"] == minilm_report.provenance.versions


def test_nothing_is_loaded_from_anywhere(minilm_page):
    read = Read(minilm_page)
    assert not [attrs for tag, attrs in read.elements if "src" in attrs or tag in ("link", "iframe", "object", "base")]
    outward = {attrs["href"] for attrs in read.of("a") if not attrs["href"].startswith("#")}
    assert outward == {"https://arxiv.org/abs/2506.14562"}
    assert "url(" not in minilm_page.split("</style>")[0]
    policy = next(attrs["content"] for attrs in read.of("meta") if attrs.get("http-equiv"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_equal_input_gives_an_equal_page(minilm_page, minilm_report, tmp_path):
    assert whole(minilm_report) == minilm_page
    minilm_report.save(tmp_path / "a.json")
    read = [specdiag.html_report(specdiag.load_report(tmp_path / "a.json")) for _ in range(2)]
    assert read[0] == read[1]


def test_size_of_two_hundred_modules():
    report = made_up(28, ("a.weight", "b.weight", "c.weight", "d.weight"))
    assert len(report) == 200
    assert len(specdiag.html_report(report).encode()) < 3.5e6


def test_size_without_plotly(bare):
    text = specdiag.html_report(made_up(28, ("a.weight", "b.weight", "c.weight", "d.weight")))
    assert len(text.encode()) < 1.5e6
    read = Read(text)
    assert read.of("script") == [{}]
    assert len([a for a in read.of("svg") if a.get("class") == "esd"]) == 200 + 6


def test_the_script_is_short():
    lines = Path(page.__file__).with_name("report.js").read_text().splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("where", ["module", "source", "part", "plan"])
def test_hostile_names_stay_text(where):
    clean = made_up(2, ("a", "b", "c", "d", "e"), n=64)
    report, plan = clean, specdiag.recommend(clean)
    if where == "module":
        report = made_up(2, HOSTILE, n=64)
    elif where == "source":
        source = replace_record(clean.source, location=HOSTILE[0], revision=HOSTILE[1], commit=HOSTILE[2],
                                files=HOSTILE, base=HOSTILE[3])  # fmt: skip
        provenance = replace_record(clean.provenance, notes=HOSTILE, device_name=HOSTILE[0], architecture=HOSTILE[0],
                                    versions={"specdiag": HOSTILE[0]})  # fmt: skip
        report = replace(clean, source=source, provenance=provenance)
    elif where == "part":
        renamed = [replace_record(r, component=HOSTILE[i % 5], storage_dtype=HOSTILE[0], method=HOSTILE[1])
                   for i, r in enumerate(clean)]  # fmt: skip
        report = replace(clean, records=tuple(renamed))
    else:
        entries = tuple(replace_record(e, name=HOSTILE[i % 5], note=HOSTILE[0]) for i, e in enumerate(plan.entries))
        plan = replace_record(plan, entries=entries, base_origin=HOSTILE[0], base_weight_decay=0.1, notes=HOSTILE)
    text = specdiag.html_report(report, plan=plan, audit=specdiag.audit(report))
    expected, read = Read(whole(clean)), Read(text)
    for tag in ("script", "img", "style", "meta", "iframe"):
        assert len(read.of(tag)) == len(expected.of(tag)), tag
    assert not [attrs for _, attrs in read.elements if any(name.startswith("on") for name in attrs)]
    assert "<script>alert" not in text
    assert "1337" not in text
    assert "<!--" not in text
    assert not re.search("[‪-‮‏]", text)
    assert "alert(1)" in text


def test_without_eigenvalues_the_panels_say_so(minilm_report):
    text = specdiag.html_report(replace(minilm_report, _spectra=None))
    assert "carries no eigenvalues" in text
    assert '<svg class="esd"' not in text


def test_a_page_shows_the_plan_and_the_audit_that_it_is_given(minilm_report, monkeypatch):
    text = specdiag.html_report(minilm_report)
    assert "This page was made without an audit." in text
    assert "This page was made without a plan." in text
    assert '<span class="fail">' not in text
    assert 'id="ratios"' not in text
    audit, plan = specdiag.audit(minilm_report), specdiag.recommend(minilm_report, basis="square")
    changed = replace_record(audit, verdict="fail")
    text = specdiag.html_report(minilm_report, plan=plan, audit=changed)
    assert 'Verdict: <span class="fail">' in text
    assert (
        f"by {len(audit.coverage.checks)} of {len(audit.coverage.checks) + len(audit.coverage.not_checked)} checks"
        in text
    )
    assert "specdiag audit runs more on the checkpoint itself" in text
    assert "linear rule on square" in text
    for wrong in ({"plan": audit}, {"audit": plan}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            specdiag.html_report(minilm_report, **wrong)


def test_the_base_of_a_plan_is_shown(minilm_report):
    plan = specdiag.recommend(minilm_report, basis="square", weight_decay=0.1)
    text = specdiag.html_report(minilm_report, plan=plan)
    assert "linear rule on square" in text
    assert "weight decay</th>" in text


def test_reports_that_lack_things():
    small = specdiag.analyze({"a.weight": noise(8, 8), "b.weight": torch.zeros(64, 64)})
    text = specdiag.html_report(small)
    assert "No matrix has an exponent." in text
    broken = specdiag.analyze({"h.0.attn.q.weight": noise(64, 64) * torch.nan, "c": noise(64, 64)})
    assert "not computed for NaN or infinite values" in specdiag.html_report(broken)
    assert "INCOMPLETE" in specdiag.html_report(replace(small, complete=False))
    assert "INCOMPLETE" not in text


@pytest.mark.parametrize("tail", ["hill-paper", "ks", "fix-finger", "clip-xmax", "farms"])
def test_other_tails(tail):
    weights = {f"model.layers.{i}.mlp.up_proj.weight": noise(96, 80) for i in range(2)}
    text = specdiag.html_report(specdiag.analyze(weights, tail=tail, randomize=True))
    assert f"<dt>alpha ({tail}" in text
    assert ('class="fit"' in text) == (tail != "farms")


def test_what_is_drawn_is_the_density(minilm_report):
    for r in minilm_report:
        drawn = spectrum(minilm_report, r)
        values = minilm_report.eigenvalues(r.key)
        edges = np.geomspace(drawn.low, drawn.high, len(drawn.density) + 1)
        share = np.sum(np.diff(edges) * drawn.density)
        assert len(drawn.density) <= 80
        assert drawn.n_left == (values < drawn.low).sum()
        assert share == pytest.approx((values >= drawn.low).mean(), rel=0.01)
        if drawn.fit:
            (x, y), _ = drawn.fit
            assert x == pytest.approx(r.xmin, rel=0.01)
            assert y == pytest.approx((values >= r.xmin).mean() * (r.alpha - 1) / r.xmin, rel=0.01)
        if len(drawn.bulk) > 20 and drawn.bulk[0][0] < 0.01 * drawn.bulk[-1][0]:
            x, y = np.array(drawn.bulk).T
            assert 0.3 < np.trapezoid(y, x) < 1.01


@pytest.fixture(scope="module")
def permuted_report(minilm):
    return specdiag.analyze(minilm, randomize=True)


def test_permuted_spectra_are_drawn_where_they_are_known(permuted_report, minilm_page):
    for r in permuted_report:
        drawn = spectrum(permuted_report, r)
        values = permuted_report.eigenvalues(r.key, randomized=True)
        share = np.diff(np.geomspace(drawn.low, drawn.high, len(drawn.density) + 1)) * drawn.randomized
        assert share.sum() == pytest.approx((values >= drawn.low).mean(), rel=0.01)
        assert values[-1] < drawn.high
    text = specdiag.html_report(permuted_report).split("<article", 1)[1]
    assert text.count('class="randomized"') == text.count("Thin steps: the entries permuted") == len(permuted_report)
    assert text.count('class="permuted"') == len(permuted_report)
    assert 'class="randomized"' not in minilm_page
    assert "Thin steps: the" not in minilm_page.split("<article")[1]
    known = {k: permuted_report.eigenvalues(k) for k in (r.key for r in permuted_report)}
    old = specdiag.html_report(replace(permuted_report, _spectra=known))
    assert 'class="randomized"' not in old
    assert "Dash-dotted: largest eigenvalue with the entries permuted." in old


def test_cells_of_several_matrices():
    expert = made_up(2, n=64).records[5]
    records = tuple(
        replace_record(expert, name=f"e{i}", component=part, layer=layer, square_alpha=1.0 + i)
        for i, (part, layer) in enumerate([("vision", 0)] * 3 + [("vision", 2)] + [(None, 1)] * 2)
    )
    found = heatmap(records)
    assert found.several
    assert found.layers == [0, 1, 2]
    cells = {row.label: [c and (c.record, c.text) for c in row.cells] for row in found.rows}
    assert cells == {"vision up": [("e0", "2.00"), None, ("e3", "4.00")], "up": [None, ("e4", "5.50"), None]}
    assert "median of 3" in found.rows[0].cells[0].about
    assert heatmap([replace_record(expert, alpha=None, square_alpha=None)]) is None
    assert heatmap([replace_record(expert, alpha=2.0, square_alpha=None)]).metric == "alpha"


def test_a_saved_report_needs_no_torch(minilm_report, tmp_path):
    minilm_report.save(tmp_path / "a.json")
    code = (
        "import specdiag, sys; specdiag.html_report(specdiag.load_report('a.json')); assert 'torch' not in sys.modules"
    )
    python(code, cwd=tmp_path)


def test_path_is_checked_and_written(minilm_report, minilm_page, tmp_path):
    whole(minilm_report, path=tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == minilm_page
    with pytest.raises(UsageError, match=r"saved as \.html"):
        specdiag.html_report(minilm_report, path=tmp_path / "a.json")
    with pytest.raises(UsageError, match="does not exist"):
        specdiag.html_report(minilm_report, path=tmp_path / "no" / "a.html")


def cli(*arguments, cwd):
    return execute(*arguments, cwd=cwd)


def test_command(minilm_report, tmp_path):
    minilm_report.save(tmp_path / "x.specdiag.json")
    done = cli("report", "x.specdiag.json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "written: x.specdiag.html" in done.stderr
    specdiag.recommend(minilm_report, weight_decay=0.25).save(tmp_path / "plan.json")
    done = cli("report", "x.specdiag.json", "--plan", "plan.json", "-o", "y.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "base 0.25 (given)" in (tmp_path / "y.html").read_text()
    for arguments, code, said in (
        (("nothing.json",), 3, "nothing.json"),
        (("x.specdiag.json", "-o", "x.specdiag.json"), 2, "saved as .html"),
        (("x.specdiag.json", "--plan", "x.specdiag.json"), 3, "not a decay plan"),
        (("x.specdiag.json", "--jobs", "2"), 2, "--jobs"),
    ):
        done = cli("report", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr


def test_command_on_a_checkpoint(rxnmapper, tmp_path):
    done = cli("report", rxnmapper, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["rxnmapper.specdiag.html"]


@pytest.fixture(scope="module")
def tab():
    executable = browser.find()
    if executable is None:
        pytest.skip("no browser: install chromium, or name one in SPECDIAG_BROWSER")
    assert Path(executable).exists(), f"SPECDIAG_BROWSER={os.environ['SPECDIAG_BROWSER']} is not there"
    with browser.chromium(executable) as found:
        yield found


@pytest.fixture
def on_page(tab, minilm_page, tmp_path):
    (tmp_path / "page.html").write_text(minilm_page, encoding="utf-8")
    tab.open(tmp_path / "page.html")
    yield tab
    assert tab.complaints() == []
    assert tab.requests() == [(tmp_path / "page.html").resolve().as_uri()]


def test_browser_sorts(on_page, minilm_report):
    stored = on_page.run(COLUMN % 0)
    assert stored == [r.key for r in minilm_report]
    heads = on_page.run('[...document.querySelectorAll("#records th")].map(head => head.textContent)')
    at = heads.index("alpha")
    on_page.click(f"#records th:nth-child({at + 1}) button")
    known = sorted((f"{r.alpha:.3f}" for r in minilm_report if r.alpha is not None), key=float)
    assert on_page.run(COLUMN % at) == [*known, "too_few"]
    assert on_page.run(COLUMN % 0) != stored
    on_page.click(f"#records th:nth-child({at + 1}) button")
    assert on_page.run(COLUMN % at) == [*reversed(known), "too_few"]
    on_page.click("#records th:first-child button")
    assert sorted(stored) == sorted(on_page.run(COLUMN % 0))
    at = heads.index("shape")
    on_page.click(f"#records th:nth-child({at + 1}) button")
    sizes = [r * c for r, c in (map(int, s.split("x")) for s in on_page.run(COLUMN % at))]
    assert sizes == sorted(sizes)


def test_browser_filters(on_page, minilm_report):
    on_page.click("#matrices .bar input")
    on_page.call("Input.insertText", text="layer:3 role:q QUERY")
    assert on_page.run(COLUMN % 0) == ["encoder.layer.3.attention.self.query.weight"]
    assert on_page.run('document.querySelector("#matrices .bar output").textContent') == f"1 of {len(minilm_report)}"
    visible = 'document.querySelectorAll("#ratios tbody tr:not([hidden])").length'
    assert on_page.run(visible) == 36


def test_browser_opens_a_cell(on_page, minilm_report):
    on_page.click('.heat a[aria-label^="q, layer 2:"]')
    on_page.wait('document.querySelector(".module:target .main-svg")')
    record = minilm_report["encoder.layer.2.attention.self.query.weight"]
    shown = on_page.run('document.querySelector(".module:target").innerText')
    assert record.key in shown
    assert f"{record.alpha:.3f}" in shown
    assert f"{record.stable_rank:.6g}" in shown
    assert on_page.run('document.querySelectorAll(".module:target .plot > *").length') == 1
    line = on_page.run('document.querySelector(".module:target .plot").data[1].y')
    assert line[0] / line[1] == pytest.approx((record.spectral_norm**2 / record.xmin) ** record.alpha, rel=0.03)
    on_page.press("Escape")
    on_page.wait('!document.querySelector(".module:target")')


def test_browser_shows_the_permuted_spectrum(tab, permuted_report, tmp_path):
    specdiag.html_report(permuted_report, path=tmp_path / "page.html")
    tab.open(tmp_path / "page.html")
    tab.click('.heat a[aria-label^="up, layer 2:"]')
    tab.wait('document.querySelector(".module:target .main-svg")')
    name, x, y = tab.run("""(() => { const { name, x, y } = document.querySelector(".module:target .plot").data[3];
        return [name, x, y]; })()""")
    drawn = spectrum(permuted_report, permuted_report["encoder.layer.2.intermediate.dense.weight"])
    assert name == "entries permuted"
    assert x == pytest.approx(np.geomspace(drawn.low, drawn.high, len(drawn.density) + 1))
    assert [v for v in y[:-1] if v > min(y)] == [v for v in drawn.randomized if v]
    assert tab.complaints() == []


def test_browser_copies_the_provenance(on_page):
    on_page.click("#provenance > button")
    assert json.loads(on_page.run("getSelection().toString()"))["settings"]["tail"] == "hill"


def test_browser_on_a_phone_and_in_print(on_page, tmp_path):
    on_page.resize(390, 844)
    assert on_page.run("document.documentElement.scrollWidth") == 390
    assert on_page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("n_layers", [6, 80])
def test_browser_prints_four_pages(n_layers, tab, minilm_page, tmp_path):
    page = minilm_page if n_layers == 6 else whole(made_up(80, ("a.weight", "b.weight"), n=256))
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    tab.open(tmp_path / "page.html")
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", tab.pdf())) <= 4


def test_browser_opens_a_link_to_a_matrix(on_page, tmp_path):
    on_page.call("Page.navigate", url="about:blank")
    on_page.events.clear()
    on_page.call("Page.navigate", url=(tmp_path / "page.html").as_uri() + "#m3")
    on_page.wait('document.querySelector("#m3 .main-svg")')


def test_browser_without_scripts(tab, minilm_page, minilm_report, tmp_path):
    (tmp_path / "page.html").write_text(minilm_page, encoding="utf-8")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(tmp_path / "page.html")
        assert tab.run(COLUMN % 0) == [r.key for r in minilm_report]
        assert tab.run('document.querySelectorAll("button, input").length') == 0
        tab.click("#records tbody tr:nth-child(5) a")
        shown = tab.run("""(() => { const panel = document.querySelector(".module:target");
            return [panel.innerText, panel.querySelector(".esd").getBoundingClientRect().width]; })()""")
        assert minilm_report.records[4].key in shown[0]
        assert shown[1] > 200
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_browser_without_plotly(tab, bare, minilm_report, tmp_path):
    specdiag.html_report(minilm_report, path=tmp_path / "bare.html")
    tab.open(tmp_path / "bare.html")
    tab.click("#records tbody tr:nth-child(5) a")
    tab.wait('document.querySelector(".module:target svg.esd").getBoundingClientRect().width > 200')
    assert tab.complaints() == []


def test_browser_runs_no_hostile_name(tab, tmp_path):
    specdiag.html_report(made_up(2, HOSTILE, n=64), path=tmp_path / "hostile.html")
    tab.open(tmp_path / "hostile.html")
    assert tab.run("document.querySelectorAll('img, iframe').length") == 0
    assert tab.run(COLUMN % 0)[-5:-1] == list(HOSTILE[:4])
    tab.click("#records tbody tr:last-child a")
    tab.wait('document.querySelector(".module:target .main-svg")')
    assert tab.complaints() == []
    assert len(tab.requests()) == 1


def test_browser_refuses_foreign_scripts(tab, minilm_page, tmp_path):
    """The counter-test: what a missed escape would let in is stopped by the page's policy, and is seen here."""
    evil = minilm_page.replace("<h2>Findings</h2>", "<script>window.evil = 1</script><img src=https://example.org/x>")
    (tmp_path / "evil.html").write_text(evil, encoding="utf-8")
    tab.open(tmp_path / "evil.html")
    assert tab.run("window.evil") is None
    assert len(tab.complaints()) >= 2


def test_a_broken_or_absent_matrix_is_a_cell_in_words(minilm_report):
    first, *others = [r for r in minilm_report.records if r.role == "k"]
    lost = replace_record(first, status="nonfinite", alpha=None, square_alpha=None)
    (row,) = [r for r in heatmap([lost, *others]).rows if r.label == "k"]
    assert next(c.text for c in row.cells if c) == "not finite"
    kept = [r for r in minilm_report.records if r.key != first.key]
    (row,) = [r for r in heatmap(kept).rows if r.label == "k"]
    assert row.cells.count(None) == 1
    assert "the report has no such matrix" in specdiag.html_report(replace(minilm_report, records=tuple(kept)))


def test_a_page_is_called_by_the_name_of_its_model(minilm_report):
    assert f"<title>{Path(minilm_report.source.location).name}: specdiag</title>" in specdiag.html_report(minilm_report)
