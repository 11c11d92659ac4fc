"""The options that commands share, the files that they write, and the switches that go anywhere."""

import json
from pathlib import Path

import pytest
import typer
from command import invoke as run
from models import random_state, write_checkpoint

from cli import options, shared_options, targets
from cli.main import app
from specdiag.analysis.options import ANALYSIS, COMPARED, RUN, UNSELECTED
from specdiag.errors import UsageError

PROGRAM = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
COMMANDS = {**PROGRAM, "reference": PROGRAM["reference"].commands["build"]}
LIBRARY = {
    "analyze": ANALYSIS, "audit": ANALYSIS, "plot": ANALYSIS, "report": ANALYSIS,
    "recommend": (*UNSELECTED, "include", "exclude", "roles"),
    "compare": (*COMPARED, "base", "include", "exclude", "roles"),
    "trajectory": (*RUN, "stream"), "watch": RUN, "reference": ANALYSIS,
    "lineage": ("part", "base", "stream", "role_map", "device", "jobs", "memory", "cache"),
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "ckpt")


def write(folder, seed=0):
    names = [f"model.layers.{i}.{m}_proj.weight" for i in range(2) for m in ("self_attn.q", "self_attn.k", "mlp.up")]
    return write_checkpoint(folder, random_state(dict.fromkeys(names, (64, 64)), seed))


def test_a_command_takes_what_the_table_says_and_the_library_knows():
    for command, names in shared_options.TAKES.items():
        parameters = {p.name: p for p in COMMANDS[command].params}
        assert set(names) <= set(parameters), command
        assert {name: "roles" if name == "role" else name for name in names}.keys() <= set(parameters)
        assert {"roles" if name == "role" else name for name in names} <= set(LIBRARY[command]), command
        for name, panel in ((name, parameters[name].rich_help_panel) for name in names):
            assert panel in options.PANELS, name


@pytest.mark.parametrize("command", ["audit", "recommend", "plot", "report"])
def test_source_options_are_those_of_analyze(command):
    source = {"revision", "file", "base", "stream", "role_map", "experts", "seed"}
    assert source <= set(shared_options.TAKES[command]) & set(shared_options.TAKES["analyze"])


def test_panels_stand_in_their_order():
    for command in shared_options.TAKES:
        found = [p.rich_help_panel for p in COMMANDS[command].params if getattr(p, "rich_help_panel", None)]
        shared = [panel for panel in dict.fromkeys(found) if panel in options.PANELS]
        assert shared == [panel for panel in options.PANELS if panel in shared], command


def test_every_option_of_a_command_has_a_panel():
    for command, found in COMMANDS.items():
        for option in (p for p in found.params if p.param_type_name == "option" and not p.hidden):
            assert option.rich_help_panel, f"{command} {option.opts[0]}"


def test_a_refused_value_is_named_without_the_word_of_pydantic():
    done = run("recommend", "X", "--lr-schedule", "cosine")
    assert done.exit_code == 2
    assert "Value error" not in done.stderr
    assert "'cosine' is not one of" in done.stderr


@pytest.mark.parametrize(
    "command",
    [["audit", "X"], ["recommend", "X"], ["plot", "alpha", "X"], ["report", "X"], ["compare", "X", "X"]],
)
def test_source_options_reach_the_reader(checkpoint, command):
    done = run(*(checkpoint if word == "X" else word for word in command), "--file", "other.safetensors")
    assert done.exit_code == 2, done.stderr
    assert "has no file 'other.safetensors'" in done.stderr


