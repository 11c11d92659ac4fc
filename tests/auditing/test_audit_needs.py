"""Inputs that checks name as their need, held against the checks that a saved report can and cannot feed."""

from __future__ import annotations

from audited_models import llama, row, save
from command import invoke
from saved_reports import made

import specdiag
from specdiag.auditing.thresholds import default_checks


def test_a_check_that_a_report_cannot_feed_says_so(tmp_path):
    folder = save(tmp_path / "model", llama(0))
    report = specdiag.analyze(folder, device="cpu")
    lost = (
        specdiag.audit(report).coverage.not_checked.keys() - specdiag.audit(folder, device="cpu").coverage.not_checked
    )
    needs = {check: default_checks()[check].needs for check in lost}
    assert {"shard_types", "zero_gains"} <= needs.keys()
    assert "report" not in needs.values()


def test_explain_knows_every_check_in_the_options_of_the_audit():
    for name, said in (("random", "Finding: a warning if the value is below 4"), ("TRAP", "Needs: --randomize.")):
        done = invoke("explain", name)
        assert done.exit_code == 0
        assert said in done.stdout
        assert "in the file of --thresholds." in done.stdout
    assert "Needs: the checkpoint itself." in invoke("explain", "shard_types").stdout
    assert "did you mean dead_rows" in invoke("explain", "dead_row").stderr


def test_a_name_that_is_a_check_and_a_column_has_both():
    done = invoke("explain", "layers")
    assert "Finding: a failure" in done.stdout
    assert "In lineage" in done.stdout


def test_a_matrix_is_huge_or_large_and_not_both():
    audit = specdiag.audit(made([row("a", "q", 0, spectral_norm=1e20), row("b", "q", 1, spectral_norm=1e5)]))
    found = [(f.check, f.module) for f in audit.findings if f.check in ("huge", "large")]
    assert found == [("huge", "a"), ("large", "b")]
    off = specdiag.audit(made([row("a", "q", 0, spectral_norm=1e20)]), thresholds={"huge": {"enabled": False}})
    assert "large" in {f.check for f in off.findings}
