"""`specdiag analyze --resume`: an interrupted analysis that goes on is the one that was never interrupted."""

import os
import re
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
from cached_results import assert_same
from command import call, execute, start_and_wait
from models import QUERY, queries, write_checkpoint
from msgspec.structs import replace as replace_record

import specdiag
import specdiag.analysis.analyze as analysis
from specdiag.analysis import measuring, workers
from specdiag.analysis.batches import Batch
from specdiag.errors import UsageError
from specdiag.report import load_report


def write(folder, n=24, side=384, seed=0):
    """Random matrices, and one of NaN after them."""
    spoilt = {QUERY.format(n): np.full((side, side), np.nan, np.float32)}
    return write_checkpoint(folder, queries(n, side, side, seed) | spoilt)


def interrupt(*arguments, cwd, after=4):
    process = start_and_wait("analyze", *arguments, "--jobs", "1", matrices=after, cwd=cwd)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    return said


@pytest.mark.parametrize("before", [False, True], ids=["alone", "beside a finished report"])
def test_it_goes_on_as_if_nothing_had_been(tmp_path, before):
    write(tmp_path / "ckpt", seed=1)
    if before:
        assert execute("-q", "analyze", "ckpt", cwd=tmp_path).returncode == 4  # a matrix of NaN
        write(tmp_path / "ckpt", seed=0)
    plain = execute("-q", "analyze", "ckpt", "--randomize", "-o", "plain.json", cwd=tmp_path)
    assert plain.returncode == 4
    said = interrupt("ckpt", "--randomize", "--no-spectra", cwd=tmp_path)
    assert "--resume goes on from it" in said
    partial = tmp_path / ("ckpt.incomplete.specdiag.json" if before else "ckpt.specdiag.json")
    held = load_report(partial)
    assert not held.complete
    assert 0 < len(held) < 25
    done = execute("-v", "analyze", "ckpt", "--randomize", "--resume", cwd=tmp_path)
    assert done.returncode == 4
    assert f"going on from {partial.name}: {len(held)} matrices" in done.stderr
    measured = set(re.findall(r"DEBUG: (\S+): ok", done.stderr))
    finished = {r.key for r in held if r.status == "ok"}
    assert finished
    assert measured == {QUERY.format(i) for i in range(24)} - finished
    report = load_report(tmp_path / "ckpt.specdiag.json")
    assert report.complete
    expected = load_report(tmp_path / "plain.json")
    assert (report.skipped, report.summary) == (expected.skipped, expected.summary)
    assert report.records == expected.records
    assert not list(tmp_path.glob("*incomplete*"))
    for record in (r for r in expected if r.status == "ok"):
        for randomized in (False, True):
            one, other = (r.eigenvalues(record.key, randomized=randomized) for r in (report, expected))
            assert one.tobytes() == other.tobytes()


def test_interrupted_twice_it_still_goes_on(tmp_path):
    write(tmp_path / "ckpt")
    interrupt("ckpt", cwd=tmp_path)
    first = load_report(tmp_path / "ckpt.specdiag.json")
    interrupt("ckpt", "--resume", cwd=tmp_path, after=6)
    second = load_report(tmp_path / "ckpt.incomplete.specdiag.json")
    assert {r.key for r in first if r.status == "ok"} < {r.key for r in second}
    assert execute("analyze", "ckpt", "--resume", cwd=tmp_path).returncode == 4
    assert load_report(tmp_path / "ckpt.specdiag.json").complete
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ckpt", "ckpt.specdiag.json", "ckpt.specdiag.spectra.safetensors",
    ]  # fmt: skip


