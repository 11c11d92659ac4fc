"""`specdiag audit -f parquet`: a row for each model and finding, kept as they are made, and taken by the next call."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
from command import invoke, start, words
from fleets import DEAD, NAN, fleet, model, rows
from saved_reports import made

import specdiag.auditing.audit as library
from specdiag.auditing import baselines

JOURNAL = "fleet.parquet.partial.jsonl"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECDIAG_CACHE", "")


@pytest.fixture
def audited(monkeypatch):
    """The sources that are really audited."""
    sources, right = [], library.audit

    def audit(source, **more):
        sources.append(source)
        return right(source, **more)

    monkeypatch.setattr(library, "audit", audit)
    return sources


def run(*sources, code=None):
    done = invoke("audit", *sources, "-f", "parquet", "-o", "fleet.parquet")
    assert code is None or done.exit_code == code, done.stderr
    return done


def of_models(column):
    return {row["source"]: row.get(column) for row in rows("fleet.parquet", "model")}


def test_the_table_says_what_the_audits_say(tmp_path):
    model(tmp_path / "good")
    model(tmp_path / "bad", 1, NAN)
    model(tmp_path / "dull", 2, DEAD)
    weights = model(tmp_path / "torn", 3) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    made([]).save(tmp_path / "report.json")
    sources = ["good", "bad", "dull", "torn", "absent/model.bin", "report.json"]
    done = run(*sources, code=1)
    assert done.stdout == ""
    last = "failed because --fail-on fail: 1 failure; 6 sources: 3 passed, 1 failed, 2 could not be read"
    assert done.stderr.splitlines()[-2:] == ["written: fleet.parquet", last]
    assert (
        "1/6 PASS: good: no findings, by names and shapes alone (transformers is not installed)"
        in done.stderr.splitlines()
    )
    assert not (tmp_path / JOURNAL).exists()
    plain = dict(zip(sources, json.loads(invoke("audit", *sources, "-f", "json").stdout), strict=True))
    models = {row["source"]: row for row in rows("fleet.parquet", "model")}
    assert list(models) == sources
    for source, audit in plain.items():
        row = models[source]
        found = [row for row in rows("fleet.parquet", "finding") if row["source"] == source]
        if "error" in audit:
            assert (row["verdict"], row["error"], row["exit_code"]) == ("error", audit["error"], audit["exit_code"])
            assert found == []
            continue
        assert (row["verdict"], row["location"]) == (audit["verdict"], audit["source"]["location"])
        assert {key: row[f"n_{key}"] for key in audit["counts"]} == audit["counts"]
        assert row["n_checks"] == len(audit["coverage"]["checks"])
        assert json.loads(row["coverage"])["files"] == audit["coverage"]["files"]
        assert json.loads(row["coverage"])["checks"] == audit["coverage"]["checks"]
        for mine, theirs in zip(found, audit["findings"], strict=True):
            assert mine == mine | {key: theirs[key] for key in ("check", "severity", "module", "file", "why")}
            assert mine["value"] == theirs["value"]
    assert "needs --randomize" in models["good"]["coverage"]


def test_models_that_have_not_changed_are_taken(tmp_path, audited):
    names = fleet(tmp_path, 4)
    run(*names, code=1)
    before = rows("fleet.parquet", "finding")
    audited.clear()
    done = run(*names, code=1)
    assert audited == []
    assert "4 of 4 models are as they were: their rows are taken" in done.stderr
    assert rows("fleet.parquet", "finding") == before
    os.utime(tmp_path / "m001" / "config.json", ns=(1, 1))
    shutil.copy(tmp_path / "m001" / "model.safetensors", tmp_path / "m003" / "other.safetensors")
    run(*names, "absent", code=1)
    assert audited == ["m001", "m003", "absent"]
    audited.clear()
    run(*names, "absent")
    assert audited == ["absent"]
    audited.clear()
    run(*names[:2], code=0)
    assert (audited, list(of_models("verdict"))) == ([], names[:2])


def test_other_settings_and_versions_are_audited_anew(tmp_path, audited, monkeypatch):
    fleet(tmp_path, 1)
    (tmp_path / "t.toml").write_text("[rank]\nenabled = false\n")
    model(tmp_path / "base", 5)
    for options in ([], ["--dtype", "float32"], ["--thresholds", "t.toml"], ["--baseline", "base"]):
        for n in (1, 0):
            audited.clear()
            run("m000", *options, "--jobs", 1 + n)
            assert len(audited) == n, options
    model(tmp_path / "base", 6)
    run("m000", "--baseline", "base")
    assert len(audited) == 1
    (tmp_path / "t.toml").write_text("[rank]\nenabled = true\n")
    for _ in range(2):
        run("m000", "--thresholds", "t.toml")
    assert len(audited) == 2
    for module in ("rows", "identity"):
        monkeypatch.setattr(f"specdiag.auditing.fleets.{module}.version", lambda _: "9.9")
    run("m000", "--thresholds", "t.toml")
    assert len(audited) == 3
    assert of_models("specdiag") == {"m000": "9.9"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_call_is_gone_on_with(tmp_path, number, audited):
    names = fleet(tmp_path, 40)
    line = words("audit", "--from", "models.txt", "--no-reference-model", "-f", "parquet", "-o", "fleet.parquet")
    with start(line, cwd=tmp_path) as process:
        for said in process.stderr:
            if said.startswith("5/40"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
    assert not (tmp_path / "fleet.parquet").exists()
    done = (tmp_path / JOURNAL).read_bytes().count(b"\n")
    assert 5 <= done < 40
    if number == signal.SIGINT:
        assert process.returncode == 130
        told = [f"interrupted: {n} of 40 models are done, and kept in {JOURNAL}: the same command goes on\n"
                for n in (done, done - 1)]  # fmt: skip
        assert any(each in rest for each in told)  # the signal may come between the two
    run("--from", "models.txt", "--no-reference-model", code=1)
    assert audited == names[done:]
    assert not (tmp_path / JOURNAL).exists()
    resumed = rows("fleet.parquet", "model")
    (tmp_path / "fleet.parquet").unlink()
    run(*names, "--no-reference-model")
    for one, other in zip(resumed, rows("fleet.parquet", "model"), strict=True):
        assert one | {"audited": ""} == other | {"audited": ""}


def test_an_interruption_keeps_table_and_journal(tmp_path, monkeypatch):
    names = fleet(tmp_path, 3)
    run(names[0], code=0)
    before = (tmp_path / "fleet.parquet").read_bytes()
    right = library.audit

    def audit(source, **more):
        if source == names[2]:
            raise KeyboardInterrupt
        return right(source, **more)

    def leave():
        raise SystemExit(130)

    monkeypatch.setattr(library, "audit", audit)
    monkeypatch.setattr("specdiag_cli.output.leave", leave)
    assert "2 of 3 models are done" in run(*names, code=130).stderr
    assert (tmp_path / "fleet.parquet").read_bytes() == before
    monkeypatch.setattr(library, "audit", right)
    assert "2 of 3 models are as they were" in run(*names, code=1).stderr
    monkeypatch.setattr(library, "audit", audit)
    (tmp_path / "fleet.parquet").unlink()
    assert run(names[2], code=130).stderr == "interrupted: 0 of 1 models are done, and nothing was audited\n"
    assert not (tmp_path / JOURNAL).exists()


def test_an_interruption_after_the_table_names_the_table(tmp_path, monkeypatch):
    (name,) = fleet(tmp_path, 1)

    blocks: list[None] = []

    @contextmanager
    def interrupted():
        """The signal comes while the table is written, and is delayed to the end of the outermost block."""
        blocks.append(None)
        yield
        blocks.pop()
        if not blocks and (tmp_path / "fleet.parquet").exists():
            raise KeyboardInterrupt

    def leave():
        raise SystemExit(130)

    monkeypatch.setattr("specdiag.system.interrupts.delay_signals", interrupted)
    monkeypatch.setattr("specdiag_cli.output.leave", leave)
    last = run(name, code=130).stderr.splitlines()[-1]
    assert last == "interrupted: 1 of 1 models are done, and fleet.parquet is written"
    assert not (tmp_path / JOURNAL).exists()


def test_a_pipe_in_the_place_of_the_journal_stays(tmp_path):
    (name,) = fleet(tmp_path, 1)
    os.mkfifo(tmp_path / JOURNAL)
    assert "is no regular file" in run(name, code=2).stderr
    assert (tmp_path / JOURNAL).is_fifo()


def test_a_journal_that_is_torn_damaged_or_in_use(tmp_path):
    names = fleet(tmp_path, 2)
    run(*names)
    (tmp_path / "fleet.parquet").rename("kept.parquet")
    (tmp_path / JOURNAL).write_bytes(b'[{"kind":"model","source":"m0')
    run(*names, code=0)
    for damage in (b"[]\n", b"{}\n", b'[{"kind":"finding","source":"m000"}]\n',
                   b'[{"kind":"model","source":"m000","n_fail":1}]\n', b"\xff\n"):  # fmt: skip
        (tmp_path / JOURNAL).write_bytes(damage)
        assert f"{JOURNAL}, line 1: no rows of a model" in run(*names, code=3).stderr
        assert (tmp_path / JOURNAL).read_bytes() == damage
    (tmp_path / JOURNAL).write_bytes(b"")
    with (tmp_path / JOURNAL).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"another process writes {JOURNAL}: wait for its end" in run(*names, code=2).stderr


def test_a_full_disk_ends_the_call_and_loses_nothing(tmp_path, monkeypatch):
    names = fleet(tmp_path, 3)
    right, written = os.pwrite, []

    def pwrite(descriptor, data, place):
        written.append(len(data))
        if len(written) == 3:
            right(descriptor, bytes(data[:10]), place)
            raise OSError(28, "No space left on device")
        return right(descriptor, data, place)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert f"writing {JOURNAL} failed: No space left on device; free space and go on" in run(*names, code=4).stderr
    assert (tmp_path / JOURNAL).read_bytes().count(b"\n") == 2
    assert "2 of 3 models are as they were" in run(*names, code=1).stderr


@pytest.mark.parametrize("content", ["text", "other", "cut", "report"])
def test_a_file_of_something_else_is_not_replaced(tmp_path, content):
    import pyarrow
    import pyarrow.parquet

    model(tmp_path / "m")
    run("m", code=0)
    out = tmp_path / "fleet.parquet"
    if content == "text":
        out.write_text("mine")
    elif content == "other":
        pyarrow.parquet.write_table(pyarrow.table({"kind": ["model"], "mine": [1]}), out)
    elif content == "report":
        made([]).save(out)
    else:
        out.write_bytes(out.read_bytes()[:-50])
    before = out.read_bytes()
    said = run("m", code=2).stderr
    assert "--out fleet.parquet would be replaced, and is not of this command: " in said
    assert out.read_bytes() == before
    assert not (tmp_path / JOURNAL).exists()


def test_requests_that_cannot_be_served(tmp_path, monkeypatch):
    model(tmp_path / "m")
    for options, said in [
        (["-f", "parquet"], "parquet is binary; name a file with -o"),
        (["-f", "parquet", "-o", "/dev/null"], "--out /dev/null is no file"),
        (["-f", "parquet", "-o", "a.json"], "'a.json' would hold parquet: name a .parquet file"),
        (["-f", "parquet", "-o", "gone/a.parquet"], "the folder gone does not exist"),
    ]:
        done = invoke("audit", "m", *options)
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr
    monkeypatch.setattr("specdiag.storage.pyarrow.find_spec", lambda _: None)
    assert run("m", code=2).stderr == "error: parquet needs pyarrow: pip install 'spectral-diagnostics[parquet]'\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_checkpoint_as_the_baseline_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fleet(tmp_path, 3)
    model(tmp_path / "base", 99)
    opened: list[str] = []
    own = baselines._open
    monkeypatch.setattr(baselines, "_open", lambda place, *rest: opened.append(str(place)) or own(place, *rest))
    found = invoke("audit", "--from", "models.txt", "--baseline", "base", "-f", "parquet", "-o", "out.parquet")
    assert found.exit_code == 1, found.stderr
    assert opened == ["base"]
    changed = {r["source"] for r in rows(tmp_path / "out.parquet", "finding") if r["check"] == "baseline_changed"}
    assert changed == {"m000", "m001", "m002"}
    opened.clear()
    assert invoke("audit", "m000", "m001", "--baseline", "base").exit_code == 0
    assert opened == ["base"]
