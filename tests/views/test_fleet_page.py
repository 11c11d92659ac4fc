"""The page of a fleet: models by findings, checks, failures, hostile names, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import browser
import pytest
from command import execute, invoke
from html_pages import COLUMN, HOSTILE, Read
from msgspec.structs import replace

from specdiag.auditing.fleets import table
from specdiag.auditing.fleets.models import FleetModel, load_models
from specdiag.auditing.fleets.rows import FleetRow
from specdiag.errors import SourceError
from specdiag.views.html.fleet import fleet_page

COVERAGE = json.dumps({"n_tensors": 3, "n_matrices": 2, "checks": ["rank"], "not_checked": {"tied": "<b>no</b>"},
                       "files": {}})  # fmt: skip


def made(source: str, *severities: str, check: str = "rank", **more) -> list[FleetRow]:
    counts = {f"n_{severity}": severities.count(severity) for severity in ("fail", "warn", "info")}
    verdict = "fail" if "fail" in severities else "warn" if "warn" in severities else "pass"
    row = {"kind": "model", "source": source, "verdict": verdict, "n_matrices": 2, "n_checks": 1, "coverage": COVERAGE,
           "settings": "dtype='auto'", "specdiag": "0.2", "audited": "2026-11-29T10:00:00+00:00"}  # fmt: skip
    findings = [FleetRow(kind="finding", source=source, check=check, severity=severity, module=f"layer.{i}",
                         words=f"value {i}", why="it matters", advice="train on") for i, severity in enumerate(severities)]  # fmt: skip
    return [FleetRow(**(row | counts | more)), *findings]


def failed(source: str, error: str) -> list[FleetRow]:
    return [FleetRow(kind="model", source=source, verdict="error", error=error, exit_code=3, specdiag="0.2",
                     audited="2026-11-29T11:00:00+00:00")]  # fmt: skip


ROWS = [
    *made("good"), *made("noted", "info"), *made("warned", "warn", "warn"), *made("worst", *["fail"] * 7, check="zero"),
    *made("bad", "fail", "warn"), *failed("gone", "no such file"),
]  # fmt: skip


def save(path: Path, rows: list[FleetRow]) -> Path:
    path.write_bytes(table.encode(rows))
    return path


@pytest.fixture
def page(tmp_path):
    return fleet_page(load_models(save(tmp_path / "fleet.parquet", ROWS)), "fleet.parquet")


def test_models_are_ranked_by_findings(tmp_path):
    models = load_models(save(tmp_path / "fleet.parquet", ROWS))
    assert [model.row.source for model in models] == ["worst", "bad", "warned", "noted", "gone", "good"]
    turned = save(tmp_path / "turned.parquet", ROWS[::-1])
    assert [(m.row, set(m.findings)) for m in load_models(turned)] == [(m.row, set(m.findings)) for m in models]


def test_the_page_has_models_checks_failures_and_settings(page):
    assert "6 models: 2 passed, 1 with warnings, 2 failed, 1 not audited." in page
    assert "2026-11-29T10:00:00+00:00 to 2026-11-29T11:00:00+00:00, specdiag 0.2" in page
    text = re.sub(r"<[^>]+>", " ", page)
    assert re.search(
        r"rank\s+fail\s+1\s+1\s+it matters\s+zero\s+fail\s+1\s+7\s+it matters\s+rank\s+warn\s+2\s+3\s", text
    )
    assert re.search(r"gone\s+no such file", text)
    assert "and 2 more rows of the table" in text
    assert "layer.4: value 4" in re.sub(r"\s*\.\s*<wbr>", ".", page).replace(".<wbr>", ".")
    assert "It matters. What to do: train on." in page
    assert "Not checked: tied (&lt;b&gt;no&lt;/b&gt;)." in page
    assert "no such file" in page
    assert not re.search(r"(src|href)=\"(?!#)", page)
    assert json.loads(Read(page).text["pre"]) == [
        {"settings": "dtype='auto'", "models": 5}, {"settings": "", "models": 1},
    ]  # fmt: skip


def test_equal_input_gives_an_equal_page(page, tmp_path):
    assert fleet_page(load_models(save(tmp_path / "again.parquet", ROWS)), "fleet.parquet") == page


def test_a_page_of_nothing():
    read = Read(fleet_page([], "fleet.parquet"))
    assert "0 models: none." in read.text["p"]


def test_hostile_names_stay_text(page):
    evil = []
    for i, text in enumerate(HOSTILE):
        row, finding = made(f"{text}{i}", "fail", check=text, commit=text, settings=text, specdiag=text, audited=text,
                            decay=text, coverage=COVERAGE.replace("<b>no</b>", "<script>alert(1)</script>"))  # fmt: skip
        evil.append(FleetModel(row, (replace(finding, module=text, words=text, why=text, advice=text),)))
        evil += [FleetModel(failed(f"gone{text}", text)[0], ())]
    text = fleet_page(evil, HOSTILE[0])
    expected, read = Read(page), Read(text)
    for tag in ("script", "img", "style", "meta", "iframe"):
        assert len(read.of(tag)) == len(expected.of(tag)), tag
    assert not [attrs for _, attrs in read.elements if any(name.startswith("on") for name in attrs)]
    assert "<script>alert" not in text
    assert "1337" not in text
    assert "<!--" not in text
    assert not re.search("[‪-‮‏]", text)
    assert "alert(1)" in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([*ROWS, *made("bad")], "has the model 'bad' twice"),
        (ROWS[:-2], "has 1 findings of 'bad', and its row counts 2: keep all rows of a model"),
        (ROWS[1:], None),
        ([row for row in ROWS if row.kind == "finding"], "has findings of 'bad', and no row of that model"),
        ([row for row in ROWS if row.kind == "model"], "and its row counts 1: keep all rows of a model"),
    ],
)
def test_tables_that_lack_rows(tmp_path, rows, said):
    path = save(tmp_path / "fleet.parquet", rows)
    if said is None:
        assert len(load_models(path)) == 5
        return
    with pytest.raises(SourceError, match=re.escape(said)):
        load_models(path)


def test_damaged_coverage(tmp_path):
    with pytest.raises(SourceError, match="the coverage of 'a' is damaged"):
        fleet_page(load_models(save(tmp_path / "a.parquet", made("a", coverage='{"n_tensors":'))), "a")


def test_tables_that_others_wrote(tmp_path):
    import pandas
    import pyarrow
    import pyarrow.parquet

    path = save(tmp_path / "fleet.parquet", ROWS)
    pandas.read_parquet(path).to_parquet(tmp_path / "pandas.parquet")
    assert load_models(tmp_path / "pandas.parquet") == load_models(path)
    read = pyarrow.parquet.read_table(path)
    large = pyarrow.schema(
        [(f.name, pyarrow.large_string() if f.type == pyarrow.string() else f.type) for f in read.schema]
    )
    pyarrow.parquet.write_table(read.cast(large), tmp_path / "large.parquet", store_schema=False)
    assert load_models(tmp_path / "large.parquet") == load_models(path)
    for column, content in (("kind", "other"), ("verdict", "fine"), ("n_fail", 1.5)):
        values = [content] * read.num_rows
        changed = read.set_column(read.schema.get_field_index(column), column, pyarrow.array(values))
        pyarrow.parquet.write_table(changed, tmp_path / "bad.parquet")
        with pytest.raises(SourceError, match="is no audit of a fleet"):
            load_models(tmp_path / "bad.parquet")


def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    n = 40_000
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * n, pyarrow.int32()), pyarrow.array(["x" * 100_000]))
    columns = dict.fromkeys(table.COLUMNS, text) | {"kind": pyarrow.array(["model"] * n)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10 << 20
    with pytest.raises(SourceError, match="unpacks to more than 1024 MiB"):
        load_models(tmp_path / "bomb.parquet")


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "fleet.parquet", ROWS)
    done = execute("report", "fleet.parquet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "written: fleet.specdiag.html\n")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "fleet.parquet").read_bytes()[:-9])
    for arguments, code, said in [
        (["fleet.parquet", "--plan", "p.json", "--dtype", "float32"], 2, "leave out --dtype, --plan"),
        (["cut.parquet"], 3, "cut.parquet is damaged ("),
        (["fleet.parquet", "-o", "a.json"], 2, "a page is saved as .html"),
    ]:
        done = invoke("report", *arguments)
        assert (done.exit_code, said in done.stderr) == (code, True), done.stderr
    monkeypatch.setattr("specdiag.storage.pyarrow.find_spec", lambda _: None)
    assert (
        "parquet needs pyarrow: pip install 'spectral-diagnostics[parquet]'" in invoke("report", "fleet.parquet").stderr
    )


def test_a_browser_opens_a_model_and_runs_no_name(tmp_path):
    executable = browser.find()
    if executable is None:
        pytest.skip("no browser: install chromium, or name one in SPECDIAG_BROWSER")
    assert Path(executable).exists(), f"SPECDIAG_BROWSER={os.environ['SPECDIAG_BROWSER']} is not there"
    rows = [*ROWS, *(row for text in HOSTILE for row in made(text, "info"))]
    path = tmp_path / "fleet.html"
    path.write_text(fleet_page(load_models(save(tmp_path / "fleet.parquet", rows)), "fleet.parquet"), encoding="utf-8")
    with browser.chromium(executable) as tab:
        tab.open(path)
        assert tab.run(COLUMN % 0)[:3] == ["worst", "bad", "warned"]
        tab.click("#records thead th:nth-child(4) button")
        tab.click("#records thead th:nth-child(4) button")
        assert tab.run(COLUMN % 0)[:2] == ["warned", "bad"]
        tab.click("#records tbody tr:first-child a")
        tab.wait('document.querySelector(".module:target h2").textContent === "warned"')
        assert tab.run("document.querySelectorAll('img, iframe').length") == 0
        assert tab.complaints() == []
        assert tab.requests() == [path.resolve().as_uri()]
