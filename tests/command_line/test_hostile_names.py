"""Names from files of strangers, through every command: nothing of a name is obeyed, and none is lost."""

import csv
import io
import json
import os
import random
import re
import time

import pytest
from command import invoke
from models import random_state, write_checkpoint

import specdiag
from specdiag.text.printable import printable
from specdiag.views.export import from_csv

NASTY = [
    "\x1b[31m", "\x1b]0;t\x07", "\x9b31m", "\x00", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\u2028", "\x85", "\n",
    "\r\n", "\t", "\x08", "\u3164", "\U000e0041", "$x^", "$", "|", "`", "<script>", "<img src=x>", "=1+1", "@a", "+", "-",
    "'", '"', "\\", "\\n", "%s", "{0}", "[red]", ":smile:", "&amp;", "漢字", "é", "😀", " ", ",", ";", ".", "*", "_",
]  # fmt: skip
PLACES = ["model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"]


def names(rng, n):
    found = {place.format(layer) for layer in range(2) for place in PLACES}
    while len(found) < n:
        found.add("".join(rng.choices(NASTY, k=rng.randrange(1, 6))) + rng.choice(["", ".weight", "FORGED"]))
    return sorted(found)


def checkpoint(folder, held, seed=0):
    return write_checkpoint(folder, random_state(dict.fromkeys(held, (64, 64)), seed), config=None)


def run(*arguments, code=0):
    done = invoke(*arguments)
    assert done.exit_code == code, (arguments, done.output)
    return done


def assert_inert(done):
    assert printable(done.stdout, keep="\n") == done.stdout
    assert printable(done.stderr, keep="\n") == done.stderr
    assert not any(line.strip().startswith("FORGED") for line in done.output.splitlines())


def every_command(folder, held):
    """Asserts for one set of names; yields nothing."""
    report = folder / "r.specdiag.json"
    a, b = checkpoint(folder / "a", held), checkpoint(folder / "b", held, seed=1)
    assert_inert(run("analyze", a, "--all", "-o", report))
    assert_inert(run("-v", "analyze", a, "-f", "md"))
    assert_inert(run("analyze", a, "--dry-run", "--all"))
    assert_inert(run("compare", a, b, "--all"))
    assert_inert(run("compare", a, b, "-f", "md"))
    for rows in (("--all",), ("-f", "md", "--all"), ("-f", "json")):
        assert_inert(invoke("audit", report, *rows))
    for export in ("torch", "toml", "json", "csv", "md", "transformers"):
        assert_inert(run("recommend", report, "--export", export))
    assert_inert(run("recommend", report, "--all"))
    for arguments in (("analyze", a, "-f"), ("analyze", a, "--dry-run", "-f")):
        table = run(*arguments, "csv")
        assert_inert(table)
        assert sorted(from_csv(row["name"]) for row in csv.DictReader(io.StringIO(table.stdout))) == held
        data = run(*arguments, "json")
        assert_inert(data)
        rows = json.loads(data.stdout)
        assert sorted(row["name"] for row in (rows["records"] if isinstance(rows, dict) else rows)) == held
    plan = run("recommend", report, "--export", "torch").stdout
    space = {}
    exec(plan, space)
    assert set(space["RATIOS"]) <= set(held)
    return report


def test_every_command_with_every_nasty_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = sorted({place.format(i) for i in range(2) for place in PLACES} | {f"{c}a{c}" for c in NASTY})
    report = every_command(tmp_path, held)
    read = specdiag.load_report(report)
    page = specdiag.html_report(read, plan=specdiag.recommend(read), audit=specdiag.audit(read))
    text = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    text = re.sub(r"(?<=\d)\N{NO-BREAK SPACE}%", " %", text)  # the page's own: a number and its sign stay together
    assert printable(text, keep="\n") == text
    assert "<img" not in text


