import json
import os
import resource
from functools import partial

import numpy as np
import pytest
import torch
from command import execute, python
from helpers import lcg
from msgspec.structs import replace
from safetensors.numpy import save_file
from saved_reports import seal

import specdiag
from specdiag.errors import ComputationError, SourceError, UsageError
from specdiag.files import check_writable, write_atomically
from specdiag.report import COLUMNS, load_report
from specdiag.storage.kinds import REPORT


@pytest.fixture
def report():
    state = {
        "model.layers.0.self_attn.q_proj.weight": torch.from_numpy(lcg(64, 64, 1)),
        "model.layers.0.mlp.up_proj.weight": torch.from_numpy(lcg(160, 64, 2)).float(),
        "model.layers.0.mlp.down_proj.weight": torch.zeros(64, 160),
        "model.norm.weight": torch.ones(64),
    }
    return specdiag.analyze(state, device="cpu")


def test_round_trip(report, tmp_path):
    path = report.save(tmp_path / "a.json")
    again = load_report(path)
    for name in ("source", "settings", "records", "skipped", "summary", "complete"):
        assert getattr(again, name) == getattr(report, name), name
    for record in report:
        if record.status == "ok":
            assert np.array_equal(again.eigenvalues(record.key), report.eigenvalues(record.name, record.part))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.spectra.safetensors"]


@pytest.mark.parametrize("tail", ["hill", "hill-paper", "ks", "fix-finger", "clip-xmax", "farms"])
def test_every_tail_survives_the_round_trip(tail, tmp_path):
    state = {
        f"layers.{layer}.{name}.weight": torch.from_numpy(lcg(*shape, 7 * layer + len(name)))
        for layer in range(2)
        for name, shape in (("attn.q_proj", (64, 64)), ("attn.o_proj", (64, 64)), ("mlp.up_proj", (160, 64)))
    }
    report = specdiag.analyze(state, device="cpu", tail=tail)
    again = load_report(report.save(tmp_path / "a.json"))
    assert again.records == report.records
    assert again.summary == report.summary
    assert "NaN" not in (tmp_path / "a.json").read_text()


def test_the_json_is_the_documented_object(report, tmp_path):
    content = json.loads(report.save(tmp_path / "a.json").read_text())
    expected = ["schema", "source", "settings", "complete", "records", "function", "skipped", "summary", "provenance"]
    assert list(content) == expected
    assert content["schema"] == REPORT.schema
    assert list(content["records"][0]) == list(COLUMNS)
    zero = content["records"][2]
    assert zero["status"] == "zero"
    assert zero["alpha"] is zero["pl_alpha"] is None
    assert "-1" not in json.dumps(zero)
    assert len(content["provenance"]["spectra_digest"]) == 64


def test_a_loaded_report_is_saved_with_its_eigenvalues(report, tmp_path):
    first = load_report(report.save(tmp_path / "a.json"))
    name = report.records[0].key
    for target in ("b.json", "a.json"):
        again = load_report(first.save(tmp_path / target))
        assert np.array_equal(again.eigenvalues(name), report.eigenvalues(name))


@pytest.mark.parametrize("how", [{"indent": 2}, {"sort_keys": True}], ids=["indented", "sorted"])
def test_a_report_that_another_program_formatted(report, tmp_path, how):
    path = report.save(tmp_path / "a.json")
    path.write_text(json.dumps(json.loads(path.read_text()), **how))
    assert specdiag.recommend(path).entries == specdiag.recommend(report).entries


def test_without_spectra(report, tmp_path):
    again = load_report(report.save(tmp_path / "a.json", spectra=False))
    assert not (tmp_path / "a.spectra.safetensors").exists()
    with pytest.raises(UsageError, match="carries no eigenvalues"):
        again.eigenvalues(report.records[0].key)


def test_randomized_eigenvalues_stand_beside(tmp_path):
    """A name that looks like their key, as a hostile file may have, is still only its own."""
    names = ["x.weight", *(f"x.weight[randomized]{end}" for end in ("", " ", "[randomized]", " [randomized]  ", "s"))]
    state = {name: torch.from_numpy(lcg(64, 64, i)) for i, name in enumerate(names)}
    report = specdiag.analyze(state, device="cpu", randomize=True)
    again = load_report(report.save(tmp_path / "a.json"))
    found = [r.eigenvalues(name, randomized=p) for r in (report, again) for p in (False, True) for name in names]
    assert all(np.array_equal(a, b) for a, b in zip(found[:12], found[12:], strict=True))
    assert len({values.tobytes() for values in found}) == 12
    for record in again:
        assert again.eigenvalues(record.key)[-1] ** 0.5 == record.spectral_norm
        assert again.eigenvalues(record.key, randomized=True)[-1] ** 0.5 == record.rand_spectral_norm
    kept = again.in_memory()
    (tmp_path / "a.spectra.safetensors").unlink()
    assert np.array_equal(kept.eigenvalues(names[1], randomized=True), found[7])
    with pytest.raises(UsageError, match="no matrix 'y'"):
        report.eigenvalues("y", randomized=True)


