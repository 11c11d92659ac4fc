"""Rows of the function in comparisons, trajectories and plans."""

import csv
import io

import numpy as np
import pytest
import torch
from changes_of_form import Changes
from command import outcome
from models import write_checkpoint
from wired_models import random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.analysis.summary import contrast_in_balance
from specdiag.function.blocks import find_blocks

LARGER = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
          "intermediate_size": 192}  # fmt: skip


def regauged():
    model = random_model("llama", **LARGER)
    blocks = find_blocks(open_source(model))[0]
    Changes("llama", model, [block.wiring for block in blocks], blocks[0].attention.n_rotated).all()
    return model


def renumbered():
    """Heads of one group exchanged, which changes no output."""
    model = random_model("llama", **LARGER)
    with torch.no_grad():
        for block in model.model.layers:
            a = block.self_attn
            a.q_proj.weight.copy_(a.q_proj.weight.unflatten(0, (2, 64)).flip(0).flatten(0, 1).clone())
            a.o_proj.weight.copy_(a.o_proj.weight.unflatten(1, (2, 64)).flip(1).flatten(1, 2).clone())
    return model


@pytest.fixture(scope="module")
def report():
    return specdiag.analyze(random_model("llama", **LARGER), function=True, device="cpu")


@pytest.fixture(scope="module")
def folded():
    return specdiag.analyze(regauged(), function=True, device="cpu")


def test_another_form_has_the_same_function(report, folded):
    found = specdiag.compare(report, folded)
    assert len(found.function) == len(report.function) == 2 * (2 * 2 + 2)
    assert max(abs(m.change["square_alpha"]) for m in found.modules if "square_alpha" in m.change) > 0.01
    for change in found.function:
        assert max(abs(value) for metric, value in change.change.items() if metric in ("alpha", "rho")) < 1e-6
    assert all(role.sigma < 1e-9 for role in found.function_roles)
    assert not [note for note in found.notes if "renumbered:" in note]
    assert found[report.function[0].key].role == "qk"


def test_renumbered_heads_are_told_by_their_sizes(report):
    found = specdiag.compare(report, specdiag.analyze(renumbered(), function=True, device="cpu"))
    by_role = {role.role: role for role in found.function_roles}
    for role in ("qk", "ov"):
        assert by_role[role].sigma > 1e-3
        assert by_role[role].sigma_sorted < 1e-9
        assert any(f"The heads of {role} look renumbered" in note for note in found.notes)
    assert by_role["du"].sigma < 1e-9


def test_a_side_without_the_function_is_named(report):
    plain = specdiag.analyze(random_model("llama", **LARGER), device="cpu")
    found = specdiag.compare(report, plain)
    assert not found.function
    assert any("AFTER has no rows of the function" in note for note in found.notes)
    assert not [note for note in specdiag.compare(plain, plain).notes if "function" in note]


def test_the_command_compares_them(report, folded, tmp_path):
    report.save(tmp_path / "a.json")
    folded.save(tmp_path / "b.json")
    code, out, err = outcome("compare", tmp_path / "a.json", tmp_path / "b.json", width=120)
    assert code == 0, err
    assert "Function (means of after - before" in out
    code, out, err = outcome("compare", tmp_path / "a.json", tmp_path / "b.json", "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["form"] for row in rows if row["match"] == "both"].count("function") == 12
    assert {row["head"] for row in rows if row["role"] == "qk"} == {"0", "1"}
    state = {k: v.float() for k, v in random_model("llama", **LARGER).state_dict().items()}
    folder = write_checkpoint(tmp_path / "c", state, random_model("llama", **LARGER).config.to_dict())
    found = specdiag.compare(tmp_path / "a.json", folder, device="cpu")
    assert len(found.function) == 12  # a checkpoint is analysed as the report was


def test_the_contrast_in_both_forms(report, folded):
    before, after = contrast_in_balance(report.records), contrast_in_balance(folded.records)
    assert abs(before[0].difference - after[0].difference) > 1e-3
    assert before[1].difference == pytest.approx(after[1].difference, abs=1e-9)
    assert contrast_in_balance(specdiag.analyze(random_model("llama", **LARGER), device="cpu").records) is None
    code, out, err = outcome("analyze", saved(report), width=120)
    assert code == 0, err
    assert "Balanced form" in out


def saved(report):
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "a.json"
    report.save(path)
    return path


def test_a_plan_on_the_balanced_form_does_not_depend_on_the_form(report, folded):
    plans = [specdiag.recommend(r, basis="function", weight_decay=0.1) for r in (report, folded)]
    ratios = [[entry.ratio for entry in plan.entries] for plan in plans]
    assert ratios[0] == pytest.approx(ratios[1], abs=1e-6)
    stored = [[e.ratio for e in specdiag.recommend(r, basis="square").entries] for r in (report, folded)]
    assert np.abs(np.subtract(*stored)).max() > 0.01
    assert any("were not tested" in note for note in plans[0].notes)
    by_alpha = specdiag.recommend(report)
    assert any(note.startswith("By square_alpha of the balanced form") for note in by_alpha.notes)
    assert not any("balanced" in note for note in specdiag.recommend(report, rule="uniform").notes)
    for export in ("json", "torch", "toml", "csv"):
        code, out, err = outcome("recommend", saved(report), "--basis", "function", "--export", export)
        assert code == 0, err
        assert out


def test_no_plan_without_a_known_wiring(tmp_path):
    state = {k: v.float() for k, v in random_model("llama", **LARGER).state_dict().items()}
    with pytest.raises(specdiag.UsageError, match="wiring is unknown without a config"):
        specdiag.recommend(state, basis="function", device="cpu")
    plain = specdiag.analyze(state, device="cpu")
    with pytest.raises(specdiag.UsageError, match="function=True"):
        specdiag.recommend(plain, basis="function")
    code, _, err = outcome("recommend", saved(plain), "--basis", "function")
    assert code == 2
    assert "--function" in err
