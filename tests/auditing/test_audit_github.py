"""The audit in a step of GitHub Actions: annotations, and names that must not become commands."""

from __future__ import annotations

import json
import os

import pytest
from audited_models import llama, name, row, save
from command import execute, invoke
from models import PLACES
from saved_reports import made
from workflow_log import commands

from specdiag.auditing.records import load_audit
from specdiag.text.printable import printable

HOSTILE = ["::error file=a::x", "  ::add-mask::w", "a##[error]x", "##[add-mask]w", "\n::error::y", "100%,a:b\r\n::z::"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return tmp_path


def test_findings_are_annotated_beside_their_file(repository):
    state = llama(0)
    state[name(1, PLACES[2])][0, 0] = float("nan")
    state[name(2, PLACES[0])][:3] = 0
    save(repository / "models" / "a,b:c", state)
    done = invoke("audit", "models/a,b:c", "--device", "cpu")
    found = commands(done.stdout, done.stderr)
    assert found == commands(done.stderr)
    assert [(kind, given["title"]) for kind, given, _ in found] == [
        ("error", "specdiag audit: nonfinite"), ("warning", "specdiag audit: dead_rows"),
    ]  # fmt: skip
    assert {given["file"] for _, given, _ in found} == {"models/a,b:c/model.safetensors"}
    assert found[1][2].startswith(f"{name(2, PLACES[0])}: 4.69 % of the rows zero, expected none. These outputs")
    assert "What to do: " in found[1][2]


def test_there_are_ten_of_a_kind_and_the_rest_is_counted(repository):
    made([row(f"w{i}", "q", None, n_dead_rows=1) for i in range(30)]).save(repository / "r.json")
    made([row(f"n{i}", "q", None, status="nonfinite", n_nonfinite=1) for i in range(10)]).save(repository / "s.json")
    done = invoke("audit", "r.json", "s.json", "absent.json")
    found = commands(done.stderr)
    assert [kind for kind, _, _ in found] == ["error"] * 10 + ["warning"] * 10
    assert found[9][2].startswith("2 more errors")
    assert found[19][2].startswith("21 more warnings")
    assert done.stdout.splitlines()[-1].startswith("failed because --fail-on fail: 10 failures; 3 sources")


def test_a_source_that_cannot_be_read_is_an_error_without_a_file(repository):
    done = invoke("audit", "absent.json", "-f", "json")
    assert commands(done.stderr) == [
        ("error", {"title": "specdiag audit"},
         "absent.json: no such file or directory: 'absent.json'; give a path, or a hub model as org/name"),
    ]  # fmt: skip


@pytest.mark.parametrize("format", ["table", "json", "md", "sarif", "junit"])
def test_names_are_no_commands(repository, format):
    made([row(hostile, "q", None, n_dead_rows=1) for hostile in HOSTILE]).save(repository / "r.json")
    rows = ("--all",) if format in ("table", "md") else ()
    done = invoke("audit", "r.json", "-f", format, *rows)
    assert commands(done.stdout) == []
    assert commands(invoke("audit", "r.json", "-f", format, *rows, width=40).stdout) == []
    own = commands(done.stderr)
    assert [(kind, given["file"]) for kind, given, _ in own] == [("warning", "r.json")] * len(HOSTILE)
    assert [message.partition(": 0.")[0] for _, _, message in own] == list(map(printable, HOSTILE))


def test_data_have_the_names_all_the_same(repository):
    made([row(hostile, "q", None, n_dead_rows=1) for hostile in HOSTILE]).save(repository / "r.json")
    audit = json.loads(invoke("audit", "r.json", "-f", "json").stdout)
    assert [finding["module"] for finding in audit["findings"]] == HOSTILE


@pytest.mark.parametrize("file", ["::error::x.json", " ::add-mask::a.json", "##[error]x.json"])
def test_names_of_sources_are_no_commands(repository, file):
    made([row("a", "q", None, n_dead_rows=1)]).save(repository / file)
    for arguments in (
        [file],
        [file, "./none"],
        [file, "-f", "md"],
        [file, "-f", "junit"],
        [f"./no{file}"],
        ["-f", file],
    ):
        done = invoke("audit", *arguments)
        found = commands(done.stdout, done.stderr)
        assert all(given.get("title", "").startswith("specdiag audit") for _, given, _ in found), found


def test_a_source_whose_name_is_no_text(repository):
    made([row("a", "q", None, n_dead_rows=1)]).save(repository / "r.json")
    path = os.fsdecode(b"\xff\n::error::x##[error]y.json")
    os.rename(repository / "r.json", path)
    done = execute("audit", path, "./none", env={"GITHUB_ACTIONS": "true"}, cwd=repository)
    assert done.returncode == 2
    assert commands(done.stdout, done.stderr) == []


def test_outside_of_a_step_there_is_no_annotation(repository, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS")
    made([row("a::b", "q", None, n_dead_rows=1)]).save(repository / "r.json")
    done = invoke("audit", "r.json")
    assert commands(done.stdout, done.stderr) == []
    assert "a::b" in done.stdout


def test_names_of_files_in_the_folder_that_are_no_text(repository):
    folder = save(repository / "model", llama(0))
    os.link(folder / "model.safetensors", folder / os.fsdecode(b"mod\xff\n::error::el##[error].safetensors"))
    for format in ("json", "md", "sarif", "junit"):
        done = invoke("audit", "model", "-f", format, "-o", f"out.{'xml' if format == 'junit' else format}")
        assert done.exit_code == 0, done.stderr
        assert commands(done.stderr) == []
    audit = load_audit("out.json")
    assert audit.source.ignored == (r"mod\udcff\n::error::el##[error].safetensors",)
