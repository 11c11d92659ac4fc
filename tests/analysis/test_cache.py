"""Results kept by content: what is found again is what would be computed, and nothing about the folder is fatal."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from cached_results import analyze, assert_same, entries, run
from command import python, start_and_wait
from models import QUERY, queries, tensors, write_checkpoint
from safetensors.numpy import load_file

import specdiag
from specdiag.analysis.cache_store import Store, default_folder
from specdiag.errors import UsageError
from specdiag.report import load_report
from specdiag.spectra import accelerator, measure


@pytest.fixture
def forbid_computing(monkeypatch):
    def forbidden(*_args, **_options):
        pytest.fail("a spectrum is computed")

    return lambda: monkeypatch.setattr(measure, "spectrum", forbidden)


@pytest.mark.parametrize(
    "options",
    [{}, {"randomize": True}, {"tail": "farms"}, {"method": "svd", "dtype": "float32"}, {"tail": "ks"}],
    ids=str,
)
def test_what_is_found_is_what_was_computed(tmp_path, forbid_computing, options):
    state = queries(2) | {"model.layers.9.mlp.up_proj.weight": queries(1, 320, seed=5).popitem()[1]}
    plain = analyze(state, None, **options)
    first = analyze(state, tmp_path, **options)
    forbid_computing()
    again = analyze(state, tmp_path, **options)
    assert_same(plain, first)
    assert_same(first, again)
    assert [r.provenance.n_cached for r in (plain, first, again)] == [0, 0, 3]


def test_an_equal_tensor_under_another_name_has_its_own_role(tmp_path, forbid_computing):
    (w,) = queries(1).values()
    analyze({QUERY.format(0): w}, tmp_path)
    forbid_computing()
    (record,) = analyze({"model.layers.7.mlp.down_proj.weight": w}, tmp_path)
    assert (record.name, record.role, record.family, record.layer) == (
        "model.layers.7.mlp.down_proj.weight", "down", "mlp", 7,
    )  # fmt: skip


def test_entries_permuted_by_another_name_are_other_numbers(tmp_path):
    (w,) = queries(1).values()
    analyze({"layers.0.mlp.down_proj.weight": w}, tmp_path, randomize=True)
    moved = analyze({"layers.1.mlp.down_proj.weight": w}, tmp_path, randomize=True)
    assert moved.provenance.n_cached == 0
    assert_same(moved, analyze({"layers.1.mlp.down_proj.weight": w}, None, randomize=True))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"tail": "ks"}),
        ({}, {"tail_fraction": 0.4}),
        ({}, {"dtype": "float32"}),
        ({}, {"method": "svd"}),
        ({}, {"tail_fraction": 0.25}),
        ({}, {"randomize": True}),
        ({"randomize": True}, {"randomize": True, "seed": 1}),
    ],
    ids=str,
)
def test_other_settings_are_other_results(tmp_path, before, after):
    state = queries(1, rows=320)
    analyze(state, tmp_path, **before)
    report = analyze(state, tmp_path, **after)
    assert report.provenance.n_cached == 0
    assert_same(report, analyze(state, None, **after))


def test_equal_bytes_of_another_type_or_shape_are_other_results(tmp_path):
    w = queries(1, rows=512)[QUERY.format(0)].astype(np.float16)
    tensors = [torch.from_numpy(w), torch.from_numpy(w).view(torch.bfloat16), torch.from_numpy(w.reshape(256, 512))]
    digests = set()
    for tensor in tensors:
        report = specdiag.analyze({"layers.0.mlp.up_proj.weight": tensor}, device="cpu", cache=tmp_path)
        digests.add(report.records[0].digest)
        assert report.provenance.n_cached == 0
    assert len(digests) == 1


def test_a_changed_tensor_alone_is_computed(tmp_path):
    state = queries(4)
    analyze(state, tmp_path)
    name = QUERY.format(2)
    state[name] = state[name] * np.float32(1.5)
    report = analyze(state, tmp_path)
    assert report.provenance.n_cached == 3
    assert_same(report, analyze(state, None))


def test_the_accelerator_is_spared_too(tmp_path, as_accelerator, monkeypatch):
    as_accelerator()
    state = tensors(queries(3, rows=320))
    first = specdiag.analyze(state, cache=tmp_path)
    assert (first.settings.device, first.provenance.n_cached) == ("cpu:0", 0)
    monkeypatch.setattr(accelerator, "solve", lambda *_a, **_o: pytest.fail("a spectrum is computed"))
    again = specdiag.analyze(state, cache=tmp_path)
    assert again.provenance.n_cached == 3
    assert_same(first, again)
    assert again.provenance.device_difference is None


def test_cheap_matrices_are_not_kept(tmp_path):
    report = analyze(queries(2, rows=64, cols=64), tmp_path)
    assert len(report) == 2
    assert entries(tmp_path) == []


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "swap"])
def test_damaged_entries_are_computed_and_written_anew(tmp_path, caplog, harm):
    state = queries(2)
    plain = analyze(state, tmp_path)
    one, other = entries(tmp_path)
    data = one.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    one.write_bytes({"flip": flipped, "cut": data[:-9], "empty": b"", "swap": other.read_bytes()}[harm])
    report = analyze(state, tmp_path)
    assert report.provenance.n_cached == 1
    assert_same(plain, report)
    assert one.read_bytes() == data
    assert "is damaged" in caplog.text
    assert analyze(state, tmp_path).provenance.n_cached == 2


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "results").mkdir()
    for number in range(256):
        (tmp_path / "results" / f"{number:02x}").write_text("in the way")
    report = analyze(queries(3), tmp_path)
    assert report.complete
    assert caplog.text.count("results cannot be kept") == 1


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(UsageError, match="which is no folder: name one with SPECDIAG_CACHE"):
        analyze(queries(3), tmp_path)


def test_the_limit_throws_out_what_was_read_longest_ago(tmp_path, monkeypatch):
    states = [queries(1, seed=seed) for seed in range(4)]
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(b"x" * 100_000)
    for i, state in enumerate(states):
        analyze(state, tmp_path)
        newest = max(entries(tmp_path / "results"), key=lambda p: p.stat().st_mtime_ns)
        os.utime(newest, (1000 + i, 1000 + i))
    size = newest.stat().st_size
    assert analyze(states[0], tmp_path).provenance.n_cached == 1  # the oldest is young now
    monkeypatch.setenv("SPECDIAG_CACHE_SIZE", str(int(size * 4.5)))
    analyze(queries(1, seed=9), tmp_path)
    assert mine.exists()
    assert len(entries(tmp_path / "results")) == 4
    assert analyze(states[0], tmp_path).provenance.n_cached == 1
    assert analyze(states[1], tmp_path).provenance.n_cached == 0


def test_what_vanishes_while_it_is_trimmed_is_no_error(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.limit = 150
    for i in range(3):
        store.put(f"{i:064x}", b"x" * 100)
    real = Path.unlink

    def gone(path, missing_ok=False):
        real(path, missing_ok=True)
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", gone)
    store.trim()
    assert len(entries(tmp_path)) == 1


def test_threads_and_processes_share_a_folder(tmp_path):
    code = (
        "import sys; from specdiag.analysis.cache_store import Store; s = Store(__import__('pathlib').Path(sys.argv[1]))\n"
        "for i in range(300):\n"
        "    n = f'{i % 7:064d}'; data = n.encode() * 500\n"
        "    s.put(n, data); found = s.get(n); assert found == data, i\n"
        "assert s.n_damaged == 0"
    )
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: python(code, tmp_path), range(2)))
    assert len(entries(tmp_path)) == 7


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SPECDIAG_CACHE": ""}, None),
        ({"SPECDIAG_CACHE": "/x/y"}, Path("/x/y")),
        ({"XDG_CACHE_HOME": "/c"}, Path("/c/specdiag")),
        ({}, Path("~/.cache/specdiag").expanduser()),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own directory")
def test_where_it_is(monkeypatch, variables, expected):
    for name in ("SPECDIAG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_folder() == expected


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    for name in ("SPECDIAG_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    assert default_folder() is None


def test_a_limit_that_is_no_size(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDIAG_CACHE_SIZE", "much")
    with pytest.raises(UsageError, match="'much' is no size"):
        analyze(queries(1), tmp_path)


# The command line


def test_commands_share_the_cache_and_no_cache_leaves_it(tmp_path):
    write_checkpoint(tmp_path / "ckpt", queries())
    cache = tmp_path / "cache"
    assert "cache" not in run("analyze", "ckpt", "--no-cache", cwd=tmp_path, cache=cache)
    assert not cache.exists()
    assert "cache" not in run("analyze", "ckpt", cwd=tmp_path, cache=cache)
    assert "3 of 3 rows from the cache" in run("analyze", "ckpt", cwd=tmp_path, cache=cache)
    assert len(entries(cache)) == 3
    write_checkpoint(tmp_path / "runs" / "step1", queries())
    run("trajectory", "runs", cwd=tmp_path, cache=cache)
    (report,) = (tmp_path / "runs").rglob("*.specdiag.json")
    assert load_report(report).provenance.n_cached == 3
    run("compare", "ckpt", "runs/step1", cwd=tmp_path, cache=cache)
    assert len(entries(cache)) == 3
    run("compare", "ckpt.specdiag.json", "ckpt", "--no-weights", cwd=tmp_path, cache=cache)
    run("compare", "ckpt.specdiag.json", "ckpt.specdiag.json", cwd=tmp_path, cache=cache)
    run("audit", "ckpt.specdiag.json", "--baseline", "ckpt", cwd=tmp_path, cache=cache, code=1)  # it is its baseline
    run("recommend", "ckpt.specdiag.json", cwd=tmp_path, cache=cache)
    assert len(entries(cache)) == 3


def test_a_kill_loses_nothing_that_was_finished(tmp_path):
    write_checkpoint(tmp_path / "ckpt", queries(24, 512, 512))
    cache = tmp_path / "cache"
    kept = {"SPECDIAG_CACHE": str(cache)}
    process = start_and_wait("analyze", "ckpt", "--jobs", "1", matrices=4, cwd=tmp_path, env=kept)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (tmp_path / "ckpt.specdiag.json").exists()
    run("analyze", "ckpt", cwd=tmp_path, cache=cache)
    report = load_report(tmp_path / "ckpt.specdiag.json")
    assert 4 <= report.provenance.n_cached < 24
    run("analyze", "ckpt", "--no-cache", "-o", "plain.json", cwd=tmp_path, cache=cache)
    plain = load_report(tmp_path / "plain.json")
    assert_same(plain, report)
    assert len(load_file(tmp_path / "plain.spectra.safetensors")) == 24
