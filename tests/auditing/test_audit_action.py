"""The composite action and the pre-commit hook: their own lines are run, beside a model that fails and one that passes."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from audited_models import row
from command import call
from saved_reports import made

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


@pytest.fixture
def runner(tmp_path):
    """The folder of a runner on which the first step has installed specdiag."""
    program = tmp_path / "temp" / "specdiag" / "bin" / "specdiag"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m specdiag "$@"\n')
    program.chmod(0o755)
    (tmp_path / ".git").mkdir()
    faults = {"clean": {}, "warned": {"n_dead_rows": 1}, "failed": {"status": "nonfinite", "n_nonfinite": 3}}
    for name, fault in faults.items():
        made([row("w", "q", None, **fault)]).save(tmp_path / f"{name} model.json")
    return tmp_path


def step(runner, name, **inputs):
    """Run a step as the runner does: inputs in the place of their expressions, the script in a file of its own."""
    given = {key: inputs.pop(key.replace("-", "_"), one.get("default")) for key, one in ACTION["inputs"].items()}
    assert not inputs
    (found,) = (each for each in ACTION["runs"]["steps"] if each["name"] == name)
    assert "${{" not in found["run"], "an input in a script is run"
    values = {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: given[match[1]], value)
              for key, value in found.get("env", {}).items()}  # fmt: skip
    script = runner / "step.sh"
    script.write_text(found["run"])
    files = {name: str(runner / name.lower()) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    own = {
        "RUNNER_TEMP": str(runner / "temp"),
        "GITHUB_ACTIONS": "true",
        "GITHUB_ACTION_PATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    line = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    done = call(line, cwd=runner, env={**os.environ, "PYTHONPATH": str(ROOT), **files, **own, **values})
    output = runner / "github_output"
    return done, dict(line.split("=", 1) for line in output.read_text().splitlines()) if output.exists() else {}


def test_the_audit_fails_the_step_and_is_the_summary_of_the_job(runner):
    done, output = step(runner, "audit", sources="clean model.json\nfailed model.json\n")
    assert done.returncode == 1, done.stderr
    assert output["exit-code"] == "1"
    assert "::error file=failed model.json," in done.stderr
    summary = (runner / "github_step_summary").read_text()
    alone = ", by names and shapes alone (a report does not carry config.json: audit the checkpoint)"
    assert [line for line in summary.splitlines() if line.startswith("## ")] == [
        f"## specdiag audit: PASS: made: no findings{alone}", f"## specdiag audit: FAIL: made: 1 failure (nonfinite){alone}",
    ]  # fmt: skip
    assert Path(output["out"]).read_text() == summary


def test_inputs_are_words_and_never_a_script(runner):
    (runner / "audit.toml").write_text('[dead_rows]\nseverity = "info"\n')
    done, output = step(
        runner, "audit", sources="warned model.json", fail_on="warn", thresholds="audit.toml", format="sarif",
        out="all.sarif", options="-q\n",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert output == {"exit-code": "0", "out": "all.sarif"}
    assert json.loads((runner / "all.sarif").read_text())["runs"][0]["results"][0]["level"] == "note"
    evil = ["$(touch evil)", "`touch evil`", '"; touch evil; "', "--help"]
    done, output = step(runner, "audit", sources="\n".join(evil), baseline=evil[0], thresholds=evil[1], options=evil[2])
    assert (done.returncode, output["exit-code"]) == (2, "2"), done.stdout
    done, output = step(runner, "audit", sources="\n".join(evil))
    assert (done.returncode, output["exit-code"]) == (3, "3"), done.stdout
    assert not (runner / "evil").exists()


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_a_path_cannot_set_another_output(runner, end):
    done, output = step(runner, "audit", sources="failed model.json", out=f"a.json{end}exit-code=0")
    assert (done.returncode, output) == (2, {})
    assert "'out' has a line break" in done.stdout


def test_the_first_step_installs_the_checked_out_action(runner):
    (install,) = (each["run"] for each in ACTION["runs"]["steps"] if each["name"] == "install")
    programs = runner / "bin"
    programs.mkdir()
    (programs / "python3").write_text('#!/bin/sh\nmkdir -p "$3/bin"\ncp "$0" "$3/bin/python"\necho "$@"\n')
    (programs / "python3").chmod(0o755)
    (runner / "install.sh").write_text(install.replace("$RUNNER_TEMP/specdiag", "$RUNNER_TEMP/made"))
    path = f"{programs}:{os.environ['PATH']}"
    env = {"PATH": path, "RUNNER_TEMP": str(runner / "temp"), "GITHUB_ACTION_PATH": str(ROOT)}
    done = call(["bash", "-eo", "pipefail", str(runner / "install.sh")], cwd=runner, env=env)
    assert done.returncode == 0, done.stderr
    made_, installed = done.stdout.splitlines()
    assert made_.split() == ["-m", "venv", f"{runner}/temp/made"]
    assert installed.split()[:3] == ["-m", "pip", "install"]
    assert installed.split()[-1] == str(ROOT)


def test_the_hook_takes_the_weight_files_of_a_commit(runner):
    taken = re.compile(HOOK["files"])
    names = ["a/model.safetensors", "b.gguf", "a/config.json", "a/model.safetensors.index.json", "notes.md"]
    assert [name for name in names if taken.search(name)] == names[:2]
    assert HOOK["language"] == "python"
    program, *words = shlex.split(HOOK["entry"])
    assert program == "specdiag"
    env = {"PYTHONPATH": str(ROOT)}
    files = [str(runner / f"{name} model.json") for name in ("clean", "failed")]
    line = [sys.executable, "-m", program, *words]
    assert call([*line, files[0]], cwd=runner, env=env).returncode == 0
    assert call([*line, *files], cwd=runner, env=env).returncode == 1
