"""README and docs/ show the output that the program prints. Their commands, options and links exist."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path
from statistics import fmean

import pytest
from command import execute, shell
from specdiag_cli.main import app
from typer.main import get_command

import specdiag

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {page.name: page.read_text() for page in [ROOT / "README.md", *DOCS]}
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"^<!-- shows: specdiag ([^\n]*) -->\n```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = [(page, *example) for page, text in PAGES.items() for example in SHOWN.findall(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm, asset):
    """Where `make demo` was run."""
    folder = tmp_path_factory.mktemp("clone")
    assets = folder / "build" / "assets"
    shutil.copytree(minilm, assets / "minilm")
    for name in ("smollm2-gguf", "rxnfp"):
        (assets / name).symlink_to(asset(name))
    specdiag.analyze(minilm).save(folder / "build" / "minilm.specdiag.json")
    return folder


@pytest.mark.parametrize(("page", "command", "shown"), EXAMPLES, ids=[f"{e[0]}: {e[1]}"[:60] for e in EXAMPLES])
def test_what_a_page_shows_is_printed(page, command, shown, folder):
    done = execute("-q", *command.split(), cwd=folder, env={"COLUMNS": "112"})
    assert done.returncode == 0, done.stderr
    printed = [line.rstrip() for line in (done.stdout + done.stderr).splitlines()]
    lines = [line for line in shown.splitlines() if line and line != "..."]
    assert lines
    assert [line for line in lines if line not in printed] == []


def test_readme_fits_two_screens():
    assert len(PAGES["README.md"].splitlines()) <= 110


def test_the_verdicts_are_shown():
    assert {page for page, *_ in EXAMPLES} >= {"README.md", "analyze.md", "recommend.md", "publish.md"}


def test_the_planted_fault_stops_the_gate(folder):
    """As docs/gate.md has it."""
    (script,) = (block for block in FENCE.findall(PAGES["gate.md"]) if "nan" in block)
    done = shell(f'python() {{ {sys.executable} "$@"; }}\n{script}', cwd=folder, env={"COLUMNS": "112"})
    printed = done.stdout + done.stderr
    shown = next(block for block in FENCE.findall(PAGES["gate.md"]) if block.endswith("exit code 1\n"))
    assert [line for line in shown.splitlines() if line not in [p.rstrip() for p in printed.splitlines()]] == []


def commands(text):
    """The commands of the blocks of a page: the name, and the options that follow."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.sub(r"\s#.*|[|;)].*", "", line.removeprefix("$ ")).split()
            if "specdiag" in words[:8]:
                rest = words[words.index("specdiag") + 1 :]
                found = [word for word in rest if not word.startswith("-")]
                if found:
                    yield found[0], [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page):
    program = get_command(app)
    everywhere = {name for option in program.params for name in option.opts}
    for name, options in commands(PAGES[page]):
        assert name in program.commands, f"{page}: specdiag {name}"
        command = program.commands[name]
        parts = [command, *getattr(command, "commands", {}).values()]
        known = {n for part in parts for p in part.params for n in (*p.opts, *p.secondary_opts)} | everywhere
        assert set(options) <= known | {"--help", "-h"}, f"{page}: specdiag {name} {set(options) - known}"


@pytest.mark.parametrize("page", [page.name for page in DOCS])
def test_a_page_begins_with_its_question_and_a_command(page):
    head = PAGES[page].splitlines()[:20]
    assert head[0].startswith("# ")
    question, fence = (next((i for i, line in enumerate(head) if mark in line), 99) for mark in ("?", "```"))
    assert question < fence < 99


def test_every_page_has_its_place_on_the_site():
    listed = json.dumps(tomllib.loads((ROOT / "docs" / "zensical.toml").read_text())["project"]["nav"])
    named = set(re.findall(r"[\w-]+\.md", listed))
    made = {"cli.md", "api.md", "changelog.md", "contributing.md", "security.md"}
    assert named == {page.name for page in DOCS} | {f"{n.stem}.md" for n in (ROOT / "notebooks").glob("*.ipynb")} | made


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    links = re.findall(r"\]\(([^):\s#]+)[^)]*\)", FENCE.sub("", PAGES[page]))
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_makefile_has_what_pages_name():
    makefile = (ROOT / "Makefile").read_text()
    named = {
        word for text in PAGES.values() for word in re.findall(r"^make ([\w-]+)|`make ([\w-]+)", text, re.MULTILINE)
    }
    words = {first or second for first, second in named}
    assert {"demo", "test"} <= words
    assert {word for word in words if f"\n{word}:" not in makefile} == set()


def test_the_shown_share_of_roles_is_measured():
    measured = json.loads((ROOT / "benchmarks" / "results" / "zoo.json").read_text())
    assert f"right for {100 * measured['mean']:.2f} % " in PAGES["analyze.md"]
    assert f"over {measured['types_scored']} types" in PAGES["analyze.md"]


def test_the_shown_means_of_the_square_plan_are_real(folder):
    square = specdiag.recommend(folder / "build" / "minilm.specdiag.json", basis="square")
    means = [fmean(e.ratio for e in square.entries if e.family == f) for f in ("attention", "mlp")]
    assert f"attention would get {means[0]:.2f} and MLP {means[1]:.2f}" in PAGES["recommend.md"]
