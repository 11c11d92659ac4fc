"""`specdiag audit`: its formats, exit codes and options."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest
from audited_models import CONFIG, found, llama, name, row, save
from command import execute, invoke
from hub_stand_in import HubStandIn, Repo
from models import PLACES
from saved_reports import made

import specdiag
from specdiag.auditing.records import AuditReport


def cli(*arguments, **options):
    return invoke("audit", *arguments, **options)


@pytest.fixture
def faulty(tmp_path):
    """A report with a failure, a hundred warnings, and names that are markup."""
    hostile = "evil|`<script>alert(1)</script>`[x](javascript:1)\x1b[31m\n**bold**"
    records = [row(name(i, PLACES[0]), "q", i, n_dead_rows=1) for i in range(100)]
    path = tmp_path / "faulty.json"
    made([*records, row(hostile, "other", None, status="nonfinite", n_nonfinite=3)]).save(path)
    return path


def test_table(faulty):
    done = cli(faulty)
    assert done.exit_code == 1
    assert "FAIL: made: 1 failure (nonfinite), 100 warnings" in done.stdout
    assert done.stdout.index("nonfinite") < done.stdout.index("dead_rows")
    assert "100 findings (--all)" in done.stdout
    assert name(70, PLACES[0]) not in done.stdout
    assert done.stdout.count("What to do:") == 2
    assert "checks ran" in done.stdout
    assert "checks that need --baseline (13)," in " ".join(done.stdout.split())
    assert "baseline_* (needs --baseline)" in " ".join(cli(faulty, "--all").stdout.split())
    assert "\x1b[31m" not in done.stdout
    assert name(70, PLACES[0]) in cli(faulty, "--all").stdout


def test_a_narrow_table_keeps_the_expected_value(tmp_path):
    made([row(name(i, PLACES[0]), "q", i, n_dead_rows=3) for i in range(2)]).save(tmp_path / "m.json")
    for width in (60, 80, 120):
        words = " ".join(cli(tmp_path / "m.json", width=width).stdout.split())
        assert words.count("rows zero, expected none") >= 1, width


def test_markdown_shows_hostile_names_as_text(faulty):
    done = cli(faulty, "-f", "md")
    (line,) = [line for line in done.stdout.splitlines() if "evil" in line]
    assert "<script>" not in line
    assert r"evil\|\`&lt;script&gt;" in line
    assert r"\[x\](javascript:1)" in line
    assert r"\x1b" in line
    assert "| 100 findings | " in done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {4}


def test_json_has_a_schema_and_can_be_read_back(faulty, tmp_path):
    done = cli(faulty, "-f", "json")
    audit = msgspec.json.decode(done.stdout, type=AuditReport)
    assert (audit.schema, audit.verdict, audit.counts) == (8, "fail", {"fail": 1, "warn": 100, "info": 0})
    assert audit.findings[0].module.startswith("evil|`<script>")
    assert audit == specdiag.audit(faulty)
    assert all(f.why and f.advice for f in audit.findings)
    out = tmp_path / "audit.json"
    assert cli(faulty, "-o", out).exit_code == 1
    assert msgspec.json.decode(out.read_bytes(), type=AuditReport) == audit
    assert cli(faulty, "-f", "md", "-o", tmp_path / "audit.md").stdout == ""
    assert (tmp_path / "audit.md").read_text().startswith("## specdiag audit: FAIL")


def test_exit_codes(faulty, tmp_path):
    clean, warned = tmp_path / "clean.json", tmp_path / "warned.json"
    made([row("a", "q", None)]).save(clean)
    made([row("a", "q", None, n_dead_rows=1)]).save(warned)
    assert cli(clean, "--fail-on", "warn").exit_code == 0
    assert cli(warned).exit_code == 0
    assert cli(warned, "--fail-on", "warn").exit_code == 1
    assert cli(faulty).exit_code == 1
    (tmp_path / "softer.toml").write_text('[nonfinite]\nseverity = "info"\n')
    assert cli(faulty, "--thresholds", tmp_path / "softer.toml").exit_code == 0
    for wrong in (["--thresholds", tmp_path / "none.toml"], ["--randomize"], ["--role", "q"], ["--lr", "1e-3"],
                  ["-o", tmp_path / "no" / "where.json"], ["-f", "csv"], ["--fail-on", "info"]):  # fmt: skip
        assert cli(clean, *wrong).exit_code == 2, wrong
    assert cli(tmp_path / "absent.json").exit_code == 3
    assert cli(clean, "--baseline", tmp_path / "absent.json").exit_code == 3


def test_the_command_on_a_checkpoint_with_nan_and_a_decay(tmp_path):
    state = llama(0)
    state[name(1, PLACES[2])][0, 0] = np.nan
    folder = save(tmp_path / "model", state)
    done = cli(folder, "--weight-decay", "0.1", "--lr", "1e-3", "--role", "v", "--device", "cpu")
    assert done.exit_code == 1, done.output
    assert "consistent with weight decay 0.1 at lr 0.001" in done.stdout
    assert "This assumes AdamW" in done.stdout
    assert name(1, PLACES[2]) in done.stdout


def test_a_model_on_the_hub(tmp_path):
    state = llama(0, layers=1)
    state["model.norm.weight"][0] = np.nan
    folder = save(tmp_path / "model", state, CONFIG | {"num_hidden_layers": 1})
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    with HubStandIn({"org/model": Repo(files)}) as hub:
        environment = hub.environment(tmp_path / "home")
        done = execute("audit", "org/model", "-f", "json", "--device", "cpu", "--no-reference-model", env=environment)
        assert hub.downloads().count("model.safetensors") == 1
    assert done.returncode == 1, done.stderr
    audit = msgspec.json.decode(done.stdout, type=AuditReport)
    assert found(audit) == {("nonfinite", "model.norm.weight")}
    assert audit.source.commit == hub.repos["org/model"].commit
