"""`specdiag doctor`, and the browser that `report --open` shows a page in."""

import json
import webbrowser
from importlib.metadata import PackageNotFoundError, requires, version

import pytest
from command import invoke, python
from models import random_state, write_checkpoint
from specdiag_cli import machine

from specdiag.system.distributions import DISTRIBUTION

SECRET = "hf_" + "s" * 34


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECDIAG_CACHE", str(tmp_path / "cache"))
    return tmp_path


def without(*missing):
    def found(package):
        if package in missing:
            raise PackageNotFoundError(package)
        return version(package)

    return found


def test_what_is_there_and_what_is_missing_for_what(monkeypatch):
    monkeypatch.setattr(machine, "version", without("gguf", "plotly"))
    done = invoke("doctor", width=80)
    assert done.exit_code == 0
    assert all(len(line) <= 80 or "/cache," in line for line in done.stdout.splitlines())
    words = " ".join(done.stdout.split())
    assert f"torch {version('torch')}, numpy {version('numpy')}" in words
    assert "gguf quantised GGUF files plotly" in words
    assert done.stdout.startswith("Ready to analyse, compare, audit and plan.\n\n")
    assert "To install them: pip install gguf plotly" in words


def test_it_is_not_ready_where_every_analysis_would_fail(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "version", without("safetensors"))
    done = invoke("doctor")
    assert done.exit_code == 1
    assert done.stdout.startswith("Not ready: safetensors missing: pip install safetensors.\n")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    done = invoke("doctor", "-f", "json")
    assert done.exit_code == 1
    held = json.loads(done.stdout)
    assert held["versions"]["safetensors"] is None
    assert len(held["problems"]) == 2
    assert held["cache"]["refused"].startswith("everybody may write to")


def test_a_token_is_found_and_never_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for format in ("table", "json"):
        done = invoke("doctor", "-f", format)
        assert SECRET not in done.output
    assert json.loads(done.stdout)["hub_token"] is True


def test_every_dependency_is_looked_at():
    required = {name.partition(">")[0] for name in requires(DISTRIBUTION) or () if "extra ==" not in name}
    assert required - {"jinja2", "rich", "tomli-w"} == set(machine.REQUIRED)


def test_it_loads_no_torch_without_a_driver():
    code = (
        "import sys; from specdiag import resources; resources.may_have_accelerator = lambda: False\n"
        "from specdiag_cli.machine import examine; examine(); print('torch' in sys.modules)"
    )
    assert python(code).stdout == "False\n"


class Browser:
    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize(
    ("name", "opens", "said"),
    [("firefox", True, "opened in firefox"), ("firefox", False, "no browser"), ("/usr/bin/w3m", True, "no browser")],
)
def test_a_page_is_opened_where_there_is_a_window(tmp_path, monkeypatch, name, opens, said):
    write_checkpoint(tmp_path / "m", random_state({"layers.0.mlp.up_proj.weight": (64, 64)}))
    opened = []
    monkeypatch.setattr(webbrowser, "get", lambda: Browser(name))
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) or opens)
    done = invoke("report", "m", "--open")
    assert done.exit_code == 0, done.output
    assert "written: m.specdiag.html" in done.stderr
    assert said in done.stderr
    assert opened == ([] if name.endswith("w3m") else [(tmp_path / "m.specdiag.html").as_uri()])


def test_without_a_browser_the_page_is_named(tmp_path, monkeypatch):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    write_checkpoint(tmp_path / "m", random_state({"layers.0.mlp.up_proj.weight": (64, 64)}))
    monkeypatch.setattr(webbrowser, "get", none)
    done = invoke("report", "m", "--open", width=300)
    assert done.exit_code == 0
    assert f"open {tmp_path / 'm.specdiag.html'} in one" in done.stderr