def test_without_a_partial_report_it_begins(tmp_path):
    write(tmp_path / "ckpt", 2, 64)
    done = execute("analyze", "ckpt", "--resume", cwd=tmp_path)
    assert "no partial report beside ckpt.specdiag.json: starting from the beginning" in done.stderr
    assert len(load_report(tmp_path / "ckpt.specdiag.json")) == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["ckpt", "--resume", "-f", "csv"], "goes on from a saved report"),
        (["ckpt", "--resume", "-f", "json"], "goes on from a saved report"),
        (["ckpt", "--resume", "--dry-run"], "computes nothing"),
        (["ckpt.specdiag.json", "--resume"], "is a saved report"),
    ],
)
def test_where_it_makes_no_sense(tmp_path, arguments, why):
    write(tmp_path / "ckpt", 2, 64)
    execute("analyze", "ckpt", cwd=tmp_path)
    done = execute("analyze", *arguments, cwd=tmp_path)
    assert (done.returncode, why in done.stderr) == (2, True), done.stderr


# In the library, without a process


def interrupted(source, **options):
    def stop(progress):
        if progress.matrices == 3:
            raise KeyboardInterrupt

    with pytest.raises(specdiag.Interrupted) as caught:
        specdiag.analyze(source, device="cpu", jobs=1, progress=stop, **options)
    return caught.value.report


def test_the_partial_report_in_memory_will_do(tmp_path):
    folder = write(tmp_path / "ckpt", 6, 64)
    partial = interrupted(folder)
    left = []
    report = specdiag.analyze(folder, device="cpu", partial_reports=[partial], progress=lambda p: left.append(p.name))
    assert len(left) == 7 - sum(r.status == "ok" for r in partial)
    expected = specdiag.analyze(folder, device="cpu")
    assert report.records == expected.records


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tail": "ks"}, "was made with tail = 'hill', and this is 'ks'"),
        ({"dtype": "float32"}, "was made with dtype = 'auto', and this is 'float32'"),
        ({"include": "*.1.*"}, "was made with include"),
    ],
)
def test_other_settings_are_named(tmp_path, change, why):
    folder = write(tmp_path / "ckpt", 6, 64)
    partial = interrupted(folder)
    with pytest.raises(UsageError, match=why):
        specdiag.analyze(folder, device="cpu", partial_reports=[partial], **change)


def test_other_weights_are_named(tmp_path):
    folder = write(tmp_path / "ckpt", 6, 64)
    partial = interrupted(folder)
    other = write(tmp_path / "other", 6, 64)
    with pytest.raises(UsageError, match=r"is of .*ckpt .*, and this is .*other "):
        specdiag.analyze(other, device="cpu", partial_reports=[partial])
    os.utime(folder / "model.safetensors", (1, 1))
    with pytest.raises(UsageError, match="older than its files, which have changed since"):
        specdiag.analyze(folder, device="cpu", partial_reports=[partial])


def test_a_report_without_eigenvalues_is_refused(tmp_path):
    folder = write(tmp_path / "ckpt", 6, 64)
    path = interrupted(folder).save(tmp_path / "part.json", spectra=False)
    with pytest.raises(UsageError, match="has no eigenvalues beside it: leave out partial_reports="):
        specdiag.analyze(folder, device="cpu", partial_reports=[load_report(path)])


def test_other_versions_are_named(tmp_path, monkeypatch):
    folder = write(tmp_path / "ckpt", 6, 64)
    partial = interrupted(folder)
    partial.provenance.versions["specdiag"] = "0.0.1"
    with pytest.raises(UsageError, match=r"was made by specdiag 0\.0\.1, and this is"):
        specdiag.analyze(folder, device="cpu", partial_reports=[partial])


def test_another_processor_is_named(tmp_path):
    folder = write(tmp_path / "ckpt", 6, 64)
    partial = interrupted(folder)
    kernels = ("openblas Imaginary", *partial.provenance.kernels[1:])
    other = replace(partial, provenance=replace_record(partial.provenance, kernels=kernels))
    with pytest.raises(
        UsageError, match="the BLAS kernels and processor 'openblas Imaginary', and this has 'openblas "
    ):
        specdiag.analyze(folder, device="cpu", partial_reports=[other])


