"""`specdiag audit A B C`: one exit code, one last line, and data that have a place for each source."""

from __future__ import annotations

import json

import msgspec
import pytest
from audited_models import row
from command import invoke
from saved_reports import made

import specdiag.auditing.audit as library
from specdiag.auditing.records import AuditReport


def cli(*arguments, **options):
    return invoke("audit", *arguments, **options)


@pytest.fixture
def sources(tmp_path):
    """A report that passes, one with a warning, one with a failure, and a name of nothing."""
    rows = {"clean": {}, "warned": {"n_dead_rows": 1}, "failed": {"status": "nonfinite", "n_nonfinite": 3}}
    for name, faults in rows.items():
        made([row("model.layers.0.self_attn.q_proj.weight", "q", 0, **faults)]).save(tmp_path / f"{name}.json")
    return {name: tmp_path / f"{name}.json" for name in (*rows, "absent")}


CASES = [
    (("clean",), "fail", 0, "passed because --fail-on fail: 0 failures, 0 warnings"),
    (("warned",), "fail", 0, "passed because --fail-on fail: 0 failures, 1 warning"),
    (("warned",), "warn", 1, "failed because --fail-on warn: 1 warning"),
    (("failed",), "warn", 1, "failed because --fail-on warn: 1 failure"),
    (("absent",), "fail", 3, "not passed because 1 source could not be read"),
    (("clean", "warned"), "fail", 0, "passed because --fail-on fail: 0 failures, 1 warning; 2 sources: 2 passed"),
    (("absent", "failed", "warned"), "warn", 1,
     "failed because --fail-on warn: 1 failure and 1 warning; 3 sources: 2 failed, 1 could not be read"),
    (("absent", "clean"), "fail", 3,
     "not passed because 1 source could not be read; 2 sources: 1 passed, 1 could not be read"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "fail_on", "code", "last"), CASES)
def test_exit_code_and_last_line(sources, names, fail_on, code, last):
    done = cli(*(sources[name] for name in names), "--fail-on", fail_on)
    assert done.exit_code == code
    printed = done.stderr if names == ("absent",) else done.stdout
    assert printed.splitlines()[-1] == last
    assert (f"no such file or directory: '{sources['absent']}'" in done.stderr) == ("absent" in names)
    data = cli(*(sources[name] for name in names), "--fail-on", fail_on, "-f", "json")
    assert data.exit_code == code
    assert data.stderr.splitlines()[-1] == last
    assert last not in data.stdout


def test_quiet_says_why_it_failed_and_nothing_else(sources):
    assert cli("-q", sources["clean"], "-f", "json").stderr == ""
    assert cli("-q", sources["failed"], "-f", "json").stderr == "failed because --fail-on fail: 1 failure\n"


@pytest.mark.parametrize(("error", "code"), [(MemoryError(), 4), (RuntimeError("no"), 4), (RecursionError(), 4)])
def test_a_source_that_breaks_the_program_hides_no_other(sources, monkeypatch, error, code):
    right = library.audit

    def audit(source, **more):
        if "warned" in source:
            raise error
        return right(source, **more)

    monkeypatch.setattr(library, "audit", audit)
    done = cli(sources["warned"], sources["clean"], "--fail-on", "warn")
    assert done.exit_code == code
    assert done.stdout.splitlines()[-1].endswith("2 sources: 1 passed, 1 could not be computed")
    with_worse = cli(sources["warned"], sources["absent"], sources["clean"])
    assert with_worse.exit_code == 3
    assert cli(sources["warned"], sources["absent"], sources["failed"]).exit_code == 1


def test_json_of_several_sources_is_a_list_in_their_order(sources, tmp_path):
    out = tmp_path / "all.json"
    done = cli(sources["failed"], sources["absent"], sources["clean"], "-f", "json", "-o", out)
    assert done.stdout == ""
    first, second, third = json.loads(out.read_bytes())
    assert [msgspec.convert(part, AuditReport).verdict for part in (first, third)] == ["fail", "pass"]
    assert second == {"source": str(sources["absent"]), "error": second["error"], "exit_code": 3}
    assert "no such file" in second["error"]
    table = cli(sources["failed"], sources["absent"], sources["clean"], "-o", tmp_path / "table.json")
    assert "FAIL: made: 1 failure (nonfinite)" in table.stdout
    assert (tmp_path / "table.json").read_bytes() == out.read_bytes()


def test_markdown_of_several_sources(sources):
    done = cli(sources["absent"], sources["failed"], "-f", "md")
    heads = [line for line in done.stdout.splitlines() if line.startswith("## ")]
    assert [head.split(":")[1].strip() for head in heads] == ["NOT AUDITED", "FAIL"]


def test_requests_that_cannot_be_served_are_refused_before_the_work(sources, tmp_path):
    for wrong in ([], ["--explain", "rank", sources["clean"]], ["--explain", "rank", "-f", "json"],
                  [sources["clean"], "--sarif-location", "a"], [sources["failed"], sources["clean"], "--randomize"],
                  [sources["failed"], sources["clean"], "-o", sources["clean"]]):  # fmt: skip
        done = cli(*wrong)
        assert done.exit_code == 2, wrong
        assert done.stdout == ""


def test_the_audit_of_a_report_says_which_checks_need_the_checkpoint(sources):
    said = [line for line in cli(sources["clean"], "--all").stdout.splitlines() if line][-2]
    assert said.startswith("Needs the checkpoint itself: ")
    assert "not_loaded, only_variant, index, wrapped, quantised, no_config, config_value, " in said
    assert said.endswith("and the values of norm gains and biases.")


def test_an_interruption_says_how_far_it_came(sources, tmp_path, monkeypatch):
    right = library.audit

    def audit(source, **more):
        if "warned" in source:
            raise KeyboardInterrupt
        return right(source, **more)

    def leave():
        raise SystemExit(130)

    monkeypatch.setattr(library, "audit", audit)
    monkeypatch.setattr("specdiag_cli.output.leave", leave)
    out = tmp_path / "out.json"
    done = cli(sources["clean"], sources["warned"], sources["failed"], "-o", out)
    assert done.exit_code == 130
    assert done.stderr == "interrupted: 1 of 3 sources were audited, and nothing was saved\n"
    assert not out.exists()
    assert cli(sources["warned"], sources["clean"]).stderr == "interrupted: nothing was audited\n"
