"""compare: known perturbations, names that differ by a prefix, what has no counterpart, and rxnfp's two fine-tunes."""

from __future__ import annotations

import csv
import io
import json
from statistics import fmean

import msgspec
import numpy as np
import pytest
import torch
from command import outcome
from helpers import esd, with_singular_values
from models import write_checkpoint

import specdiag
from specdiag.comparison.compare import failures
from specdiag.comparison.limits import LIMITS, exceeding, parse_limits
from specdiag.comparison.matching import match
from specdiag.comparison.records import COLUMNS, Comparison
from specdiag.comparison.subspaces import subspaces
from specdiag.errors import SourceError, UsageError
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.storage.kinds import COMPARISON

Q, UP = "layers.0.self_attn.q_proj.weight", "layers.0.mlp.up_proj.weight"


def state(seed=0, d=64, ff=160, dtype=torch.float64, prefix="", layers=2):
    rng = np.random.default_rng(seed)
    made = {f"{prefix}embed_tokens.weight": rng.standard_normal((200, d))}
    for layer in range(layers):
        for role in "qkvo":
            made[f"{prefix}layers.{layer}.self_attn.{role}_proj.weight"] = rng.standard_normal((d, d))
        made[f"{prefix}layers.{layer}.mlp.up_proj.weight"] = rng.standard_normal((ff, d))
        made[f"{prefix}layers.{layer}.mlp.down_proj.weight"] = rng.standard_normal((d, ff))
        made[f"{prefix}layers.{layer}.norm.weight"] = np.ones(d)
    return {name: torch.from_numpy(value).to(dtype) for name, value in made.items()}


def run(*args):
    return outcome("compare", *args)


# Weights


def test_a_rank_one_change_has_the_numbers_of_its_formula():
    a = state()
    rng = np.random.default_rng(1)
    u, v = (torch.from_numpy(rng.standard_normal(n)) for n in (160, 64))
    u, v, eps = u / u.norm(), v / v.norm(), 0.25
    b = a | {UP: a[UP] + eps * torch.outer(u, v)}
    found = specdiag.compare(a, b)
    assert len(found.modules) == 13
    delta = found[UP].delta
    norm = float(a[UP].norm())
    inner = norm**2 + eps * float(u @ a[UP] @ v)
    after = float(b[UP].norm())
    assert delta.relative_change == pytest.approx(eps / norm, rel=1e-12)
    assert delta.cosine == pytest.approx(inner / (norm * after), abs=1e-14)
    assert delta.cosine_distance == pytest.approx(1 - inner / (norm * after), rel=1e-6)
    assert delta.stable_rank == pytest.approx(1, abs=1e-12)
    assert delta.spectral_norm == pytest.approx(eps, rel=1e-12)
    assert delta.singular_values[0] == pytest.approx(eps, rel=1e-12)
    assert max(delta.singular_values[1:]) < 1e-8
    assert delta.energy(1) == pytest.approx(1, abs=1e-12)
    assert delta.status == "low_rank"
    assert delta.alpha is None
    others = [m for m in found.modules if m.name != UP]
    assert all(m.unchanged and m.delta.relative_change == 0 and m.delta.cosine == 1 for m in others)
    assert all(m.change["alpha"] == 0 for m in others if "alpha" in m.change)
    total = sum(float(w.norm()) ** 2 for w in a.values() if w.dim() == 2) ** 0.5
    assert found.relative_change == pytest.approx(eps / total, rel=1e-9)


def test_the_spectrum_of_the_difference_is_that_of_numpy():
    a, b = state(0), state(1)
    found = specdiag.compare(a, b)
    for name in (Q, UP):
        d = (b[name] - a[name]).numpy()
        delta = found[name].delta
        np.testing.assert_allclose(np.array(delta.singular_values[::-1]) ** 2, esd(d), rtol=1e-9)
        assert delta.frobenius_norm == pytest.approx(np.linalg.norm(d), rel=1e-12)
        assert delta.energy(8) == pytest.approx(esd(d)[-8:].sum() / esd(d).sum())
        assert delta.alpha == pytest.approx(specdiag.analyze({name: torch.from_numpy(d)})[name].alpha, rel=1e-12)
        assert delta.cosine == pytest.approx(float((a[name] * b[name]).sum() / (a[name].norm() * b[name].norm())))