def test_all_of_it_may_be_there(tmp_path):
    folder = write(tmp_path / "ckpt", 6, 64)
    whole = specdiag.analyze(folder, device="cpu", exclude=QUERY.format(6))
    again = specdiag.analyze(folder, device="cpu", exclude=QUERY.format(6), partial_reports=[whole])
    assert_same(whole, again)


# Failures that are no signals


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "ckpt", n=6, side=64)


def failing(error, after=3):
    def stop(progress):
        if progress.matrices == after:
            raise error

    return stop


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), specdiag.ComputationError("no")])
def test_a_failure_in_the_middle_keeps_what_was_measured(folder, error):
    with pytest.raises(specdiag.AnalysisFailed) as caught:
        specdiag.analyze(folder, device="cpu", jobs=1, progress=failing(error))
    failure = caught.value
    assert failure.__cause__ is error
    assert (len(failure.report), failure.report.complete) == (3, False)
    whole = specdiag.analyze(folder, device="cpu", jobs=1)
    again = specdiag.analyze(folder, device="cpu", jobs=1, partial_reports=[failure.report])
    assert list(again) == list(whole)


def test_a_failure_of_a_worker_keeps_what_was_measured(folder, monkeypatch):
    real, calls = measuring.measure, []

    def measure(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("cannot allocate 3 GiB")
        return real(*arguments)

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(workers, "batches", lambda ordered, _: (Batch([unit], "single") for unit in ordered))
    with pytest.raises(
        specdiag.AnalysisFailed, match=r"cannot allocate 3 GiB \(after 3 matrices were measured\)"
    ) as caught:
        specdiag.analyze(folder, device="cpu", jobs=1)
    assert len(caught.value.report) == 3


def test_a_failure_before_the_first_matrix_is_itself(folder, monkeypatch):
    def measure(*arguments):
        raise MemoryError("at once")

    monkeypatch.setattr(measuring, "measure", measure)
    with pytest.raises(MemoryError, match="at once"):
        specdiag.analyze(folder, device="cpu", jobs=1)


def test_a_signal_after_the_last_matrix_loses_nothing(folder, monkeypatch):
    real, calls = analysis.summarise, []

    def summarise(*arguments, **more):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    whole = specdiag.analyze(folder, device="cpu", jobs=1)
    monkeypatch.setattr(analysis, "summarise", summarise)
    with pytest.raises(specdiag.Interrupted) as caught:
        specdiag.analyze(folder, device="cpu", jobs=1)
    assert list(caught.value.report) == list(whole)
    assert caught.value.report.complete


FAILING = """
import sys
from specdiag.analysis import measuring, workers
from specdiag.analysis.batches import Batch
real, calls = measuring.measure, []
def measure(*arguments):
    calls.append(1)
    if len(calls) == 4:
        raise {error}
    return real(*arguments)
measuring.measure, workers.batches = measure, lambda work, settings: (Batch([unit], "single") for unit in work)
from specdiag_cli.entry import run
sys.argv = ["specdiag", "analyze", "ckpt", "--jobs", "1", "--no-cache"]
run()
"""


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        ("MemoryError()", 4, "memory ran out"),
        ("OSError(5, 'Input/output error')", 4, "Input/output error"),
        ("measuring.SourceError('the share is gone')", 3, "the share is gone"),
    ],
)
def test_the_command_saves_what_was_measured_before_a_failure(folder, error, code, why):
    done = call([sys.executable, "-c", FAILING.format(error=error)], cwd=folder.parent)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert "stopped by an error after 3 matrices; the report is marked incomplete: --resume goes on" in done.stderr
    held = load_report(folder.parent / "ckpt.specdiag.json")
    assert (len(held), held.complete) == (3, False)
    assert execute("analyze", "ckpt", "--resume", cwd=folder.parent).returncode == 4  # a matrix of NaN
    assert len(load_report(folder.parent / "ckpt.specdiag.json")) == 7
