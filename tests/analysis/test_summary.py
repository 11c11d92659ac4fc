import numpy as np
import pytest
import torch
from msgspec.structs import replace
from scipy import stats

import specdiag
from specdiag.analysis.summary import auc, contrasts, sign_flip_p, summarise
from specdiag.decay.effect import AGREE
from specdiag.records import MetricSummary, ModuleRecord
from specdiag.spectra import null
from specdiag.spectra.tails import hill
from specdiag.views import plan_sentences, sentences


def record(layer, family, role, shape, alpha, square=None, **others):
    return ModuleRecord(
        name=f"layers.{layer}.{role}", layer=layer, family=family, role=role, rows=shape[0], cols=shape[1],
        storage_dtype="F32", status="ok", tail="hill", alpha=alpha, square_alpha=square,
        alpha_null=null.alpha_null(hill, shape), rho=(alpha - 1) / (null.alpha_null(hill, shape) - 1), method="gram",
        compute_dtype="float64", **others,
    )  # fmt: skip


def told(rows):
    """Sentences of the contrast."""
    return " ".join(sentences.contrast(summarise(rows, (), n_tensors=84, n_parameters=1)))


def random_network(layers, seed=0):
    """Rows of an untrained LLaMA-60M: exponents of Gaussian matrices of its shapes."""
    rng = np.random.default_rng(seed)
    out = []
    for layer in range(layers):
        for role in ("q", "k", "v", "o"):
            mean, sd = null.null_moments((512, 512))
            out.append(record(layer, "attention", role, (512, 512), rng.normal(mean, sd), rng.normal(2.126, 0.007)))
        for role in ("gate", "up", "down"):
            mean, sd = null.null_moments((512, 1376))
            out.append(record(layer, "mlp", role, (512, 1376), rng.normal(mean, sd), rng.normal(2.126, 0.004)))
    return out


