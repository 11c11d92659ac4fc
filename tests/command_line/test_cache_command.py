"""`specdiag cache`: it shows and removes the entries of the cache, and nothing else."""

import io
import json
import os
from types import SimpleNamespace

import pytest
from command import invoke
from specdiag_cli import cache

import specdiag.analysis.cache_ownership as ownership
from specdiag.analysis.cache_store import Store


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDIAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder, n=5):
    """Entries of 132 bytes each, the first read longest ago."""
    store = Store(folder)
    for i in range(n):
        name = f"{i:064x}"
        store.put(name, b"x" * 100)
        os.utime(folder / "results" / name[:2] / f"{name}.result", (1000 + i, 1000 + i))


def left(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def info():
    done = invoke("cache", "info", "-f", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_empty_cache_is_made_by_none_of_the_commands(folder):
    assert info() == {"folder": str(folder), "entries": 0, "bytes": 0, "limit": 2 << 30, "oldest": None}
    for command in (("info",), ("prune",), ("clear", "--yes")):
        assert invoke("cache", *command).exit_code == 0
    assert not folder.exists()


def test_info(folder, monkeypatch):
    fill(folder)
    monkeypatch.setenv("SPECDIAG_CACHE_SIZE", "1M")
    held = info()
    assert (held["entries"], held["bytes"], held["limit"]) == (5, 660, 1 << 20)
    assert held["oldest"].startswith("1970-01-01T")
    shown = invoke("cache", "info", width=80).stdout
    assert "5, 660 bytes of 1 MiB" in shown


def test_prune_removes_what_was_read_longest_ago(folder, monkeypatch):
    fill(folder)
    monkeypatch.setenv("SPECDIAG_CACHE_SIZE", "400")
    done = invoke("cache", "prune")
    assert done.stdout == f"Removed 2 results (264 bytes) from {folder}; 3 stay (396 bytes).\n"
    assert left(folder) == [f"{i:064x}.result" for i in (2, 3, 4)]
    assert "Removed 2 results" in invoke("cache", "prune", "--to", "132").stdout
    assert left(folder) == [f"{4:064x}.result"]
    assert invoke("cache", "prune", "--to", "none").exit_code == 2


def test_only_own_files_are_removed(folder, tmp_path):
    fill(folder)
    results = folder / "results"
    half = results / "00" / "tmp0123abcd.result"
    half.write_bytes(b"left by a process that was killed")
    others = [results / "00" / "notes.result", results / "notes", folder / "readme.txt", results / "00" / f"{1:064x}"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    others.append(elsewhere / f"{9:064x}.result")
    for path in others:
        path.write_text("mine")
    (results / "ab").symlink_to(elsewhere)
    link = results / "00" / f"{7:064x}.result"
    link.symlink_to(others[0])
    done = invoke("cache", "clear", "--yes")
    assert done.exit_code == 0, done.output
    assert "Removed 6 results" in done.stdout
    assert all(path.read_text() == "mine" for path in others)
    assert link.is_symlink()
    assert not half.exists()


@pytest.mark.parametrize(("typed", "code", "n"), [("y\n", 0, 0), ("n\n", 1, 5), ("\n", 1, 5), ("", 1, 5)])
def test_clear_asks(folder, monkeypatch, typed, code, n):
    fill(folder)
    terminal = io.StringIO(typed)
    terminal.isatty = lambda: True
    monkeypatch.setattr(cache, "sys", SimpleNamespace(stdin=terminal))
    done = invoke("cache", "clear")
    assert (done.exit_code, len(left(folder))) == (code, n)
    assert "Remove 5 results (660 bytes)" in done.stderr


def test_clear_is_refused_where_nobody_answers(folder):
    fill(folder)
    done = invoke("cache", "clear")
    assert done.exit_code == 2
    assert "add --yes" in done.stderr
    assert len(left(folder)) == 5


def test_a_folder_that_an_analysis_refuses_is_left_alone(folder, monkeypatch):
    fill(folder)
    folder.chmod(0o777)
    for command in (("info",), ("prune", "--to", "1"), ("clear", "--yes")):
        done = invoke("cache", *command)
        assert done.exit_code == 2
        assert "everybody may write to" in done.stderr
    folder.chmod(0o755)
    monkeypatch.setattr(ownership, "_trusted", lambda: {0} if os.getuid() else {1})
    for command in (("prune", "--to", "1"), ("clear", "--yes")):
        done = invoke("cache", *command)
        assert done.exit_code == 2
        assert f"{folder} is left alone: it belongs to user {os.getuid()}" in done.stderr
    assert len(left(folder)) == 5


def test_a_cache_that_is_off_is_said_to_be(monkeypatch):
    monkeypatch.setenv("SPECDIAG_CACHE", "")
    done = invoke("cache", "info")
    assert done.exit_code == 2
    assert "SPECDIAG_CACHE is set to nothing" in done.stderr
