"""`specdiag audit -f junit`: a case for each check and source."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from audited_models import row
from command import invoke
from saved_reports import made
from workflow_log import commands

from specdiag.auditing.thresholds import default_checks

HOSTILE = '::error::x##[error]y\n::warning::z]]><!-- "\x00\x1b[31m\u202e\ufffe\ud7ff&amp;'


@pytest.fixture
def faulty(tmp_path):
    rows = [row(f"w{i}", "q", None, n_dead_rows=1) for i in range(7)]
    made([*rows, row(HOSTILE, "other", None, status="nonfinite", n_nonfinite=3)]).save(tmp_path / "faulty.json")
    return tmp_path / "faulty.json"


def suites(data):
    root = ElementTree.fromstring(data)
    assert root.tag == "testsuites"
    return {suite.get("name"): suite for suite in root}, root


def test_a_case_for_each_check_and_source(faulty, tmp_path):
    absent = tmp_path / "absent.json"
    done = invoke("audit", faulty, absent, "-f", "junit", "-o", tmp_path / "report.xml")
    assert done.exit_code == 1
    assert done.stdout == ""
    by_name, root = suites((tmp_path / "report.xml").read_bytes())
    assert list(by_name) == [str(faulty), str(absent)]
    (told,), cases = (by_name[str(faulty)].findall(tag) for tag in ("properties/property", "testcase"))
    assert told.get("value").startswith("by names and shapes alone (a report does not carry config.json")
    cases = {case.get("name"): case for case in cases}
    assert set(cases) == set(default_checks())
    assert all(case.get("classname") == str(faulty) for case in cases.values())
    (failure,) = cases["nonfinite"]
    assert failure.tag == "failure"
    assert "NaN or infinite values: 3, expected none" in failure.text
    (output,) = cases["dead_rows"]
    assert output.tag == "system-out"
    assert len(output.text.splitlines()) == 7
    (skipped,) = cases["trap"]
    assert (skipped.tag, skipped.get("message")) == ("skipped", "needs --randomize")
    assert len(cases["zero"]) == 0
    ((error,),) = by_name[str(absent)]
    assert error.tag == "error"
    assert f"no such file or directory: '{absent}'" in error.get("message")
    for name, tag in {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}.items():
        assert int(root.get(name)) == len(list(root.iter(tag)))
        assert [int(s.get(name)) for s in root] == [len(list(s.iter(tag))) for s in root]


def test_milder_findings_are_failures_where_they_fail(faulty):
    by_name, _ = suites(invoke("audit", faulty, "-f", "junit", "--fail-on", "warn").stdout)
    failed = [case.get("name") for case in by_name[str(faulty)] if case.find("failure") is not None]
    assert failed == ["nonfinite", "dead_rows"]


def test_hostile_names_stay_text(faulty):
    done = invoke("audit", faulty, "-f", "junit")
    assert commands(done.stdout) == []
    assert "##[" not in done.stdout
    by_name, _ = suites(done.stdout)
    (failure,) = by_name[str(faulty)].iter("failure")
    assert failure.text.startswith(r"""::error::x##[error]y\n::warning::z]]><!-- "\x00\x1b[31m\u202e\ufffe""")
    assert "&amp;" in failure.text