@pytest.mark.parametrize("shape", [(64, 64), (200, 64), (64, 200)])
def test_rotated_subspaces_give_their_angles(shape):
    """Planes of two leading directions, turned by known angles within what is orthogonal to the rest."""
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.standard_normal((shape[0], 4)))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], 4)))[0]
    s, t = np.radians([10.0, 70.0]), np.radians([25.0, 40.0])
    turned_u, turned_v = (w[:, :2] * np.cos(x) + w[:, 2:] * np.sin(x) for w, x in ((u, s), (v, t)))
    a = (u[:, :2] * [5, 4]) @ v[:, :2].T
    b = (turned_u * [5, 4]) @ turned_v.T
    f64 = FLOAT_TYPES["F64"]
    found = subspaces(a, f64, b, f64, 2)
    np.testing.assert_allclose(found.left, np.cos(s), atol=1e-10)
    np.testing.assert_allclose(found.right, np.cos(t), atol=1e-10)
    assert (found.left_angle, found.right_angle) == (pytest.approx(70), pytest.approx(40))
    assert found.gap == pytest.approx(1)
    assert subspaces(a, f64, a, f64, 2).left_angle == pytest.approx(0, abs=1e-5)
    assert subspaces(a, f64, b, f64, 3) is None, "there are only two directions"
    assert subspaces(a[:3], f64, b[:3], f64, 2) is None, "at most a quarter of the smaller side"


def test_subspaces_are_those_of_the_svd():
    a, b = state(0), state(1)
    found = specdiag.compare(a, b, subspace=5)[UP].delta.subspaces
    ua, sa, va = torch.linalg.svd(a[UP], full_matrices=False)
    ub, _, vb = torch.linalg.svd(b[UP], full_matrices=False)
    np.testing.assert_allclose(found.left, torch.linalg.svdvals(ua[:, :5].T @ ub[:, :5]), atol=1e-9)
    np.testing.assert_allclose(found.right, torch.linalg.svdvals(va[:5] @ vb[:5].T), atol=1e-9)
    assert found.gap == pytest.approx(float((sa[4] - sa[5]) / sa[4]), abs=1e-9)
    assert specdiag.compare(a, b, subspace=0)[UP].delta.subspaces is None


def test_storage_types_may_differ_and_rounding_is_not_called_learning():
    a = state(dtype=torch.float32)
    rounded = {name: w.to(torch.bfloat16) for name, w in a.items()}
    widened = {name: w.to(torch.float32) for name, w in rounded.items()}
    delta = specdiag.compare(a, rounded)[UP].delta
    expected = (widened[UP] - a[UP]).double()
    assert delta.frobenius_norm == pytest.approx(float(expected.norm()), rel=1e-6)
    assert 1e-3 < delta.relative_change < 3e-3
    assert delta.status == "low_rank", "its whole spectrum lies below what rounding makes"
    equal = specdiag.compare(rounded, widened)[UP]
    assert (equal.unchanged, equal.delta.status, equal.delta.relative_change) == (False, "zero", 0.0)
    moved = {name: w + 0.3 * torch.randn_like(w) for name, w in widened.items()}
    assert specdiag.compare(rounded, moved)[UP].delta.status == "ok"


