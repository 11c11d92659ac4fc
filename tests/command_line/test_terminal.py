"""Terminals of 80 columns: help fits, sentences wrap at words, names are shortened and never broken."""

import io
import re

import pytest
import typer
from command import execute, invoke
from models import random_state, write_checkpoint
from rich.console import Console
from rich.text import Text

from cli import tables
from cli.main import app
from cli.short_names import shorten
from cli.wrapping import wrapped
from specdiag.dynamics.updates import OPTIMIZERS
from specdiag.views.columns import Column
from specdiag.views.plan_export import FORMATS

COMMANDS = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
GROUPS = ("cache", "reference")
LEAVES = [(name,) for name in COMMANDS if name not in GROUPS]
LEAVES += [(group, name) for group in GROUPS for name in COMMANDS[group].commands]
NAMES = [
    f"encoder.layer.{i}.{place}.weight"
    for i in (4, 11)
    for place in ("attention.output.dense", "attention.self.key", "intermediate.dense", "output.dense")
]


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_help_fits_80_columns_and_ends_with_an_example(command):
    lines = invoke(*command, "--help", width=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = re.sub(r"[\s│]+", " ", " ".join(lines))
    assert f"Example: specdiag {' '.join(command)}" in text
    assert not re.search(r"<[a-z]", text)
    assert "…" not in text


def test_help_lists_the_choices():
    text = re.sub(r"[\s│]+", " ", invoke("recommend", "--help", width=80).stdout)
    assert f"One of {', '.join(FORMATS)}." in text
    text = re.sub(r"[\s│]+", " ", invoke("simulate", "--help", width=80).stdout)
    assert all(name in text for name in OPTIMIZERS)


def test_names_lose_what_they_share_and_stay_different():
    assert shorten(NAMES, 80) == NAMES
    assert shorten(NAMES, 28) == [
        "…4.attention.output.dense…", "…4.attention.self.key…", "…4.intermediate.dense…", "…4.output.dense…",
        "…11.attention.output.dense…", "…11.attention.self.key…", "…11.intermediate.dense…", "…11.output.dense…",
    ]  # fmt: skip
    for width in range(1, 50):
        short = shorten(NAMES, width)
        assert len(set(short)) == len(NAMES)
        if width >= 20:
            assert max(map(len, short)) <= width, (width, short)


@pytest.mark.parametrize("names", [["a"], ["a.b.c"] * 3, ["", "x"], ["model.layers.0.q" * 9], ["äö" * 30, "漢" * 30]])
def test_odd_names_are_shortened_too(names):
    for width in (1, 9, 30):
        assert len(set(shorten(names, width))) == len(set(names))


def test_an_outlier_does_not_shorten_the_others():
    assert shorten([*NAMES, "x" * 60], 46)[:-1] == NAMES


def test_sentences_are_broken_between_words():
    text = Text("changes every norm by -22 %; see encoder.layer.5.attention.output.dense.weight there")
    assert wrapped(text, 26, 2).plain.split("\n") == [
        "changes every norm by",
        "  -22 %; see",
        "  encoder.layer.5.attention.output.dense.weight",
        "  there",
    ]


def test_tables_of_many_experts_keep_names_and_their_number(tmp_path):
    shapes = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{w}.weight": (64, 64)
        for layer in range(10, 12)
        for expert in range(8)
        for w in (1, 2)
    }
    write_checkpoint(tmp_path / "moe", random_state(shapes))
    env = {"COLUMNS": "80"}
    shown = execute("-q", "analyze", "moe", "--top", "4", "-o", "m.json", cwd=tmp_path, env=env).stdout
    assert max(map(len, shown.splitlines())) <= 80
    rows = shown[shown.index("The 4 most extreme of 32 by square_alpha") :].splitlines()
    assert "square_alpha" in rows[1]
    assert all(re.match(r"…1[01]…experts\.\d\.w[12]…", row) for row in rows[2:6]), rows
    shown = execute("-q", "recommend", "m.json", "--top", "2", cwd=tmp_path, env=env).stdout
    assert "The 2 most extreme of 32 Parameters" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("width", [30, 40, 52])
def test_narrow_tables_lose_no_name_and_no_number(width):
    rows = [
        ("encoder.layer.4.attention.self.query.weight", 3.4651),
        ("encoder.layer.4.attention.self.key.weight", 2.127),
    ]
    heads = ("alpha", "square_alpha", "random square_alpha")
    columns = [Column("matrix", lambda row: row[0], right=False)]
    columns += [Column(head, lambda row: f"{row[1]:.4f}") for head in heads]
    console = Console(width=width, file=io.StringIO())
    console.print(tables.draw("Rows", columns, rows, width))
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for name, value in rows:
        assert name in shown.replace("\n", "")
        for head in heads:
            assert f"{head} {value:.4f}" in shown


def test_piped_sentences_stay_on_one_line_and_have_no_colour(tmp_path):
    write_checkpoint(tmp_path / "m", random_state({f"layers.{i}.mlp.up_proj.weight": (64, 64) for i in range(3)}))
    shown = execute("-q", "analyze", "m", "-o", "m.json", cwd=tmp_path).stdout
    assert "\x1b" not in shown
    shown = execute("-q", "recommend", "m.json", cwd=tmp_path).stdout
    assert max(map(len, shown.splitlines())) > 120


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["recommend", "R", "--rule", "uniform", "--clip", "5", "95"], "--rule uniform looks at no values: leave out --clip"),
        (["recommend", "R", "--rule", "none", "--preserve-mean"], "looks at no values: leave out --preserve-mean"),
        (["recommend", "R", "--lr-schedule", "constant"], "--lr-schedule 'constant' is of the steps left"),
        (["recommend", "R", "--export", "csv", "--all"], "--all is for tables, and csv has every row"),
        (["recommend", "R", "--export", "torch", "-o", "-"], "-o - would write a file called '-'"),
        (["trajectory", "R", "-o", "-"], "-o - would write a folder called '-'"),
        (["analyze", "R", "-f", "csv", "--all"], "--all is for tables, and csv has every row"),
        (["analyze", "R", "-f", "md", "--top", "3"], "--top 3 is for tables"),
        (["analyze", "R", "--all", "--top", "3"], "--all prints every row, --top 3 fewer"),
        (["analyze", "R", "--summary", "--top", "3"], "--summary is one line: leave out --top"),
        (["analyze", "R", "--seed", "3"], "nothing is drawn without --experts or --randomize"),
        (["compare", "R", "R", "--seed", "3"], "nothing is drawn without --experts"),
        (["audit", "R", "-f", "json", "--all"], "--all is for tables"),
        (["verify", "R", "R", "-f", "json", "--all"], "--all is for tables"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing_are_refused(tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "R", random_state({"layers.0.mlp.up_proj.weight": (64, 64)}))
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert sentence in re.sub(r"[\s│]+", " ", done.stderr)
    assert not (tmp_path / "-").exists()
