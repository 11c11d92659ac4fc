"""Plans: the published numbers, who takes part, the random twin, and the released code's quirks."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from helpers import naive_hill
from paper_report import PAPER, ROLES, Llama, llama, record
from saved_reports import made
from torch import nn

import specdiag
from specdiag.decay.plan import DecayPlan
from specdiag.decay.recommend import recommend
from specdiag.decay.schedule_record import decay_schedule
from specdiag.errors import UsageError
from specdiag.views.plan_sentences import findings

# ------------------------------------------------------------------ published numbers


@pytest.mark.parametrize(("s2", "plain", "weighted"), [(3.0, 1.34, 1.53), (5.0, 1.91, 2.27)])
def test_mean_ratios_of_the_paper(s2: float, plain: float, weighted: float) -> None:
    plan = recommend(PAPER, s2=s2)
    assert plan.mean_ratio == pytest.approx(plain, abs=0.006)
    assert plan.mean_ratio_weighted == pytest.approx(weighted, abs=0.006)


def test_bars_and_shape_share_of_the_paper() -> None:
    plan = recommend(PAPER)
    assert len(plan.entries) == 56
    bars = [plan.entries[i].ratio for i in range(7)]
    assert bars == pytest.approx([0.769, 0.750, 3.000, 2.212, 1.583, 1.621, 1.935], abs=0.004)
    assert plan.shape_share == pytest.approx(0.55, abs=0.01)
    assert [n for n in plan.notes if "alone sets the range" in n and "layers.0.self_attn.v_proj" in n]


def test_without_the_outlier_the_mlp_gets_more() -> None:
    def mlp(plan: DecayPlan) -> float:
        return fmean(entry.ratio for entry in plan.entries if entry.family == "mlp")

    assert mlp(recommend(PAPER)) == pytest.approx(1.80, abs=0.01)
    rest = recommend(PAPER, exclude="*layers.0.self_attn.v_proj*")
    assert mlp(rest) == pytest.approx(2.37, abs=0.01)
    clipped = recommend(PAPER, clip=(5, 95))
    assert mlp(clipped) > 2.2
    assert not [note for note in clipped.notes if "alone sets the range" in note]


def test_minilm_is_mostly_explained_by_shape(minilm: Path) -> None:
    spectra = specdiag.analyze(minilm)
    by_alpha, by_square = recommend(spectra), recommend(spectra, basis="square")

    def means(plan: DecayPlan) -> list[float]:
        return [fmean(e.ratio for e in plan.entries if e.family == f) for f in ("attention", "mlp")]

    assert by_alpha.shape_share == pytest.approx(0.87, abs=0.005)
    assert means(by_alpha) == pytest.approx([0.96, 2.49], abs=0.005)
    assert means(by_square) == pytest.approx([1.15, 1.59], abs=0.005)
    assert by_square.shape_share == 0.0
    assert "87 % of this plan (R^2). Most of it reflects the shapes" in " ".join(findings(by_alpha))
    assert by_alpha.tail_shift == pytest.approx(0.283, abs=0.001)


# ------------------------------------------------------------------ who takes part


def test_projections_of_attention_and_mlp_take_part_and_nothing_else() -> None:
    moe = made([*PAPER.records, record("model.layers.0.mlp.gate.weight", "router", 0, 2.0, (64, 512))])
    plan = recommend(moe, weight_decay=0.1)
    assert {entry.role for entry in plan.entries} == set(ROLES)
    assert all(entry.weight_decay == pytest.approx(0.1 * entry.ratio) for entry in plan.entries)
    assert {e.role for e in recommend(moe, roles=["q", "router"]).entries} == {"q", "router"}
    assert len(recommend(moe, include="*layers.1.*").entries) == 7


def test_a_fused_parameter_has_one_decay_of_its_parts_mean() -> None:
    records = [
        record("h.0.attn.c_attn.weight", role, 0, alpha, part=role)
        for role, alpha in (("q", 1.5), ("k", 1.6), ("v", 3.5))
    ]
    plan = recommend(made([*records, record("h.0.attn.c_proj.weight", "o", 0, 2.0)]))
    fused, alone = plan.entries
    assert (fused.role, fused.value, fused.part_values) == (None, pytest.approx(2.2), {"q": 1.5, "k": 1.6, "v": 3.5})
    assert (fused.ratio, alone.ratio) == (3.0, 0.67), "the mean is taken before the minimum and the maximum"
    assert fused.n_parameters == 3 * 512 * 512


def test_equal_and_missing_values_give_ratio_1() -> None:
    assert recommend(llama([[2.0] * 7] * 2)).mean_ratio == 1
    plan = recommend(llama([[1.5, None, 2.0, 2.1, 2.2, 2.3, 2.5]]))
    missing = plan["model.layers.0.self_attn.k_proj.weight"]
    assert (missing.ratio, missing.random_ratio, missing.note) == (1.0, 1.0, "no alpha (degenerate): ratio 1")
    assert "1 of 7 stay at ratio 1: model.layers.0.self_attn.k_proj.weight" in plan.notes[0]
    others = [e.ratio for e in plan.entries if e.note is None]
    assert others == [
        e.ratio for e in recommend(llama([[1.5, None, 2.0, 2.1, 2.2, 2.3, 2.5]]), exclude="*k_proj*").entries
    ]


def test_nothing_to_derive_is_said_first() -> None:
    plan = recommend(llama([[None] * 7]))
    assert findings(plan)[0].startswith(
        "No ratio could be derived: none of 7 Parameters has a value (no alpha (degenerate)"
    )
    assert repr(recommend(PAPER)) == (
        "DecayPlan(made: 56 Parameters, linear on alpha, ratios 0.67 to 3.00, mean 1.34, 55 % explained by shape)"
    )


def test_preserved_mean() -> None:
    plan = recommend(PAPER, preserve_mean=True)
    free = recommend(PAPER)
    assert plan.mean_ratio_weighted == pytest.approx(1)
    scaled = [entry.ratio * free.mean_ratio_weighted for entry in plan.entries]
    assert scaled == pytest.approx([entry.ratio for entry in free.entries])


@pytest.mark.parametrize("rule", ["sqrt", "log2", "sigmoid", "uniform", "none"])
def test_other_rules(rule: str) -> None:
    plan = recommend(PAPER, rule=rule)
    expected = {"uniform": 1.0, "none": 0.0}.get(rule, 1.0)
    assert plan.mean_ratio == pytest.approx(expected, abs=0.06)
    assert (plan.shape_share is None) == (rule in ("uniform", "none"))


def test_norms_as_a_basis() -> None:
    plan = recommend(
        made([
            record(f"layers.{i}.self_attn.{r}_proj.weight", r, i, 2.0, frobenius_norm=10.0 + i, spectral_norm=2.0 + i)
            for i in range(2) for r in ("q", "k")
        ]), basis="frobenius_norm",
    )  # fmt: skip
    assert [entry.value for entry in plan.entries] == [10.0, 10.0, 11.0, 11.0]
    assert [entry.ratio for entry in plan.entries] == [0.67, 0.67, 3.0, 3.0]
    assert plan.shape_share == 0.0


# ------------------------------------------------------------------ the released code


def released(model: nn.Module, s1: float = 0.67, s2: float = 3.0) -> dict[str, float]:
    """The released AlphaDecay code, rebuilt from its description; it shares no line with the library."""
    linears = [(n, m.weight) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][1:-1]
    alphas = {
        f"{n}.weight": naive_hill(torch.square(torch.linalg.svdvals(w.detach().float())).numpy())
        for n, w in linears if min(w.shape[:2]) >= 50
    }  # fmt: skip
    values = list(alphas.values())
    ratios = np.interp(values, [min(values), max(values)], [s1, s2])
    return dict(zip(alphas, ratios, strict=True))


def test_compat_reference_is_the_released_code() -> None:
    torch.manual_seed(0)
    model = Llama()
    with torch.no_grad():
        for i, block in enumerate(model.model.layers):
            block.self_attn["k_proj"].weight *= torch.linspace(0.05, 1, 64)[:, None] ** (i + 1)
    expected = released(model)
    assert "model.layers.0.self_attn.q_proj.weight" not in expected
    live = recommend(model, compat="reference")
    assert live.ratios == pytest.approx(expected, abs=1e-5)
    from_names = recommend(specdiag.analyze(model.state_dict(), method="svd", dtype="float32"), compat="reference")
    assert from_names.ratios == live.ratios
    assert recommend(model).ratios != live.ratios


def test_compat_reference_gives_s2_to_equals_and_poisons_with_a_leading_gap() -> None:
    assert set(recommend(llama([[2.0] * 7] * 2), compat="reference").ratios.values()) == {3.0}
    assert set(recommend(llama([[2.0] * 7] * 2)).ratios.values()) == {1.0}
    squared = recommend(
        made([
            record(f"model.layers.0.self_attn.{r}_proj.weight", r, 0, 2.0, frobenius_norm=n)
            for r, n in zip("qkvo", (9.0, 1.0, 2.0, 3.0), strict=True)
        ]), basis="frobenius_norm", compat="reference",
    )  # fmt: skip
    assert [entry.value for entry in squared.entries] == [1.0, 4.0, 9.0]


def test_compat_reference_is_refused_where_the_order_is_unknown(minilm: Path) -> None:
    with pytest.raises(UsageError, match=r"needs LLaMA's names.*'embeddings\.position_embeddings"):
        recommend(specdiag.analyze(minilm), compat="reference")
    with pytest.raises(UsageError, match="decides itself who takes part"):
        recommend(PAPER, compat="reference", include="*q*")


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"basis": "rho"}, "cannot be compared across shapes"),
        ({"basis": "entropy"}, "unknown basis='entropy'"),
        ({"basis": "farms"}, "needs one made with tail='farms'"),
        ({"rule": "cubic"}, "unknown rule='cubic'"),
        ({"rule": "log2", "basis": "frobenius_norm"}, "needs values above 1"),
        ({"s1": 3, "s2": 1}, "0 <= s1 <= s2"),
        ({"rule": "sqrt", "s1": 0.5}, "s1= belongs to rule='linear', not to 'sqrt'"),
        ({"rule": "sigmoid", "s1": 0.5, "s2": 2}, "s1= and s2= belong to rule='linear'"),
        ({"rule": "uniform", "clip": (5, 95)}, "rule='uniform' gives all one ratio: leave out clip="),
        ({"rule": "none", "preserve_mean": True}, "leave out preserve_mean="),
        ({"lr_schedule": "constant"}, "lr_schedule='constant' is of the steps left"),
        ({"clip": (95, 5)}, "0 <= LO < HI <= 100"),
        ({"compat": "paper"}, "there is 'reference'"),
        ({"weight_decay": -1}, "at least 0"),
        ({"include": "nothing*"}, "include='nothing\\*' matches none of"),
        ({"roles": ["conv"]}, "none of 58 matrices takes part"),
        ({"roles": ["query"]}, "unknown roles='query'"),
        ({"device": "cuda"}, "a report is taken as it is: device"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        recommend(PAPER, **options)


def test_a_report_without_the_basis_is_refused() -> None:
    with pytest.raises(UsageError, match="choose basis='farms'"):
        recommend(made(PAPER.records, tail="farms"))


# ------------------------------------------------------------------ the run to come


def test_the_verdict_goes_with_the_plan() -> None:
    plan = recommend(PAPER, weight_decay=0.1, lr=1e-3, steps_left=5000)
    assert plan.verdict is not None
    assert plan.verdict.answer == "worth a run"
    assert plan.verdict.uniform_ratio == pytest.approx(plan.mean_ratio_weighted)
    lighter = [c for c, e in zip(plan.verdict.changes, plan.entries, strict=True) if e.ratio < 1]
    assert min(lighter) > 0, "less decay, larger norm"
    assert recommend(PAPER, weight_decay=0.1, lr=1e-3, steps_left=10).verdict.answer == "cannot show in the steps left"
    assert recommend(PAPER, lr=1e-3, steps_left=10).verdict is None
    shapes = recommend(llama([[1.7] * 4 + [2.5] * 3] * 4), weight_decay=0.1, lr=1e-3, steps_left=5000)
    assert shapes.shape_share == pytest.approx(1)
    assert shapes.verdict.answer == "explained by shape"


def test_decays_that_follow_the_lr() -> None:
    course = decay_schedule("adamc", peak_lr=1e-3, steps_total=1000, lr_shape="linear", warmup=100)
    plan = recommend(PAPER, weight_decay=0.1, schedule=course)
    name = plan.entries[2].name
    assert plan.weight_decay(name, 100) == pytest.approx(0.3)
    assert plan.weight_decay(name, 50) == pytest.approx(0.15)
    assert plan.weight_decay(name, 550) == pytest.approx(0.15)
    assert recommend(PAPER, weight_decay=0.1).weight_decay(name, 550) == pytest.approx(0.3)
    same = decay_schedule("scionc", peak_lr=1e-3, steps_total=1000, lr_shape="linear", warmup=100, momentum=0.9)
    assert same.factor(550, 0.1) == pytest.approx(0.5), "at constant momentum and target ScionC is AdamC's rule"
    fixed = decay_schedule("scionc", peak_lr=0.01, steps_total=4, lr_shape="constant", momentum=0.9, target_norm=1.1875)
    assert fixed.weight_decay(0, 0.1) == pytest.approx(0.08), "check case C1"
    with pytest.raises(UsageError, match="no base decay"):
        recommend(PAPER, schedule=course).weight_decay(name)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "cosine"}, "choose adamc or scionc"),
        ({"method": "adamc", "steps_total": None}, "give its peak with peak_lr=, and steps_total="),
        ({"method": "adamc", "warmup": 10}, "make no schedule"),
        ({"method": "adamc", "momentum": 0.1}, "belong to schedule scionc"),
        ({"method": "scionc", "momentum": 1.0}, "momentum=1"),
        ({"method": "scionc", "target_norm": -1.0}, "must be positive"),
    ],
)
def test_schedules_that_make_no_sense(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        decay_schedule(**({"peak_lr": 1e-3, "steps_total": 10} | options))
