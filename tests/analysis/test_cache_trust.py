"""Kept results that are wrong, or somebody else's: computed anew, said once, and never an error or another's number."""

import logging
import os
import stat
from pathlib import Path

import msgspec
import numpy as np
import pytest
from cached_results import analyze, assert_same, entries, reseal, run
from models import queries, write_checkpoint

import specdiag.analysis.cache as results
import specdiag.analysis.cache_ownership as ownership
from specdiag.analysis.cache_store import Store
from specdiag.errors import UsageError
from specdiag.report import load_report
from specdiag.resources import blas_kernels, parse_size


def changed(content, **columns):
    entry = msgspec.msgpack.decode(content)
    entry["record"] |= columns
    return msgspec.msgpack.encode(entry)


def with_spectrum(content, change):
    entry = msgspec.msgpack.decode(content)
    entry["measured"] = change(np.frombuffer(entry["measured"], np.float64)).tobytes()
    return msgspec.msgpack.encode(entry)


def without(content, name):
    entry = msgspec.msgpack.decode(content)
    del entry[name]
    return msgspec.msgpack.encode(entry)


HARMS = {
    "garbage": lambda c: b"\xc1garbage",
    "nothing": lambda c: b"",
    "nested": lambda c: b"\x91" * 100_000,
    "another type": lambda c: msgspec.msgpack.encode([1, "x"]),
    "no record": lambda c: without(c, "record"),
    "no spectrum": lambda c: with_spectrum(c, lambda v: v[:0]),
    "short spectrum": lambda c: with_spectrum(c, lambda v: v[1:]),
    "bytes that are no float64": lambda c: with_spectrum(c, lambda v: v.view(np.uint8)[:-3]),
    "nan": lambda c: with_spectrum(c, lambda v: v * np.nan),
    "descending": lambda c: with_spectrum(c, lambda v: v[::-1]),
    "negative": lambda c: with_spectrum(c, lambda v: v - v[3]),
    "scaled": lambda c: with_spectrum(c, lambda v: v * 2),
    "another middle": lambda c: with_spectrum(c, lambda v: np.sort(np.append(v[:-1] / 2, v[-1]))),
    "another shape": lambda c: changed(c, rows=257),
    "another digest": lambda c: changed(c, digest="0" * 64),
    "another tail": lambda c: changed(c, tail="ks"),
    "another method": lambda c: changed(c, method="magic"),
    "another norm": lambda c: changed(c, spectral_norm=1.0),
    "another number of eigenvalues": lambda c: changed(c, n_eigenvalues=255),
    "alpha is infinite": lambda c: changed(c, alpha=float("inf")),
    "alpha is missing": lambda c: changed(c, alpha=None),
    "failed": lambda c: changed(c, status="failed", alpha=None),
    "nonfinite": lambda c: changed(c, status="nonfinite", alpha=None, n_eigenvalues=0),
    "more zeros than eigenvalues": lambda c: changed(c, n_zero=10**9),
    "permuted without being asked": lambda c: changed(c, rand_spectral_norm=1.0),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_right_checksum_over_a_wrong_result(tmp_path, caplog, harm):
    state = queries(2)
    plain = analyze(state, tmp_path)
    before = [path.read_bytes() for path in entries(tmp_path)]
    for path, data in zip(entries(tmp_path), before, strict=True):
        reseal(path, HARMS[harm](data[32:]))
    report = analyze(state, tmp_path)
    assert report.provenance.n_cached == 0
    assert_same(plain, report)
    said = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "is damaged" in said[0].message
    assert [path.read_bytes() for path in entries(tmp_path)] == before
    assert analyze(state, tmp_path).provenance.n_cached == 2


def test_spectra_of_permuted_entries_are_checked_too(tmp_path, caplog):
    state = queries(1)
    plain = analyze(state, tmp_path, randomize=True)
    (path,) = entries(tmp_path)
    entry = msgspec.msgpack.decode(path.read_bytes()[32:])
    for randomized in (None, b"", entry["randomized"][8:]):
        reseal(path, msgspec.msgpack.encode(entry | {"randomized": randomized}))
        report = analyze(state, tmp_path, randomize=True)
        assert report.provenance.n_cached == 0
        assert_same(plain, report)


@pytest.mark.parametrize("value", [0.0, np.nan, 1e-30, 1.0], ids=str)
@pytest.mark.parametrize("options", [{}, {"randomize": True}, {"tail": "farms"}, {"tail": "ks"}], ids=str)
def test_what_is_kept_is_believed(tmp_path, value, options):
    state = {"layers.0.mlp.up_proj.weight": np.full((320, 256), value, np.float32)}
    state["layers.1.mlp.up_proj.weight"] = np.tril(np.ones((256, 320), np.float32)) * np.float32(value)
    first = analyze(state, tmp_path, **options)
    again = analyze(state, tmp_path, **options)
    assert again.provenance.n_cached == 2
    assert [r.status for r in first] == [r.status for r in again]


def test_an_entry_may_be_a_folder_a_pipe_or_a_link(tmp_path, caplog):
    state = queries(1)
    plain = analyze(state, tmp_path)
    (path,) = entries(tmp_path)
    for place in (lambda: path.mkdir(), lambda: os.mkfifo(path), lambda: path.symlink_to(os.devnull)):
        path.unlink()
        place()
        report = analyze(state, tmp_path)
        assert report.provenance.n_cached == 0
        assert_same(plain, report)
        if path.is_dir():
            path.rmdir()
            path.touch()
    assert caplog.text.count("is damaged") == 3


# Who may write


@pytest.mark.parametrize("folder", ["", "results"])
def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path, folder):
    cache = tmp_path / "cache"
    analyze(queries(1), cache)
    (cache / folder).chmod(0o1777)
    with pytest.raises(UsageError, match=r"everybody may write to .*cache.* \(mode 1777\).*chmod o-w"):
        analyze(queries(1), cache)


