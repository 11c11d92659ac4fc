"""Findings in words: a value with its unit, and the direction of its threshold; the explanation of a check."""

from __future__ import annotations

import pytest
from audited_models import CONFIG, LAYERS, llama, name, save
from command import invoke

import specdiag
from specdiag.auditing import wording
from specdiag.auditing.records import Finding
from specdiag.auditing.thresholds import default_checks

CHECKS = default_checks()


def finding(check, value, threshold=None):
    given = CHECKS[check].threshold if threshold is None else threshold
    return Finding(check=check, severity="warn", module="m", value=value, threshold=given, why="it", advice="do")


@pytest.mark.parametrize(
    ("found", "value", "expected"),
    [
        (finding("nonfinite", 3), "NaN or infinite values: 3", "none"),
        (finding("dead_rows", 3 / 64), "4.69 % of the rows zero", "none"),
        (finding("dead_rows", 0.5, 0.04), "50 % of the rows zero", "at most 4 %"),
        (finding("rank", 0.124), "12.4 % of the singular values zero", "at most 5 %"),
        (finding("random", 0.51621), "0.516 standard deviations from random", "at least 4"),
        (finding("random", 3.9999), "just below 4 standard deviations from random", "at least 4"),
        (finding("rank", 0.05001), "just above 5 % of the singular values zero", "at most 5 %"),
        (finding("norm_outlier", 123456.7), "123000 robust deviations from its like", "at most 16"),
        (finding("baseline_stable_rank", 3.0), "stable ranks differ by a factor of 3", "at most 2"),
        (finding("layers", 12, 24.0), "12 layers", "24"),
        (finding("vocabulary", 32000, 32001.0), "32000 rows", "32001"),
        (finding("zero", "all zero"), "all zero", ""),
        (finding("denormal", float("inf")), "inf % of the values below the smallest normal number", "at most 1 %"),
        (Finding(check="of a later version", severity="warn", value=0.25, threshold=0.1, why="", advice=""), "0.25", "0.1"),
    ],
)  # fmt: skip
def test_values_have_units_and_limits_a_direction(found, value, expected):
    assert (wording.value(found), wording.expected(found)) == (value, expected)


def test_a_sentence_has_all():
    assert wording.sentence(finding("rank", 0.124)) == (
        "m: 12.4 % of the singular values zero, expected at most 5 %. It. What to do: do."
    )


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_every_check_with_a_threshold_has_words_for_its_values(check):
    assert check.phrase.count("{}") + check.phrase.count("{%}") == 1
    assert check.threshold is None or check.phrase != "{}"
    share = check.metric.startswith("share of")
    assert ("{%}" in check.phrase) == share


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_every_check_is_explained(check):
    done = invoke("audit", "--explain", check.id)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert lines[0] == f"{check.id}: {check.metric}."
    assert lines[-1].endswith("in the file of --thresholds.")
    if check.threshold:
        said = f"{100 * check.threshold:g} %" if "{%}" in check.phrase else f"{check.threshold:g}"
        assert f"{check.fires} {said}" in lines[1]


def test_an_explanation_goes_by_the_thresholds_that_hold(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text('[rank]\nthreshold = 0.2\nseverity = "fail"\n[trap]\nenabled = false\n')
    done = invoke("audit", "--explain", "rank", "--thresholds", toml)
    assert "Finding: a failure if the value is above 20 %." in done.stdout
    assert "It is switched off." in invoke("audit", "--explain", "trap", "--thresholds", toml).stdout
    assert "Needs: --randomize." in invoke("audit", "--explain", "trap").stdout


def test_an_unknown_check_is_answered_with_its_neighbours():
    done = invoke("audit", "--explain", "dead_row")
    assert done.exit_code == 2
    assert "there is no check 'dead_row'; the nearest are dead_rows" in done.stderr
    far = invoke("audit", "--explain", "\x1b[31m" + "z" * 1000)
    assert far.exit_code == 2
    assert "the checks are nonfinite, saturated" in far.stderr
    assert "\x1b[31m" not in far.stderr
    assert len(far.stderr) < 2000


def test_findings_of_the_whole_checkpoint_come_first_among_equals(tmp_path):
    state, config = llama(), CONFIG | {"num_hidden_layers": LAYERS + 1}
    state[name(0, "mlp.up_proj")][:] = 0
    found = specdiag.audit(save(tmp_path / "m", state, config), reference_model=False)
    checks = [group[0].check for group in wording.groups(found) if group[0].severity == "fail"]
    assert checks.index("layers") < checks.index("zero")


def test_checks_that_matter_alike_are_explained_once():
    alike = (finding("baseline_alpha", 11.0),), (finding("baseline_norm", 5.0),), (finding("rank", 0.2),)
    other = (Finding(check="zero", severity="fail", value="all zero", threshold=None, why="else", advice="do"),)
    assert wording.explanations([*alike, other]) == [
        "baseline_alpha, baseline_norm, rank: it. What to do: do.", "zero: else. What to do: do."
    ]  # fmt: skip


@pytest.mark.parametrize("width", [80, 200])
def test_a_module_stands_once_with_all_its_findings_below(tmp_path, monkeypatch, width):
    state, both, other = llama(), name(1, "mlp.up_proj"), name(2, "mlp.up_proj")
    state[both][3], state[both][:, 4], state[other][:, 5] = 0, 0, 0
    monkeypatch.setenv("COLUMNS", str(width))
    done = invoke("audit", save(tmp_path / "m", state), "--no-reference-model")
    table = done.stdout.split("\n\n")[1]
    assert table.count(both) == 1
    of_both = table.split(both)[1].split(other)[0]
    assert "dead_rows" in of_both
    assert "dead_cols" in of_both
    assert table.count("dead_rows") == 1
    assert table.count("dead_cols") == 2