def test_a_report_of_before_randomized_eigenvalues_were_kept(tmp_path):
    report = specdiag.analyze({"x.weight": torch.from_numpy(lcg(64, 64, 1))}, device="cpu", randomize=True)
    path = report.save(tmp_path / "a.json")
    spectra = tmp_path / "a.spectra.safetensors"
    save_file({"x.weight": report.eigenvalues("x.weight")}, spectra)
    seal(path, spectra)
    again = load_report(path)
    assert again.records == report.records
    assert np.array_equal(again.eigenvalues("x.weight"), report.eigenvalues("x.weight"))
    with pytest.raises(UsageError, match="saved before these were kept, so analyze again with randomize=True"):
        again.eigenvalues("x.weight", randomized=True)


def test_unknown_matrix(report):
    with pytest.raises(UsageError, match=r"no matrix 'x\[q\]'; its names look like 'model.layers.0"):
        report.eigenvalues("x", "q")
    with pytest.raises(KeyError):
        report["x"]


def test_a_newer_schema_is_named(report, tmp_path):
    path = report.save(tmp_path / "a.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": 99, "novelty": 1}))
    with pytest.raises(SourceError, match=f"report of schema 99; this specdiag reads schema {REPORT.schema}: upgrade"):
        load_report(path)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1", f'{{"schema": {REPORT.schema}, "records": []}}', '{"schema": 1, "entries": []}', "\x00\x01"],
)
def test_garbage_is_no_report(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=r"is no specdiag report|is a decay plan, not a specdiag report"):
        load_report(tmp_path / "a.json")
    with pytest.raises(SourceError, match=r"cannot read .*missing.json: No such file"):
        load_report(tmp_path / "missing.json")


def test_a_failed_write_leaves_the_old_file(report, tmp_path, monkeypatch):
    path = report.save(tmp_path / "a.json")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ComputationError, match=r"writing .*a.json failed: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.spectra.safetensors"]


def test_a_full_disk_in_a_real_process(report, tmp_path):
    source = report.save(tmp_path / "a.json")
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (500, 500))
    done = execute("analyze", source, "-f", "csv", "-o", tmp_path / "b.csv", preexec_fn=limit)
    assert done.returncode == 4
    assert "b.csv failed: File too large" in done.stderr
    assert not (tmp_path / "b.csv").exists()


def test_a_report_is_kept_where_its_eigenvalues_do_not_fit(tmp_path):
    save_file({"model.layers.0.mlp.up_proj.weight": lcg(1500, 1500, 1)}, tmp_path / "model.safetensors")
    out = tmp_path / "b.json"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (8192, 8192))
    done = execute("analyze", tmp_path / "model.safetensors", "-o", out, preexec_fn=limit)
    assert done.returncode == 4
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "spectra.safetensors" in line
    assert line.endswith(f"failed: File too large; free space or name another folder; "
                         f"the report is in {out}, without its eigenvalues")  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json", "model.safetensors"]
    kept = load_report(out)
    assert kept.complete
    assert [record.status for record in kept] == ["ok"]
    assert not kept.has_eigenvalues


def test_unwritable_paths(tmp_path):
    with pytest.raises(UsageError, match=r"the folder .*nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "a.json")
    with pytest.raises(UsageError, match="it is a folder; name a file"):
        check_writable(tmp_path)


def test_to_records_goes_into_pandas(report):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(report.to_records())
    assert list(frame.columns) == list(COLUMNS)
    assert frame.alpha.notna().sum() == 2


def test_repr_is_short(report):
    lines = repr(report).splitlines()
    assert lines[0] == f"SpectralReport({report.source}: 3 matrices)"
    assert len(lines) == 1 + len(report.summary.roles)
    assert "alpha_null" in lines[1]


def test_notebook_view_escapes_names(report):
    evil = replace(report.source, location="<script>alert(1)</script>")
    shown = specdiag.SpectralReport(
        evil, report.settings, report.records, report.skipped, report.summary, report.provenance
    )._repr_html_()
    assert "<script>" not in shown
    assert "attention" in shown


def test_reading_a_report_loads_no_heavy_library(report, tmp_path):
    path = report.save(tmp_path / "a.json")
    code = (
        "import sys, specdiag; r = specdiag.load_report(sys.argv[1]); r.eigenvalues(r.records[0].key);"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'huggingface_hub') if m in sys.modules])"
    )
    done = python(code, path)
    assert done.stdout.strip() == "[]"