@pytest.mark.parametrize("kind", ["esd", "alpha", "balance", "heatmap", "scree", "decay", "paper"])
def test_figures_draw_names_as_they_are(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    held = [place.format(i) for i in range(2) for place in PLACES] + ["$x^$", "$", "a\x1b[31m\nb", "\u202eb", "\x00"]
    run("-q", "analyze", checkpoint(tmp_path / "x$y^{$\x1b\u202e", held), "-o", "r.json")
    assert_inert(run("plot", kind, "r.json", "-o", "f.svg"))
    drawn = (tmp_path / "f.svg").read_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u200b]", drawn)


def test_random_names(tmp_path, monkeypatch):
    """For a few seconds; SPECDIAG_FUZZ_SECONDS makes it longer."""
    monkeypatch.chdir(tmp_path)
    rng = random.Random(14)
    until = time.monotonic() + float(os.environ.get("SPECDIAG_FUZZ_SECONDS", "4"))
    for turn in range(10_000):
        folder = tmp_path / str(turn)
        folder.mkdir()
        every_command(folder, names(rng, 14))
        if time.monotonic() > until:
            break


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "no\x1b[31mwhere"], ["analyze", "x", "y\u202e"], ["analyze", "m", "--file", "\x9b31m"], ["recommend", "a\nFORGED"],
        ["plot", "\x1b[31m", "x"], ["analyze", "m", "--\x1b[31m"], ["\x1b[31m"], ["analyze", "m", "--include", "\x1b[31m*"],
        ["analyze", "m", "-f", "\x1b[31m"], ["compare", "m", "\u202e"], ["report", "m\udc80"], ["analyze", "m", "-o", "\udc80/\x1b"],
    ],
    ids=ascii,
)  # fmt: skip
def test_errors_quote_what_they_name(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "m", ["model.layers.0.self_attn.q_proj.weight"])
    done = invoke(*arguments)
    assert done.exit_code in (2, 3)
    assert_inert(done)
    assert "error: unexpected" not in done.output


@pytest.mark.parametrize("command", ["analyze", "audit", "recommend", "report", "trajectory", "compare"])
def test_a_nul_in_an_argument_is_refused(command):
    done = invoke(command, "a\0b", *(["c"] if command == "compare" else []))
    assert done.exit_code == 2
    assert "has a NUL character" in done.stderr


@pytest.mark.parametrize("where", ["folder", "file"])
def test_names_that_are_no_unicode_are_refused_before_the_work(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"m\xff\x1b")
    folder = checkpoint(tmp_path / (odd if where == "folder" else "m"), ["model.layers.0.self_attn.q_proj.weight"])
    if where == "file":
        (folder / "model.safetensors").rename(folder / f"{odd}.safetensors")
    done = invoke("analyze", folder)
    assert done.exit_code == 2, done.output
    assert "is no Unicode" in done.stderr
    assert_inert(done)
    assert not [*tmp_path.glob("*.json")]


def test_warnings_and_log_lines_are_inert(tmp_path, monkeypatch):
    import logging
    import warnings

    monkeypatch.chdir(tmp_path)
    done = invoke("recommend", "nothing.json")  # configures the log
    assert done.exit_code == 3
    (handler,) = [h for h in logging.getLogger("specdiag").handlers if type(h).__name__ == "_Handler"]
    record = logging.LogRecord("specdiag", logging.WARNING, "", 0, "%s", ("\x1b[31m\n\u202e",), None)
    assert handler.format(record) == r"WARNING: \x1b[31m\n\u202e"
    assert warnings.formatwarning(UserWarning("\x1b\n"), UserWarning, "f", 1) == "UserWarning: \\x1b\\n\n"


@pytest.mark.parametrize("command", ["analyze", "audit", "compare"])
@pytest.mark.parametrize("format", ["table", "md"])
def test_weight_files_that_were_not_read_are_named(tmp_path, monkeypatch, command, format):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(tmp_path / "m", ["model.layers.0.self_attn.q_proj.weight"])
    extra = [f"other-{i}.bin" for i in range(5)]
    for name in extra:
        (folder / name).write_bytes(b"PK")
    both = [str(folder)] * (2 if command == "compare" else 1)
    done = invoke("-q", command, *both, "-f", format)
    assert done.exit_code in (0, 1), done.output
    shown = done.stdout.replace("\\", "")
    assert all(name in shown for name in extra)
