"""The windows of `tail="farms"` belong to what numbers depend on: settings, kept results, comparisons and audits."""

import numpy as np
import pytest
from command import invoke
from models import write_checkpoint

import specdiag
from specdiag.errors import UsageError
from specdiag.report import load_report

NAMES = [f"model.layers.{layer}.{place}.weight" for layer in range(2) for place in ("self_attn.q_proj", "mlp.up_proj")]
SMALL = {"tail": "farms", "farms_rows": 100, "farms_windows": 3}


@pytest.fixture(scope="module")
def state():
    rng = np.random.default_rng(0)
    return {name: rng.standard_t(3, (260, 300)).astype("f4") for name in NAMES}


@pytest.fixture(scope="module")
def report(state):
    return specdiag.analyze(state, device="cpu", **SMALL)


def test_other_windows_are_other_kept_results(state, tmp_path):
    options = {"device": "cpu", "cache": tmp_path, "tail": "farms"}
    found = [
        specdiag.analyze(state, **options, **windows)
        for windows in ({}, {"farms_rows": 100}, {"farms_aspect": 0.5}, {"farms_windows": 2}, {"farms_rows": 2000})
    ]
    assert [report.provenance.n_cached for report in found] == [0, 0, 0, 0, len(NAMES)]
    assert len({report[NAMES[0]].alpha for report in found}) == 4


def test_a_comparison_takes_the_windows_of_a_report(report, state, tmp_path):
    saved = load_report(report.save(tmp_path / "a.json"))
    same = specdiag.compare(saved, write_checkpoint(tmp_path / "b", state))
    assert same.settings_after.farms_rows == 100
    assert {module.change["alpha"] for module in same.modules} == {0.0}
    by_hill = specdiag.compare(saved, tmp_path / "b", tail="hill")
    assert by_hill.settings_after.farms_rows is None
    other = specdiag.compare(saved, tmp_path / "b", tail="farms", farms_windows=4)
    assert not any("alpha" in module.change for module in other.modules)
    (note,) = (note for note in other.notes if "tail rules differ" in note)
    assert "farms at 0.5, windows of 100 rows, 1:1, 3 a dimension and farms at 0.5, windows of 100 rows, 1:1, 4" in note


def test_an_audit_takes_the_windows_of_a_report(report, state):
    baseline = specdiag.audit(report, baseline=state)
    assert "baseline_alpha" not in baseline.coverage.not_checked
    other = specdiag.audit(report, baseline=specdiag.analyze(state, device="cpu", tail="farms", farms_rows=50))
    assert other.coverage.not_checked["baseline_alpha"] == "the farms windows is 3 here and 10 in the baseline"


def test_a_plan_by_windows(report, state):
    assert specdiag.recommend(report, basis="farms").ratios
    assert specdiag.recommend(state, basis="farms", device="cpu", farms_rows=100, farms_windows=3).ratios == (
        specdiag.recommend(report, basis="farms").ratios
    )


def test_a_partial_report_of_other_windows_is_refused(report, tmp_path, state):
    folder = write_checkpoint(tmp_path / "model", state)
    partial = specdiag.analyze(folder, device="cpu", **SMALL)
    with pytest.raises(UsageError, match="was made with farms_rows = 100, and this is 2000"):
        specdiag.analyze(folder, device="cpu", tail="farms", partial_reports=[partial])


def test_command(state, tmp_path):
    folder = write_checkpoint(tmp_path / "model", state)
    out = tmp_path / "a.json"
    done = invoke(
        "analyze", folder, "--tail", "farms", "--farms-rows", 100, "--farms-aspect", 0.8, "--no-cache", "-o", out
    )
    assert done.exit_code == 0, done.output
    settings = load_report(out).settings
    assert (settings.farms_rows, settings.farms_aspect, settings.farms_windows) == (100, 0.8, 10)
    refused = invoke("analyze", folder, "--farms-rows", 100)
    assert (
        refused.exit_code,
        refused.stderr.count("--farms-rows describes the windows of --tail farms, not hill"),
    ) == (2, 1)
    assert "windows of 100 rows, 1:0.8, 10 a dimension" in specdiag.html_report(load_report(out))
