"""Changes since a baseline."""

from __future__ import annotations

import numpy as np
from audited_models import WIDTH, found, llama, name, save, wide
from command import invoke
from helpers import with_singular_values
from models import EMBED, HEAD, PLACES

import specdiag
from specdiag.auditing.wording import groups, summary, to_markdown


def test_against_a_baseline(tmp_path):
    old = llama(1, layers=4)
    new = {key: value.copy() for key, value in old.items()}
    changed, scaled, collapsed, cast, dropped = (name(1, place) for place in PLACES[:5])
    new[changed] *= np.float32(1.2)
    new[scaled] *= np.float32(1.6)
    new[collapsed] = with_singular_values(np.geomspace(1e-3, 30, WIDTH), (WIDTH, WIDTH)).astype("f4")
    new[cast] = new[cast].astype("f2")
    del new[dropped]
    new[EMBED] = np.r_[new[EMBED], np.ones((8, WIDTH), "f4") * np.arange(1, 9, dtype="f4")[:, None]]
    new["score.weight"] = 0.1 * np.random.default_rng(0).standard_normal((70, WIDTH)).astype("f4")
    old[name(2, PLACES[0])][:] = 0
    before, after = save(tmp_path / "a", old), save(tmp_path / "b", new)
    report = specdiag.analyze(before, device="cpu")
    audit = specdiag.audit(after, baseline=report, device="cpu")
    against = {pair for pair in found(audit) if pair[0].startswith("baseline")}
    other = ("baseline_norm", "baseline_alpha", "baseline_square_alpha", "baseline_stable_rank")
    revived = name(2, PLACES[0])
    assert {pair for pair in against if pair[0] not in (*other, "baseline_unchanged")} == {
        ("baseline_changed", changed), ("baseline_changed", scaled), ("baseline_changed", collapsed),
        ("baseline_changed", revived), ("baseline_status", revived), ("baseline_dtype", cast),
        ("baseline_missing", dropped), ("baseline_reshaped", EMBED), ("baseline_head", "score.weight"),
    }  # fmt: skip
    assert {pair for pair in against if pair[0] in other} == {
        ("baseline_norm", scaled), ("baseline_alpha", collapsed), ("baseline_square_alpha", collapsed),
        ("baseline_norm", collapsed), ("baseline_stable_rank", collapsed),
    }  # fmt: skip
    assert ("baseline_unchanged", HEAD) in against
    grown = specdiag.audit(before, baseline=after, device="cpu")
    assert ("baseline_extra", dropped) in found(grown)
    report.save(tmp_path / "r.json")
    same = specdiag.audit(tmp_path / "r.json", baseline=tmp_path / "r.json")
    assert not any(f.check.startswith("baseline") for f in same.findings)


def test_a_baseline_below_a_head_is_compared_by_what_both_names_share():
    inner = wide()
    audit = specdiag.audit(inner, baseline={f"backbone.{key}": value for key, value in inner.items()}, device="cpu")
    assert found(audit) == {("baseline_identical", None)}


def test_a_baseline_of_another_rule_is_not_compared_by_alpha():
    state = wide()
    other = specdiag.analyze(state, tail="hill-paper", device="cpu")
    audit = specdiag.audit(state, baseline=other, device="cpu")
    assert found(audit) == {("baseline_identical", None)}
    assert audit.coverage.not_checked["baseline_alpha"] == "the tail is hill here and hill-paper in the baseline"
    assert "baseline_square_alpha" not in audit.coverage.not_checked


def test_many_changes_are_one_line(tmp_path):
    """A fine-tune changes every matrix: the first screen has their number and extremes, --all and JSON each of them."""
    old = llama(1, layers=4)
    new = {key: value * np.float32(1 + 0.01 * i / len(old)) for i, (key, value) in enumerate(old.items())}
    before, after = save(tmp_path / "a", old), save(tmp_path / "b", new)
    audit = specdiag.audit(after, baseline=before, device="cpu")
    changed = [f for f in audit.findings if f.check == "baseline_changed"]
    group = next(group for group in groups(audit) if group[0].check == "baseline_changed")
    low, high = (pick(changed, key=lambda f: f.value) for pick in (min, max))
    assert len(changed) > 10
    assert summary(group).startswith("model.layers 0 to 3, lm_head.weight: norm changed by ")
    assert summary(group).endswith(f" % (least {low.module}, most {high.module})")
    short, whole = (to_markdown(audit, all_rows=every).decode() for every in (False, True))
    assert f"| {len(changed)} findings | model.layers 0 to 3, lm\\_head.weight: norm changed by" in short
    assert whole.count("| norm changed by") == len(changed)
    shown, full = (invoke("audit", after, "--baseline", before, *more).stdout for more in ((), ("--all",)))
    assert f"{len(changed)} findings (--all)" in shown
    assert shown.count("baseline_changed") == 2
    assert full.count("baseline_changed") == len(changed) + 1


def test_many_warnings_are_a_row_each_check_that_says_where(tmp_path):
    """Two layers drawn anew: the row of a check names them once, and the modules are for --all."""
    old = llama(1, layers=4)
    rng = np.random.default_rng(2)
    new = {
        k: 9 * rng.standard_normal(w.shape).astype(w.dtype) if w.ndim == 2 and (".1." in k or ".2." in k) else w
        for k, w in old.items()
    }
    before, after = save(tmp_path / "a", old), save(tmp_path / "b", new)
    audit = specdiag.audit(after, baseline=before, device="cpu")
    group = [f for f in audit.findings if f.check == "baseline_norm"]
    assert len(group) == 14
    narrow, wide_ = (invoke("audit", after, "--baseline", before, width=width).stdout for width in (80, 160))
    assert "14 findings (--all)" in narrow
    row = "14 findings (--all) warn baseline_norm model.layers 1 and 2: norms differ by a factor of"
    assert row in " ".join(wide_.split())
    assert not any(line.startswith("model.layers.") for line in wide_.splitlines())
    every = invoke("audit", after, "--baseline", before, "--all", width=160).stdout
    assert all(any(line.startswith(f"{f.module} ") for line in every.splitlines()) for f in group)