def test_fused_parts_experts_and_convolutions():
    rng = np.random.default_rng(0)
    shapes = {
        "h.0.attn.c_attn.weight": (64, 192), "h.0.attn.c_proj.weight": (64, 64),
        "layers.1.mlp.experts.gate_up_proj": (3, 64, 128), "layers.1.mlp.experts.down_proj": (3, 64, 64),
        "layers.1.mlp.router.weight": (3, 64), "conv.weight": (64, 64, 3),
    }  # fmt: skip
    a = {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}
    b = {name: w.clone() for name, w in a.items()}
    b["h.0.attn.c_attn.weight"][:, 64:128] *= 2
    b["layers.1.mlp.experts.down_proj"][1] *= 3
    b["conv.weight"] *= 1.5
    found = specdiag.compare(a, b)
    moved = {m.name: m for m in found.modules if not m.unchanged}
    assert sorted(moved) == ["conv.weight", "h.0.attn.c_attn.weight[k]", "layers.1.mlp.experts.down_proj[expert=1]"]
    assert moved["h.0.attn.c_attn.weight[k]"].delta.relative_change == pytest.approx(1)
    assert moved["layers.1.mlp.experts.down_proj[expert=1]"].delta.relative_change == pytest.approx(2)
    assert moved["h.0.attn.c_attn.weight[k]"].delta.subspaces.left_angle == pytest.approx(0, abs=1e-5)
    conv = moved["conv.weight"]
    assert conv.delta.frobenius_norm == pytest.approx(0.5 * float(a["conv.weight"].norm()))
    assert conv.delta.subspaces is None, "several slices have no one subspace"


def test_bad_values_are_named_and_the_rest_is_compared(tmp_path):
    a, b = state(), state(1)
    b[Q][3, 3] = torch.nan
    found = specdiag.compare(a, b)
    assert found[Q].delta.status == "nonfinite"
    assert found[Q].change == pytest.approx(found[Q].change | {"n_nonfinite": 1})
    assert [r.key for r in failures(found)] == [Q]
    assert sum(m.delta.relative_change is not None for m in found.modules) == 12
    code, out, err = run(write_checkpoint(tmp_path / "a", a), write_checkpoint(tmp_path / "b", b))
    assert code == 4
    assert f"{Q} (nonfinite)" in err
    assert f"{Q} (ok → nonfinite)" in out
    code, _, err = run(tmp_path / "a", tmp_path / "b", "--fail-above", "alpha=5")
    assert code == 1
    assert f"alpha has no value after, above 5: {Q}" in err


# Names


def test_a_prefix_comes_off_one_side_and_order_does_not_matter():
    a, b = state(), state(1)
    longer = {f"model.{name}": w for name, w in reversed(b.items())} | {"lm_head.weight": torch.randn(200, 64)}
    plain, found = specdiag.compare(a, b), specdiag.compare(a, longer)
    assert (found.prefix_before, found.prefix_after) == ("", "model.")
    assert [m.name for m in found.modules] == [m.name for m in plain.modules]
    assert [m.delta for m in found.modules] == [m.delta for m in plain.modules]
    assert [u.name for u in found.only_after] == ["lm_head.weight"]
    assert found[f"model.{Q}"] is found[Q]
    back = specdiag.compare(longer, a)
    assert (back.prefix_before, back.prefix_after) == ("model.", "")
    assert len(back.modules) == 13


def test_names_are_not_guessed():
    twice = [f"{side}.layers.{i}.w" for side in ("encoder", "decoder") for i in range(3)]
    found = match(twice, [f"layers.{i}.w" for i in range(3)])
    assert found.pairs == ()
    assert found.ambiguous == ("decoder.", "encoder.")
    found = match(["bert.x.w", "x.w", "bert.y.w"], ["x.w", "y.w"])
    assert found.pairs == (("x.w", "x.w", "x.w"), ("bert.y.w", "y.w", "y.w"))
    assert match([], ["x"]).pairs == ()
    assert (
        match([f"model.{n}.w" for n in "abcd"] + ["model.x.d.w"], [f"{n}.w" for n in "abcd"]).prefix_before == "model."
    )
    a = state(prefix="encoder.") | state(1, prefix="decoder.")
    with pytest.raises(SourceError, match=r"like 'encoder.embed_tokens.weight' and 'embed_tokens.weight'; "):
        specdiag.compare(a, state(), weights=False)
    listed = specdiag.compare(a | {Q: a[f"encoder.{Q}"].clone()}, state(), weights=False)
    assert any("'decoder.' and 'encoder.'" in note for note in listed.notes)
    assert [m.name for m in listed.modules] == [Q]


