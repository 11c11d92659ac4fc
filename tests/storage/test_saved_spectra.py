"""The eigenvalues beside a report are those whose digest it holds, or they are refused in a sentence."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import lcg
from models import QUERY, lcg_state, write_checkpoint
from safetensors.numpy import load_file, save, save_file
from safetensors.torch import save_file as save_torch_file
from saved_reports import seal

import specdiag
from specdiag.errors import SourceError, SpecdiagError, UsageError
from specdiag.report import is_report, load_report
from specdiag.storage.kinds import REPORT

NAMES = tuple(QUERY.format(i) for i in range(2))


def analysed(rows, randomize=False):
    return specdiag.analyze(lcg_state(NAMES, rows), device="cpu", randomize=randomize)


@pytest.fixture
def saved(tmp_path):
    return analysed(64, randomize=True).save(tmp_path / "a.json"), tmp_path / "a.spectra.safetensors"


USES = {
    "eigenvalues": lambda report, _: report.eigenvalues(NAMES[0]),
    "in_memory": lambda report, _: report.in_memory(),
    "save": lambda report, folder: report.save(folder / "again.json"),
    "plot": lambda report, folder: specdiag.plot.esd(report),
    "page": lambda report, folder: specdiag.html_report(report),
}


@pytest.mark.parametrize("use", USES)
def test_those_of_another_report_are_refused(saved, tmp_path, use):
    path, spectra = saved
    analysed(96, randomize=True).save(tmp_path / "b.json")
    (tmp_path / "b.spectra.safetensors").replace(spectra)
    report = load_report(path)
    with pytest.raises(SourceError, match=r"a\.spectra\.safetensors is not the file that was saved with this report"):
        USES[use](report, tmp_path)
    assert not (tmp_path / "again.json").exists()
    assert not (tmp_path / "again.spectra.safetensors").exists()


def test_an_analysis_does_not_go_on_with_those_of_another_report(tmp_path):
    write_checkpoint(tmp_path, lcg_state(NAMES), config=None)
    report = specdiag.analyze(tmp_path / "model.safetensors", device="cpu")
    path = report.save(tmp_path / "a.json")
    changed = {name: values * 2 for name, values in load_file(tmp_path / "a.spectra.safetensors").items()}
    save_file(changed, tmp_path / "a.spectra.safetensors")
    with pytest.raises(SourceError, match="another SHA-256"):
        specdiag.analyze(tmp_path / "model.safetensors", device="cpu", partial_reports=[load_report(path)])


@pytest.mark.parametrize("harm", ["junk", "cut", "empty", "flip"])
def test_a_damaged_file_is_refused(saved, harm):
    path, spectra = saved
    data = spectra.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    spectra.write_bytes({"junk": b"\x07" * 200, "cut": data[:-8], "empty": b"", "flip": flipped}[harm])
    report = load_report(path)
    for _ in range(2):
        with pytest.raises(SourceError, match="another SHA-256"):
            report.eigenvalues(NAMES[0])


def half(values):
    return values.astype(np.float32)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop(NAMES[1]), "has no eigenvalues of 'model.layers.1.self_attn"),
        (lambda s: s.update({NAMES[0]: half(s[NAMES[0]])}), "are float32 of 1 dimensions"),
        (lambda s: s.update({NAMES[0]: s[NAMES[0]].reshape(2, -1)}), "are float64 of 2 dimensions"),
        (lambda s: s.update({NAMES[0]: s[NAMES[0]][1:]}), "are 63, and the report says 64"),
        (lambda s: s.update({NAMES[0]: s[NAMES[0]] * np.nan}), "are not all finite"),
        (lambda s: s.update({NAMES[0]: s[NAMES[0]][::-1].copy()}), "not in ascending order"),
        (lambda s: s.update({NAMES[0]: s[NAMES[0]] - 1e6}), "are negative"),
        (lambda s: s.update({f"{NAMES[0]}[randomized]": np.zeros(3)}), r"\[randomized\]' are 3, and"),
    ],
)
def test_what_no_report_has_is_refused_under_a_right_digest(saved, change, why):
    path, spectra = saved
    content = load_file(spectra)
    change(content)
    spectra.write_bytes(save(content))
    seal(path, spectra)
    with pytest.raises(SourceError, match=why):
        load_report(path).eigenvalues(NAMES[0])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_types_that_a_report_never_has(saved, kind):
    path, spectra = saved
    save_torch_file({name: torch.ones(64).to(kind) for name in NAMES}, spectra)
    seal(path, spectra)
    with pytest.raises(SourceError, match=r"spectra\.safetensors (is damaged|is no readable)"):
        load_report(path).eigenvalues(NAMES[0])


def test_a_pipe_and_a_file_of_another_size(saved):
    path, spectra = saved
    with spectra.open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(SourceError, match="MiB, and at most 1 MiB are read"):
        load_report(path).eigenvalues(NAMES[0])
    spectra.unlink()
    os.mkfifo(spectra)
    with pytest.raises(SourceError, match="not a regular file"):
        load_report(path).eigenvalues(NAMES[0])


def test_a_missing_file_is_named(saved):
    path, spectra = saved
    spectra.unlink()
    report = load_report(path)
    assert not report.has_eigenvalues
    with pytest.raises(UsageError, match="the file with the eigenvalues of this report is missing"):
        report.eigenvalues(NAMES[0])


def test_it_is_hashed_once(saved, monkeypatch):
    path, _ = saved
    report = load_report(path)
    first = report.eigenvalues(NAMES[0])
    monkeypatch.setattr("hashlib.sha256", lambda _: pytest.fail("hashed again"))
    for name in NAMES:
        report.eigenvalues(name, randomized=True)
    assert np.array_equal(first, report.in_memory().eigenvalues(NAMES[0]))


def test_a_matrix_without_a_spectrum_is_named_with_its_status(tmp_path):
    state = {NAMES[0]: torch.full((64, 64), torch.nan), NAMES[1]: torch.from_numpy(lcg(64, 64, 1))}
    analysed = specdiag.analyze(state, device="cpu")
    for report in (analysed, load_report(analysed.save(tmp_path / "a.json"))):
        with pytest.raises(UsageError, match=f"'{NAMES[0]}' has no eigenvalues: its status is nonfinite"):
            report.eigenvalues(NAMES[0])
        assert report.eigenvalues(NAMES[1]).size == 64


# The report itself


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ('"x"', r"Expected `int`, got `str` - at `\$.schema`"),
        ("1e300", "got `float`"),
        ("null", "got `null`"),
        ("9" * 30, f"of schema 9{{30}}; this specdiag reads schema {REPORT.schema}"),
        ("9" * 400, f"of schema 9{{15}}…9{{10}}; this specdiag reads schema {REPORT.schema}"),
        ("-" + "9" * 400, "its schema is -9{14}…9{10}"),
        ("9" * 5000, "out of range"),
        ("0", "its schema is 0"),
        ("-1", "its schema is -1"),
        ("[" * 100_000, "nested too deeply|Expected `int`, got `array`"),
        ('1,"source":' + '{"a":' * 100_000, "nested too deeply|unknown|Expected|missing"),
    ],
)
def test_schemas_that_are_none(saved, schema, why):
    path, _ = saved
    text = path.read_text()
    path.write_text(text.replace(f'{{"schema":{REPORT.schema}', f'{{"schema":{schema}', 1))
    with pytest.raises(SourceError, match=why):
        load_report(path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"rows": -(10**400)}, "rows is -10+…0+"),
        ({"n_slices": 10**20}, "n_slices is 1"),
        ({"n_eigenvalues": 65}, "65 eigenvalues of 64 x 64"),
        ({"n_zero": 65}, "n_zero is 65"),
        ({"mp_spikes": -1}, "mp_spikes is -1"),
        ({"alpha": None}, "its status is ok and its alpha None"),
        ({"status": "too_few"}, "its status is too_few and its alpha"),
        ({"square_status": "too_few"}, "its square_status is too_few and its square_alpha"),
        ({"alpha_null": 0.5}, "alpha_null is 0.5"),
        ({"spectral_norm": -1.0}, "spectral_norm is -1"),
        ({"name": NAMES[1]}, f"'{NAMES[1]}' is there twice"),
    ],
    ids=str,
)
def test_rows_that_cannot_be(saved, change, why):
    path, _ = saved
    content = json.loads(path.read_text())
    content["records"][0] |= change
    path.write_text(json.dumps(content, separators=(",", ":")))
    with pytest.raises(SourceError, match=rf"a\.json is damaged \(.*{why}"):
        load_report(path)


def test_a_pipe_is_no_report(tmp_path):
    pipe = tmp_path / "a.json"
    os.mkfifo(pipe)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(is_report(pipe)), daemon=True)
    thread.start()
    thread.join(60)
    assert answers == [False]
    with pytest.raises(SourceError, match="not a regular file"):
        load_report(pipe)


def test_a_name_that_no_file_has():
    assert not is_report("a\0b")
    with pytest.raises(SpecdiagError, match=r"give a path|no file can have this name"):
        load_report("a\0b")


def test_the_json_names_the_digest_of_the_file_beside_it(saved):
    path, spectra = saved
    again = load_report(path).save(path.with_name("b.json"))
    assert json.loads(again.read_text())["provenance"]["spectra_digest"]
    assert again.with_name("b.spectra.safetensors").read_bytes() == spectra.read_bytes()


# A crash between the two files


class Killed(BaseException):
    pass


@pytest.mark.parametrize("renamed", range(4))
def test_a_report_has_its_eigenvalues_after_a_kill_at_any_moment(saved, monkeypatch, renamed):
    """A save that stops between its three renames leaves the old report or the new one whole."""
    path, spectra = saved
    old, new = load_report(path).in_memory(), analysed(96)
    replace, done = Path.replace, []

    def dying(self, target):
        if len(done) == renamed:
            raise Killed
        done.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)
    if renamed < 3:
        with pytest.raises(Killed):
            new.save(path)
    else:
        new.save(path)
    monkeypatch.undo()
    found = load_report(path)
    expected = new if renamed >= 2 else old
    assert found.records == expected.records
    np.testing.assert_array_equal(found.eigenvalues(NAMES[0]), expected.eigenvalues(NAMES[0]))
    old.save(path)
    np.testing.assert_array_equal(load_report(path).eigenvalues(NAMES[1]), old.eigenvalues(NAMES[1]))
    assert spectra.exists()
    if renamed == 3:
        assert sorted(f.name for f in path.parent.iterdir()) == sorted([path.name, spectra.name])


@pytest.mark.parametrize("digest", ["/etc/passwd", "../../x", "", "0" * 63, "G" * 64])
def test_a_digest_that_is_none_names_no_file(saved, digest):
    path, _ = saved
    content = json.loads(path.read_text())
    content["provenance"]["spectra_digest"] = digest
    path.write_text(json.dumps(content))
    with pytest.raises(SourceError, match="is no SHA-256"):
        load_report(path)
