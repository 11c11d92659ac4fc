"""Thresholds that a user changes, and the table of them in docs/audit.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from audited_models import CONFIG, llama, name, save
from models import PLACES

import specdiag
from specdiag.auditing.thresholds import checks_table, load_checks
from specdiag.errors import UsageError


def test_overrides(tmp_path):
    state, config = llama(0), dict(CONFIG)
    state[name(2, PLACES[0])][:3] = 0
    folder = save(tmp_path / "model", state, config)
    toml = tmp_path / "mine.toml"
    toml.write_text('[dead_rows]\nseverity = "fail"\nthreshold = 0.04\n[zero]\nenabled = false\n')
    (finding,) = specdiag.audit(folder, thresholds=toml, device="cpu").findings
    assert (finding.severity, finding.threshold, finding.value) == ("fail", 0.04, 3 / 64)
    quiet = specdiag.audit(folder, thresholds={"dead_rows": {"threshold": 3 / 64}}, device="cpu")
    assert quiet.verdict == "pass"
    off = specdiag.audit(folder, thresholds={"dead_rows": {"enabled": False}}, device="cpu")
    assert off.coverage.not_checked["dead_rows"] == "switched off"
    few = specdiag.audit(
        save(tmp_path / "two", llama(0, 2)), thresholds={"norm_outlier": {"at_least": 2}}, device="cpu"
    )
    assert [f.check for f in few.findings] == ["layers"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[xyzzy]\nthreshold = 1", "there is no check 'xyzzy'; the checks are nonfinite, saturated"),
        ("[nonfinit]\nthreshold = 1", "there is no check 'nonfinit'; the nearest are nonfinite"),
        ("[rank]\nlimit = 1", "'rank' has no 'limit' to change; it has threshold, severity, enabled"),
        ("[zero]\nthreshold = 1", "'zero' has no 'threshold' to change; it has severity, enabled"),
        ("[rank]\nat_least = 1", "'rank' has no 'at_least' to change"),
        ('[rank]\nseverity = "fatal"', "'rank' is not understood"),
        ('[rank]\nthreshold = "low"', "'rank' is not understood"),
        ("rank = 3", "'rank' is not understood"),
        ("[rank]\nthreshold = -0.1", "threshold -0.1 of 'rank' must be a number of at least 0"),
        ("[rank]\nthreshold = nan", "must be a number of at least 0"),
        ("[rank\n", "is no TOML"),
    ],
)
def test_wrong_overrides_are_named(tmp_path, text, said):
    toml = tmp_path / "mine.toml"
    toml.write_text(text)
    with pytest.raises(UsageError, match=re.escape(said)):
        load_checks(toml)
    with pytest.raises(UsageError, match="cannot be read"):
        load_checks(tmp_path / "absent.toml")


def test_the_table_in_the_docs_is_that_of_the_checks():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    assert page.split("<!-- checks -->\n")[1].split("<!-- /checks -->")[0].strip() == checks_table().strip()