def test_what_does_not_match_is_listed():
    a = state()
    b = {name: w for name, w in a.items() if name != Q}
    b[UP] = torch.randn(128, 64)
    b["layers.0.norm.weight"] = torch.ones(32)
    b["layers.0.extra.bias"] = torch.ones(3)
    b["head.weight"] = torch.randn(7, 64)
    found = specdiag.compare(a, b)
    assert [(u.name, u.role) for u in found.only_before] == [(Q, "q")]
    assert {u.name for u in found.only_after} == {"layers.0.extra.bias", "head.weight"}
    assert {(r.name, r.shape_before, r.shape_after) for r in found.reshaped} == {
        (UP, (160, 64), (128, 64)), ("layers.0.norm.weight", (64,), (32,)),
    }  # fmt: skip
    named = {m.name for m in found.modules} | {u.name for s in (found.only_before, found.only_after) for u in s}
    assert named | {r.name for r in found.reshaped} >= {n for n in (*a, *b) if not n.endswith("1.norm.weight")}


def test_a_head_that_was_tied_and_is_no_longer():
    a = state() | {"embed_tokens.weight": torch.randn(200, 64)}
    tied = a | {"lm_head.weight": a["embed_tokens.weight"]}
    found = specdiag.compare(tied, tied | {"lm_head.weight": torch.randn(200, 64)})
    assert [(u.name, u.reason) for u in found.only_after] == [("lm_head.weight", "before: tied to embed_tokens.weight")]


def test_of_runs_the_newest_checkpoints(tmp_path):
    for run, seed in (("a", 0), ("b", 1)):
        (tmp_path / run).mkdir()
        for step in (5, 10, 100):
            write_checkpoint(tmp_path / run / f"checkpoint-{step}", state(seed + step))
    found = specdiag.compare(tmp_path / "a", tmp_path / "b", weights=False)
    assert [s.location for s in (found.before, found.after)] == [str(tmp_path / run / "checkpoint-100") for run in "ab"]
    with pytest.raises(SourceError):
        specdiag.compare(tmp_path, tmp_path / "b")


def test_a_selection_holds_on_both_sides():
    a, b = state(), state(1, prefix="model.")
    assert {m.role for m in specdiag.compare(a, b, roles="q").modules} == {"q"}
    for pattern in ("layers.0.*", "model.layers.0.*"):
        found = specdiag.compare(a, b, include=pattern, weights=False)
        assert {m.layer for m in found.modules} == {0}
        assert len(found.modules) == 6
        assert found.only_before == found.only_after == ()
    with pytest.raises(UsageError, match=r"exclude='nothing' matches none of \d+ names of both sides"):
        specdiag.compare(a, b, exclude="nothing")
    with pytest.raises(UsageError, match="unknown roles='queries'"):
        specdiag.compare(a, b, roles="queries")


# Reports


def test_reports_are_compared_as_they_are(tmp_path):
    a, b = state(), state(1)
    for name, weights in (("a", a), ("b", b)):
        specdiag.analyze(weights).save(tmp_path / f"{name}.json")
    whole, found = specdiag.compare(a, b), specdiag.compare(tmp_path / "a.json", tmp_path / "b.json")
    assert [m.change for m in found.modules] == [m.change for m in whole.modules]
    assert all(m.delta is None for m in found.modules)
    assert found.balance == whole.balance
    summary = specdiag.analyze(b).summary
    assert (found.balance.sd_after, found.balance.range_after) == (summary.balance_sd, summary.balance_range)
    assert found.relative_change is None
    mixed = specdiag.compare(specdiag.analyze(a, tail_fraction=0.3), b)
    assert mixed.settings_after.tail_fraction == 0.3
    with pytest.raises(UsageError, match="a saved report holds no weights"):
        specdiag.compare(tmp_path / "a.json", b, weights=True)
    with pytest.raises(UsageError, match="reports are compared as they are: tail"):
        specdiag.compare(tmp_path / "a.json", tmp_path / "b.json", tail="ks")


