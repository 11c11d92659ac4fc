"""Findings that a file of thresholds excuses by module: they leave the verdict, and are listed with their reason."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest
from audited_models import row
from command import invoke
from saved_reports import made

import specdiag
from specdiag.auditing.thresholds import load_checks
from specdiag.errors import UsageError

REASON = "nothing reads it"


@pytest.fixture
def source(tmp_path):
    rows = [row(name, "q", None, n_dead_rows=9) for name in ("pooler.dense", "pooler.other", "encoder.a")]
    made(rows).save(tmp_path / "m.json")
    return tmp_path / "m.json"


@pytest.fixture
def thresholds(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[dead_rows.ignore]\n"pooler.*" = "{REASON}"\n"pool.*" = "misspelt"\n"encoder.b" = "no such one"\n'
    )
    return path


def test_an_excused_finding_leaves_the_verdict_and_stays_in_the_report(source, thresholds):
    audit = specdiag.audit(source, thresholds=thresholds)
    assert [f.module for f in audit.findings if f.check == "dead_rows"] == ["encoder.a"]
    by_pattern = {e.pattern: e for e in audit.coverage.excused}
    assert [f.module for f in by_pattern["pooler.*"].findings] == ["pooler.dense", "pooler.other"]
    assert by_pattern["pooler.*"].reason == REASON
    assert by_pattern["pool.*"].findings == by_pattern["encoder.b"].findings == ()
    whole = specdiag.audit(source, thresholds={"dead_rows": {"ignore": {"*": "pruned"}}})
    assert (whole.verdict, whole.counts["warn"]) == ("pass", 0)


def test_an_excuse_is_of_one_check(source):
    audit = specdiag.audit(source, thresholds={"rank": {"ignore": {"*": "low rank by design"}}})
    assert sum(f.check == "dead_rows" for f in audit.findings) == 3


@pytest.mark.parametrize("format", ["table", "md", "sarif", "junit", "json"])
def test_every_format_lists_it_with_its_reason(source, thresholds, format):
    place = ("--sarif-location", "ci.yml") if format == "sarif" else ()
    done = invoke("audit", source, "--thresholds", thresholds, "-f", format, *place)
    assert REASON in done.stdout
    assert "pooler.dense" in done.stdout
    if format == "table":
        assert "1 warning (dead_rows), 2 excused" in done.stdout.splitlines()[0]
        assert "Nothing to excuse: 'pool.*' in [dead_rows.ignore] matches no finding." in done.stdout
    if format == "sarif":
        (run,) = json.loads(done.stdout)["runs"]
        assert [r["ruleId"] for r in run["results"]].count("dead_rows") == 1
    if format == "junit":
        cases = {case.get("name"): case for case in ElementTree.fromstring(done.stdout).iter("testcase")}
        assert "encoder.a" in cases["dead_rows"][0].text
        assert REASON in cases["dead_rows"][1].text


def test_the_exit_code_goes_by_what_is_left(source, tmp_path):
    assert invoke("audit", source, "--fail-on", "warn").exit_code == 1
    toml = tmp_path / "all.toml"
    toml.write_text('[dead_rows.ignore]\n"*" = "pruned"\n')
    assert invoke("audit", source, "--fail-on", "warn", "--thresholds", toml).exit_code == 0


@pytest.mark.parametrize(
    ("ignore", "said"),
    [
        (["pooler.*"], """below [random.ignore] stands "pattern" = "reason\""""),
        ({"pooler.*": 3}, "'random' is not understood"),
        ({"pooler.*": " "}, "'random' ignores 'pooler.*' without a pattern or a reason"),
        ({"": "why"}, "'random' ignores '' without a pattern or a reason"),
    ],
)
def test_an_excuse_needs_a_pattern_and_a_reason(ignore, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        load_checks({"random": {"ignore": ignore}})