def test_sign_flip_against_scipy():
    rng = np.random.default_rng(0)
    for n in (4, 9, 16):
        d = rng.normal(0.4, 1, n)
        expected = stats.permutation_test(
            (d,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        ).pvalue
        # SciPy doubles the smaller tail; with symmetric flips the two agree.
        assert sign_flip_p(d) == pytest.approx(expected, rel=1e-9)
    long = rng.normal(0.2, 1, 40)
    expected = stats.permutation_test((long,), np.sum, permutation_type="samples", n_resamples=99_999, rng=1).pvalue
    assert sign_flip_p(long) == pytest.approx(expected, abs=0.01)


def test_smallest_p_of_agreeing_layers():
    assert sign_flip_p(np.ones(8)) == pytest.approx(2 / 256)
    assert sign_flip_p(np.ones(6)) == pytest.approx(2 / 64)
    assert sign_flip_p(np.ones(40)) == pytest.approx(1 / 100_001)


def test_auc_is_mann_whitney():
    a, b = [1.0, 2.0, 2.0, 5.0], [2.0, 3.0, 4.0]
    assert auc(a, b) == pytest.approx(stats.mannwhitneyu(b, a).statistic / 12)


def test_an_untrained_network_is_told_from_a_finding():
    found = {(c.basis, c.attention): c for c in contrasts(random_network(8))}
    assert set(found) == {(b, a) for b in ("alpha", "square_alpha", "rho") for a in ("all", "q,k", "v,o")}
    raw, square = found["alpha", "all"], found["square_alpha", "all"]
    assert (raw.n_positive, raw.random_n_positive) == (8, 8)
    assert raw.difference == pytest.approx(raw.random_difference, abs=0.02)
    assert raw.p == pytest.approx(2 / 256)
    assert square.p > 0.05
    assert found["rho", "all"].difference == pytest.approx(0, abs=0.02)
    assert found["rho", "all"].random_difference == pytest.approx(0, abs=0.02)
    text = told(random_network(8))
    assert "no evidence" in text
    assert "no clear difference" in text


def test_a_real_difference_survives_the_shape_free_view():
    rows = [
        record(
            r.layer,
            r.family,
            r.role,
            (r.rows, r.cols),
            r.alpha,
            r.square_alpha - 0.3 * (r.role in ("q", "k")),
        )
        for r in random_network(12)
    ]
    rows = [replace(r, rho=r.rho - 0.2 * (r.role in ("q", "k"))) for r in rows]
    found = {(c.basis, c.attention): c for c in contrasts(rows)}
    assert found["square_alpha", "q,k"].n_positive == 12
    assert found["square_alpha", "q,k"].p_holm < 0.01
    assert found["square_alpha", "v,o"].p > 0.05
    assert found["square_alpha", "q,k"].difference == pytest.approx(0.3, abs=0.02)
    assert "attention is heavier-tailed by square_alpha and by rho" in told(rows)
    opposite = [replace(r, rho=r.rho + 0.4 * (r.role in ("q", "k"))) for r in rows]
    unclear = [replace(r, rho=1.0 + 0.01 * (-1) ** r.layer * (r.family == "mlp")) for r in rows]
    for others in (opposite, unclear):
        assert "no answer, the two measures disagree: by square_alpha " in told(others)
    assert "no verdict" in told([replace(r, rho=None, alpha_null=None) for r in rows])


def test_few_layers_that_agree_are_too_few_to_tell():
    rows = [replace(r, square_alpha=r.square_alpha - 0.3 * (r.family == "attention")) for r in random_network(4)]
    assert "4 layers are too few to tell, p cannot fall below 0.12" in told(rows)


def test_orthogonal_weights_of_two_shapes_are_no_finding():
    """Sums of four semi-orthogonal matrices: rho is 1.2 at every aspect ratio, square_alpha falls from 1.23 to 1.02."""
    rng = np.random.default_rng(0)

    def near_orthogonal(rows, cols):
        return sum(np.linalg.qr(rng.standard_normal((max(rows, cols), 128)))[0] for _ in range(4)).astype(np.float32)

    state = {}
    for layer in range(8):
        for role in ("q", "k", "v", "o"):
            state[f"model.layers.{layer}.self_attn.{role}_proj.weight"] = near_orthogonal(128, 128)
        for role in ("gate", "up"):
            state[f"model.layers.{layer}.mlp.{role}_proj.weight"] = near_orthogonal(512, 128)
    report = specdiag.analyze({name: torch.from_numpy(w) for name, w in state.items()}, device="cpu", cache=None)
    by_role = {r.role: r for r in report.summary.roles}
    assert by_role["q"].rho == pytest.approx(by_role["up"].rho, abs=0.05)
    assert by_role["q"].square_alpha - by_role["up"].square_alpha > 0.15
    assert "no answer, the two measures disagree: by square_alpha " in " ".join(sentences.contrast(report.summary))
    plan = specdiag.recommend(report, basis="square", weight_decay=0.1, lr=3e-4, steps_left=100_000)
    assert plan.agreement < AGREE
    assert plan.verdict.answer == "the two measures disagree"
    assert any("The two measures agree too little" in sentence for sentence in plan_sentences.findings(plan))
    few = specdiag.recommend(
        report, basis="square", include="*layers.0.self_attn.[qk]_proj*", weight_decay=0.1, lr=3e-4, steps_left=100_000
    )
    assert few.agreement is None
    assert few.verdict.answer == "the two measures disagree"
    assert any("Fewer than three modules" in reason for reason in few.verdict.reasons)


def test_a_rule_without_a_null_claims_nothing():
    rows = [replace(r, tail="ks", alpha_null=None) for r in random_network(4)]
    raw = next(c for c in contrasts(rows) if c.basis == "alpha")
    assert raw.random_difference is raw.random_n_positive is raw.random_p is None
    text = sentences.contrast(summarise(rows, (), n_tensors=28, n_parameters=1))[0]
    assert text.endswith("no null to hold it against, so it is no evidence.")


def test_no_contrast_without_pairs():
    assert contrasts([r for r in random_network(4) if r.family == "mlp"]) == ()
    assert contrasts(random_network(1)) == ()


def test_metrics_are_those_of_all_matrices_that_have_them():
    rows = [record(i, "mlp", "up", (512, 1376), a, s) for i, (a, s) in enumerate(((2.0, 1.5), (2.5, None), (4.5, 2.5)))]
    summary = summarise(rows, (), n_tensors=3, n_parameters=3 * 512 * 1376)
    assert summary.metrics["alpha"] == MetricSummary(n=3, mean=3.0, median=2.5)
    assert summary.metrics["square_alpha"] == MetricSummary(n=2, mean=2.0, median=2.0)
    assert "stable_rank" not in summary.metrics
    assert sentences.metrics(summary).startswith(
        "3 matrices, mean (median): alpha 3 (2.5), square_alpha 2 (2) of 2, rho "
    )
    assert sentences.metrics(summarise((), (), n_tensors=0, n_parameters=0)).endswith("no metric")


def test_roles_are_medians():
    rows = [record(i, "mlp", "up", (512, 1376), a) for i, a in enumerate((2.0, 2.5, 4.0))]
    (role,) = summarise(rows, (), n_tensors=3, n_parameters=3 * 512 * 1376).roles
    assert (role.alpha, role.alpha_min, role.alpha_max, role.n, role.n_alpha) == (2.5, 2.0, 4.0, 3, 3)
    assert role.parameters == 3 * 512 * 1376