def test_other_tail_rules_are_not_subtracted():
    a, b = (specdiag.analyze(state(i), tail=tail) for i, tail in ((0, "hill"), (1, "ks")))
    found = specdiag.compare(a, b)
    assert not {"alpha", "rho"} & set(found[Q].change)
    assert {"square_alpha", "pl_alpha", "stable_rank"} <= set(found[Q].change)
    assert any("tail rules differ (hill at 0.5 and ks at 0.5)" in note for note in found.notes)


def test_updates_of_adapters_are_compared_by_their_spectra(tmp_path):
    def adapter(seed):
        torch.manual_seed(seed)
        name = "base_model.model.layers.0.self_attn.q_proj.lora_"
        folder = write_checkpoint(
            tmp_path / f"lora{seed}", {f"{name}A.weight": torch.randn(4, 64), f"{name}B.weight": torch.randn(64, 4)}
        )
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 4}')
        return folder

    base = write_checkpoint(tmp_path / "base", state(dtype=torch.float32))
    found = specdiag.compare(adapter(0), adapter(1))
    assert [m.delta for m in found.modules] == [None]
    applied = specdiag.compare(base, adapter(2), base=base)
    assert [m.name for m in applied.modules if not m.unchanged] == [Q]
    delta = applied[Q].delta
    assert delta.energy(4) == pytest.approx(1, abs=1e-6)


# Limits and the command