def test_the_command_says_so(tmp_path):
    write_checkpoint(tmp_path / "ckpt", queries(1))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(AssertionError, match="everybody may write to"):
        run("analyze", "ckpt", cwd=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(AssertionError, match="results cannot be kept in /dev/null, which is no folder: name one"):
        run("analyze", "ckpt", cwd=tmp_path, cache="/dev/null")
    with pytest.raises(AssertionError, match="SPECDIAG_CACHE is '~no-such-user/x', and there is no such user"):
        run("analyze", "ckpt", cwd=tmp_path, cache="~no-such-user/x")


@pytest.fixture
def stranger(monkeypatch):
    """Everything on the disk is of another user."""
    return lambda: monkeypatch.setattr(ownership, "_trusted", lambda: {4_000_000_000})


def test_another_users_folder_is_left_alone(tmp_path, caplog, stranger):
    analyze(queries(1), tmp_path)
    (path,) = entries(tmp_path)
    before = path.stat()
    stranger()
    report = analyze(queries(2), tmp_path)
    assert report.provenance.n_cached == 0
    assert [p.name for p in entries(tmp_path)] == [path.name]
    assert path.stat() == before
    assert caplog.text.count("neither kept in") == 1


def test_a_folder_that_a_group_shares(tmp_path, stranger):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o2775)
    state = queries(2)
    plain = analyze(state, cache)
    for folder in (path for path in cache.rglob("*") if path.is_dir()):
        assert folder.stat().st_mode & stat.S_IWGRP, folder
    stranger()
    report = analyze(state, cache)
    assert report.provenance.n_cached == 2
    assert_same(plain, report)


def test_an_entry_of_another_user_in_ones_own_folder(tmp_path, monkeypatch, caplog):
    state = queries(1)
    plain = analyze(state, tmp_path)
    monkeypatch.setattr("specdiag.analysis.cache_store.check_folder", lambda folder: False)
    monkeypatch.setattr(ownership, "_trusted", lambda: {4_000_000_000})
    report = analyze(state, tmp_path)
    assert report.provenance.n_cached == 0
    assert_same(plain, report)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_unreadable_entry_is_none_and_not_damaged(tmp_path, monkeypatch, caplog):
    state = queries(1)
    plain = analyze(state, tmp_path)
    real = os.open

    def closed(path, flags, *rest, **options):
        if str(path).endswith(".result") and not flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", closed)
    report = analyze(state, tmp_path)
    assert report.provenance.n_cached == 0
    assert_same(plain, report)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640), (0o000, 0o644)])
def test_entries_have_the_mode_that_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        analyze(queries(1), tmp_path / "cache")
    finally:
        os.umask(before)
    (path,) = entries(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    for folder in (path for path in (tmp_path / "cache").rglob("*") if path.is_dir()):
        assert not folder.stat().st_mode & stat.S_IWOTH


def test_a_name_that_no_folder_has():
    with pytest.raises(UsageError, match="no folder can be called"):
        Store(Path("a\0b"))


# Which processor


def test_numbers_of_another_kernel_are_not_taken(tmp_path, monkeypatch):
    state = queries(1)
    analyze(state, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(results, "kernels", lambda: ("openblas Katmai",))
        assert analyze(state, tmp_path).provenance.n_cached == 0
        assert analyze(state, tmp_path).provenance.n_cached == 1
    assert analyze(state, tmp_path).provenance.n_cached == 1


def test_the_kernels_are_those_that_run(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "ckpt", queries(1))
    for kernel in ("Prescott", "Haswell"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", kernel)
        run("analyze", "ckpt", "-o", f"{kernel}.json", cwd=tmp_path, cache=tmp_path / "cache")
    one, other = (load_report(tmp_path / f"{kernel}.json").provenance for kernel in ("Prescott", "Haswell"))
    assert (one.n_cached, other.n_cached) == (0, 0)
    if one.kernels[0].startswith("openblas"):
        assert one.kernels[0] != other.kernels[0]


def test_kernels_and_processor_are_named():
    kernels = blas_kernels()
    assert len(kernels) >= 2
    assert all(isinstance(kernel, str) for kernel in kernels)
    assert kernels == blas_kernels()


@pytest.mark.parametrize("text", ["9" * 400 + "G", "0", "1e3", "-1"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="is no size"):
        parse_size(text)