def test_an_included_matrix_is_drawn_and_saved_reports_refuse_the_rest(checkpoint, tmp_path):
    assert run("-q", "analyze", checkpoint).exit_code == 0
    report = tmp_path / "ckpt.specdiag.json"
    assert run("plot", "scree", report, "--include", "*mlp*", "-o", "a.svg").exit_code == 0
    done = run("plot", "scree", report, "--jobs", "2", "--no-cache", "-o", "b.svg")
    assert "is a saved report, taken as it is: --jobs, --cache needs the checkpoint itself" in done.stderr
    assert not Path("b.svg").exists()
    done = run("recommend", report, "--include", "*mlp*", "--rule", "uniform", "--export", "csv")
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (5, 40):
        write(tmp_path / "run" / f"checkpoint-{step}", seed=step)
    for command in (["recommend", "run", "-o", "plan.json"], ["plot", "alpha", "run", "-o", "a.svg"]):
        done = run(*command)
        assert done.exit_code == 0, done.stderr
        assert "taking the newest checkpoint of this run, run/checkpoint-40" in done.stderr
    assert json.loads(Path("plan.json").read_text())["source"]["location"].endswith("checkpoint-40")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"damaged")
    done = run("recommend", "run")
    assert done.exit_code == 3, "a damaged model is not passed over for a checkpoint"
    assert "model.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["analyze", "X", "-o", "a.csv"], "'a.csv' would hold JSON: name a .json file, or choose -f csv"),
        (["analyze", "X", "-f", "csv", "-o", "a.json"], "'a.json' would hold csv: name a .csv file"),
        (["analyze", "X", "-f", "csv", "-o", "a.parquet"], "'a.parquet' would hold csv"),
        (["audit", "X", "-o", "a.md"], "'a.md' would hold JSON: name a .json file"),
        (["audit", "X", "-f", "md", "-o", "a.json"], "'a.json' would hold Markdown: name a .md file"),
        (["compare", "X", "X", "-o", "a.txt"], "'a.txt' would hold JSON"),
        (["compare", "X", "X", "-f", "csv", "-o", "a.json"], "'a.json' would hold csv"),
        (["recommend", "X", "--export", "torch", "-o", "a.json"], "'a.json' would hold Python code: name a .py file"),
        (["recommend", "X", "--export", "toml", "-o", "a.py"], "'a.py' would hold TOML"),
        (["recommend", "X", "-o", "a.py"], "'a.py' would hold JSON: name a .json file, or add --export"),
        (["recommend", "X", "--export", "yaml"], "'yaml' is not one of 'torch'"),
        (["simulate", "-f", "csv", "-o", "a.json"], "'a.json' would hold csv"),
        (["simulate", "-o", "a.csv"], "'a.csv' would hold JSON"),
        (["trajectory", "X", "-f", "csv", "-o", "a.csv"], "--out names a folder, and 'a.csv' looks like a file; the"),
        (["watch", "X", "--once", "-o", "a.csv"], "--out names a folder, and 'a.csv' looks like a file"),
        (["trajectory", "X", "-f", "csv", "-o", "a.json"], "--out names a folder, and 'a.json' looks like a file; the"),
    ],
)
def test_a_file_of_another_kind_is_not_overwritten(checkpoint, command, sentence):
    for name in ("a.json", "a.csv", "a.md", "a.py", "a.parquet", "a.txt"):
        Path(name).write_text("kept")
    done = run(*(checkpoint if word == "X" else word for word in command))
    assert done.exit_code == 2, done.stderr
    assert sentence in done.stderr
    assert {p.read_text() for p in Path().glob("a.*")} == {"kept"}


def test_devices_and_unknown_suffixes_are_no_contradiction():
    targets.check_file(Path("/dev/null"), "json")
    targets.check_file(Path("table.txt"), "csv")
    targets.check_file(Path("a.JSON"), "table")
    targets.check_file(None, "csv")
    with pytest.raises(UsageError):
        targets.check_file(Path("table"), "json")


@pytest.mark.parametrize("args", [["-q", "analyze", "X"], ["analyze", "X", "-q"], ["analyze", "-q", "X", "--quiet"]])
def test_quiet_goes_before_and_after_the_command(checkpoint, args):
    done = run(*(checkpoint if word == "X" else word for word in args))
    assert (done.exit_code, done.stderr) == (0, "")
    loud = run("analyze", checkpoint)
    assert "report: ckpt.specdiag.json" in loud.stderr, "one call says nothing of the next"


def test_debug_after_the_command_shows_the_traceback():
    assert "Traceback" in run("analyze", "./nosuch", "--debug").stderr
    assert "Traceback" not in run("analyze", "./nosuch").stderr


@pytest.mark.parametrize("command", [["plot", "alpha"], ["report"]])
def test_no_analysis_is_announced_of_what_is_not_there(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*command, "nosuch.json")
    assert done.exit_code == 3
    assert "no such file" in done.stderr
    assert "analysing" not in done.stderr


def test_one_source_is_none_to_compare(checkpoint):
    done = run("compare", checkpoint)
    assert done.exit_code == 2
    assert f"name two to compare, BEFORE and AFTER: only '{checkpoint}' was named" in done.stderr
    assert "name two to compare, not 3" in run("compare", checkpoint, checkpoint, checkpoint).stderr


def test_options_are_named_as_they_are_typed():
    """`options.listed` has only the names of parameters to go by."""
    for command in COMMANDS.values():
        for parameter in command.params:
            if parameter.opts[0].startswith("--"):
                assert options.listed([parameter.name]) in (*parameter.opts, *parameter.secondary_opts)


@pytest.mark.parametrize(("command", "format"), [("analyze", "json"), ("audit", "sarif"), ("compare", "md")])
def test_a_format_that_is_typed_as_an_option_is_named(command, format):
    done = run(command, "model", f"--{format}")
    assert done.exit_code == 2
    assert f"No such option: --{format} (Possible options: --format {format})" in " ".join(done.output.split())