def test_limits():
    a = state()
    b = a | {Q: 2 * a[Q]}
    found = specdiag.compare(a, b)
    assert [(e.module, e.value) for e in exceeding(found, {"relative_change": 0.5})] == [(Q, pytest.approx(1))]
    assert exceeding(found, {"relative_change": 1.001, "alpha": 1e-9, "unmatched": 0, "left_angle": 1e-3}) == []
    assert [e.module for e in exceeding(found, {"spectral_norm": 0.1})] == [Q]
    reports = specdiag.compare(specdiag.analyze(a), specdiag.analyze(b))
    with pytest.raises(UsageError, match="so nothing is checked"):
        exceeding(reports, {"relative_change": 0.5})
    assert parse_limits(["alpha=0.1", "unmatched=0"]) == {"alpha": 0.1, "unmatched": 0}
    for text, message in (
        ("alfa=1", "unknown metric 'alfa'"),
        ("alpha", "'' is no number"),
        ("alpha=-1", "at least 0"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_limits([text])
    with pytest.raises(UsageError, match=r"alpha has the limit 0 already"):
        parse_limits(["alpha=0", "alpha=100"])
    assert len(set(LIMITS)) == len(LIMITS)


def test_command(tmp_path):
    a, b = (
        write_checkpoint(tmp_path / "a", state()),
        write_checkpoint(tmp_path / "b", state(1, prefix="model.") | {"z.bias": torch.ones(2)}),
    )
    code, out, _ = run(a, b)
    assert code == 0
    order = (
        "None of 13 matrices resembles its counterpart",
        "Roles (means",
        "\n13 matrices\n",
        "1 only after",
        "13 matrices matched, without the prefix 'model.' of AFTER",
        "Balance of",
    )
    assert sorted(order, key=out.index) == list(order)
    code, out, _ = run(a, b, "-f", "json")
    found = msgspec.json.decode(out, type=Comparison)
    assert len(found.modules) == 13
    assert json.loads(out)["schema"] == COMPARISON.schema
    code, out, _ = run(a, b, "-f", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == list(COLUMNS)
    assert [r["match"] for r in rows] == ["both"] * 13 + ["only after"]
    assert float(rows[1]["delta_relative_change"]) == found.modules[1].delta.relative_change
    shown = run(a, b, "-f", "md")[1]
    assert shown.startswith("## specdiag compare: ")
    assert "- **Changed most**: " in shown.split("| match | name | role |")[0]
    assert run(a, b, "-o", tmp_path / "c.json")[0] == 0
    assert msgspec.json.decode((tmp_path / "c.json").read_bytes(), type=Comparison) == found
    assert found.to_records()[0]["square_alpha_change"] == found.modules[0].change["square_alpha"]


def test_command_in_a_pipeline(tmp_path):
    a, b = write_checkpoint(tmp_path / "a", state()), write_checkpoint(tmp_path / "b", state(1))
    assert (
        run(a, a, "--fail-above", "relative_change=0", "--fail-above", "alpha=0", "--fail-above", "unmatched=0")[0] == 0
    )
    code, out, err = run(a, b, "--fail-above", "relative_change=1", "--no-weights")
    assert (code, "nothing is checked" in err) == (2, True)
    code, out, err = run(a, b, "--fail-above", "relative_change=1")
    assert code == 1
    assert "relative_change 1." in err
    assert "13 matrices" in out
    assert run(a, b, "--fail-above", "alfa=1")[0] == 2
    code, out, err = run(a, b, "--subspace", "3", "--no-weights")
    assert (code, "--subspace is of the weights" in err) == (2, True)
    assert run(a, tmp_path / "nowhere.safetensors")[0] == 3


# A real base and two fine-tunes


@pytest.mark.parametrize(
    ("tuned", "relative", "energy", "stable_rank", "prefix"),
    [
        ("bert_ft", (0.2229, 0.2267), (0.3208, 0.2585), (18.26, 22.95), "bert."),
        ("bert_ft_10k_25s", (0.0800, 0.0797), (0.4964, 0.3577), (10.05, 13.41), ""),
    ],
)
def test_rxnfp(rxnfp, tuned, relative, energy, stable_rank, prefix):
    """Means over attention and MLP: 22 % and 8 % of the norm, rank 8 keeps 32/26 % and 50/36 % (reference/assets.md)."""
    found = specdiag.compare(rxnfp / "bert_pretrained", rxnfp / tuned)
    assert found.prefix_before == prefix
    assert len(found.modules) == 76
    for i, family in enumerate(("attention", "mlp")):
        deltas = [m.delta for m in found.modules if m.family == family]
        assert fmean(d.relative_change for d in deltas) == pytest.approx(relative[i], abs=1e-4)
        assert fmean(d.energy(8) for d in deltas) == pytest.approx(energy[i], abs=1e-4)
        assert fmean(d.stable_rank for d in deltas) == pytest.approx(stable_rank[i], abs=0.01)
    moved = [m.change["alpha"] for m in found.modules if m.family in ("attention", "mlp")]
    assert fmean(np.abs(moved)) < 0.011, "alphas hardly move"
    assert found.balance.sd_before == pytest.approx(0.1277, abs=1e-4)
    one = found[f"{'' if prefix else 'bert.'}encoder.layer.3.attention.self.query.weight"]
    a, b = (
        torch.load(rxnfp / side / "pytorch_model.bin", map_location="cpu", weights_only=True)
        for side in ("bert_pretrained", tuned)
    )
    before, after = a[one.before.key].double(), b[one.after.key].double()
    assert one.delta.relative_change == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-9)
    assert one.delta.cosine == pytest.approx(float((before * after).sum() / before.norm() / after.norm()), abs=1e-12)
    outside = {u.name for side in (found.only_before, found.only_after) for u in side if u.role is not None}
    assert {"cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"} <= outside


def test_turning_singular_values_alone_leaves_subspaces():
    a = with_singular_values(np.geomspace(1, 100, 64)[::-1], (96, 64))
    u, s, v = np.linalg.svd(a, full_matrices=False)
    b = (u * s**1.5) @ v
    found = specdiag.compare({"w.weight": torch.from_numpy(a)}, {"w.weight": torch.from_numpy(b)})["w.weight"]
    assert found.delta.subspaces.left_angle < 1e-4
    assert found.change["alpha"] < -0.1
