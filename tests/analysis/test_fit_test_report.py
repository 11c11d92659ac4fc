"""The fit test of an analysis, of a saved report, and on the command line."""

import json

import numpy as np
import pytest
from command import invoke
from models import QUERY, llama_state

import specdiag
from specdiag.errors import UsageError
from specdiag.report import load_report

COLUMNS = ("best_law", "power_law_p", "llr_truncated", "llr_exponential", "llr_lognormal", "llr_mp")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def state():
    """Noise of 128 x 256, and matrices whose tails are too short or missing."""
    found = llama_state(2, width=128, hidden=256)
    found["model.layers.2.self_attn.q_proj.weight"] = np.eye(128, dtype="f4")
    found["model.layers.3.self_attn.q_proj.weight"] = found[QUERY.format(0)][:64]
    return found


@pytest.fixture(scope="module")
def report(state):
    return specdiag.analyze(state, device="cpu", fit_test=True)


def test_the_columns(report):
    record = report[UP]
    found = report.compare_laws(UP)
    assert report.settings.fit_test
    assert (found.k, found.xmin) == (record.k, record.xmin)
    assert found.laws["power-law"].parameters["alpha"] == pytest.approx(record.alpha, rel=1e-9)
    assert found.laws["mp-bulk"].parameters["edge"] == pytest.approx(record.mp_edge)
    assert record.best_law == (found.best or "undecided")
    assert record.llr_mp == pytest.approx(found.compare("mp-bulk", "power-law").value)
    assert record.llr_lognormal == pytest.approx(found.compare("lognormal", "power-law").value)
    assert record.power_law_p < 0.05


def test_without_the_option_nothing_is_compared(state, report):
    plain = specdiag.analyze(state, device="cpu")
    assert {getattr(record, name) for record in plain for name in COLUMNS} == {None}
    assert plain.summary.laws == ()
    assert specdiag.fit_test(plain).records == report.records
    assert specdiag.fit_test(plain).summary == report.summary


def test_roles(report):
    laws = {(row.family, row.role): row for row in report.summary.laws}
    assert [(row.family, row.role) for row in report.summary.laws] == [
        (role.family, role.role) for role in report.summary.roles
    ]
    up, query = laws["mlp", "up"], laws["attention", "q"]
    assert (up.n, up.n_untested, up.candidates) == (2, 0, ("mp-bulk",))
    assert up.llr["mp-bulk"] == pytest.approx(sum(r.llr_mp for r in report if r.role == "up"))
    assert (query.n, query.n_untested) == (2, 2)


def test_what_is_not_tested(report):
    for layer, why in (
        (2, "it has no exponent .status degenerate"),
        (3, "its tail has 32 eigenvalues, and fewer than 50"),
    ):
        name = QUERY.format(layer)
        assert {getattr(report[name], column) for column in COLUMNS} == {None}
        with pytest.raises(UsageError, match=f"'{name}' has no fit test: {why}"):
            report.compare_laws(name)


@pytest.mark.parametrize("tail", ["hill-paper", "ks", "fix-finger", "clip-xmax"])
def test_other_rules_of_the_tail(state, tail):
    report = specdiag.analyze(state, device="cpu", tail=tail, fit_test=True)
    tested = [record for record in report if record.best_law is not None]
    for record in tested:
        law = report.compare_laws(record.key).laws["power-law"]
        assert law.parameters["alpha"] == pytest.approx(record.alpha, rel=1e-9)
    assert bool(tested) == (tail not in ("ks", "clip-xmax"))


def test_windows_have_no_tail_to_test(state):
    with pytest.raises(UsageError, match="fit_test=True takes the eigenvalues of whole matrices, and tail=farms fits"):
        specdiag.analyze(state, tail="farms", fit_test=True)
    by_windows = specdiag.analyze({UP: state[UP]}, device="cpu", tail="farms")
    with pytest.raises(UsageError, match="and tail='farms' fits those of windows"):
        specdiag.fit_test(by_windows)
    with pytest.raises(UsageError, match="tail=farms fits the eigenvalues of windows, which are not kept"):
        by_windows.compare_laws(UP)


def test_a_saved_report(report, state, tmp_path):
    plain = specdiag.analyze(state, device="cpu")
    plain.save(tmp_path / "plain.json")
    report.save(tmp_path / "tested.json")
    loaded = load_report(tmp_path / "tested.json")
    assert specdiag.fit_test(load_report(tmp_path / "plain.json")).records == loaded.records == report.records
    assert loaded.summary == report.summary
    plain.save(tmp_path / "bare.json", spectra=False)
    with pytest.raises(UsageError, match="carries no eigenvalues"):
        specdiag.fit_test(load_report(tmp_path / "bare.json"))


def test_kept_results_serve_with_and_without(state, tmp_path):
    options = {"device": "cpu", "cache": tmp_path}
    big = {UP: np.tile(state[UP], (2, 2)) + np.float32(0.1) * np.random.default_rng(0).random((512, 256), "f4")}
    specdiag.analyze(big, **options)
    tested = specdiag.analyze(big, fit_test=True, **options)
    assert tested.provenance.n_cached == 1
    assert tested[UP].best_law is not None
    again = specdiag.analyze(big, **options)
    assert (again.provenance.n_cached, again[UP].best_law) == (1, None)


def test_command(report, state, tmp_path):
    plain = specdiag.analyze(state, device="cpu")
    path = plain.save(tmp_path / "plain.json")
    shown = invoke("analyze", path, "--fit-test", width=200).stdout
    assert "Fit test (ln of each law's likelihood over that of the power law, all matrices of a role)" in shown
    assert "Fit test: 15 of 15 tails differ from a power law. Over all matrices of a role" in shown
    assert "a Marchenko-Pastur bulk with spikes fits best in" in shown
    assert "Eigenvalues are not independent, so the p-values behind the fit test are not calibrated." in shown
    assert "Not tested: 2 of 17 matrices, which have no exponent or fewer than 50 eigenvalues in the tail." in shown
    assert "Fit test" not in invoke("analyze", path).stdout
    saved = json.loads(invoke("analyze", path, "--fit-test", "-f", "json").stdout)
    assert [row["best_law"] for row in saved["records"]] == [record.best_law for record in report]
    page = specdiag.html_report(report)
    assert "<h3>Fit test</h3>" in page
    assert "<h3>Fit test</h3>" not in specdiag.html_report(plain)


def test_laws_of_a_trained_model(minilm):
    """Hardly a tail of MiniLM is a power law, and one matrix does not show its law (docs/numbers.md)."""
    report = specdiag.analyze(minilm, device="cpu", fit_test=True)
    laws = {row.role: row for row in report.summary.laws}
    assert sum(row.n_not_power_law for row in laws.values()) == 38
    assert sum(row.n for row in laws.values()) == 39
    assert laws["v"].candidates == ("exponential",)
    for role in ("q", "k", "o", "up", "down"):
        assert len(laws[role].candidates) > 1
        assert (
            {"lognormal"} <= {*laws[role].candidates} <= {"lognormal", "exponential", "truncated-power-law", "mp-bulk"}
        )
    by_ks = {
        row.role: row.candidates
        for row in specdiag.analyze(minilm, tail="ks", device="cpu", fit_test=True).summary.laws
    }
    assert by_ks["k"] == by_ks["down"] == ("power-law",)
