"""simulate: the check cases of the reference, the optimizers on noise, and what holds for all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specdiag
from specdiag.decay.effect import norm_factor
from specdiag.decay.schedules import adamc, constant, cosine
from specdiag.dynamics.appendix_a import appendix_a, suppression
from specdiag.dynamics.noise import newton_schulz, polar, run_on_noise
from specdiag.dynamics.renormalized import renormalized_step
from specdiag.dynamics.steady import (
    decay_of,
    inflation,
    kosson_rotation,
    removed,
    rotation,
    steady_norm,
    steady_square,
    steps_to_steady,
    tuc,
    tuc_rotation,
)
from specdiag.dynamics.updates import OPTIMIZERS, SPECTRAL_REPEATS, interpolated, nesterov, update_of
from specdiag.dynamics.walk import expected
from specdiag.errors import UsageError

WALK = update_of("random-walk", (1,))
ADAMW = update_of("adamw", (4096,))


def l2(alpha):
    return update_of("scion-l2", (64,), momentum=1 - alpha)


def sign(alpha, shape=(64, 64)):
    return update_of("scion-sign", shape, momentum=1 - alpha)


def on_noise(update, shape, lr, decay, steps, seed=0):
    """S and C measured, over those predicted."""
    square = steady_square(update, lr, decay)
    walk = run_on_noise(update, shape, constant(lr), constant(decay), steps, square, [], seed=seed)
    return walk.balance / square, walk.update_square / update.square


# The reference's cases


def test_equation_2():
    assert steady_norm(WALK, 1e-3, 0.1) == pytest.approx(0.0707124460, abs=1e-10)  # S1
    assert math.sqrt(1e-3 / (2 * 0.1)) == pytest.approx(0.0707106781, abs=1e-10)
    assert steady_norm(ADAMW, 1e-3, 0.1) == pytest.approx(0.0707106781, rel=5e-4)
    assert steady_norm(WALK, 1e-3, 0.1, 4) == pytest.approx(2 * steady_norm(WALK, 1e-3, 0.1))


@pytest.mark.parametrize(
    ("eta", "alpha", "near", "exact"),
    [(1e-3, 1, 500, 500.2501250625), (1e-3, 0.1, 9500, 9415.510530290), (0.01, 0.1, 950, 871.790143377)],
)
def test_balance_with_momentum(eta, alpha, near, exact):  # S2, S3, S4
    assert inflation(l2(alpha)) / (2 * eta) == pytest.approx(near, abs=1e-9)
    assert steady_square(l2(alpha), 1.0, eta) == pytest.approx(exact, abs=1e-8)


def test_inflation_of_l2_and_signs():
    alphas = [1, 0.5, 0.1, 0.05, 0.02, 0.01]
    assert [inflation(l2(a)) for a in alphas] == pytest.approx([1, 3, 19, 39, 99, 199], abs=1e-9)  # S5
    roots = [1, 1.7320508, 4.3588989, 6.2449980, 9.9498744, 14.1067360]
    assert [tuc(l2(a), 1.0, 1) for a in alphas] == pytest.approx(roots, abs=5e-8)
    signs = [inflation(sign(a)) for a in (0.1, 0.05, 0.5)]
    assert signs == pytest.approx([13.2788687, 27.1115033, 2.3071758], abs=5e-8)  # S6
    assert inflation(sign(1.0)) == 1
    assert inflation(sign(1e-3)) * 1e-3 == pytest.approx(2 * math.log(2), rel=1e-3)


def test_the_arcsine_law_by_summing():
    for alpha, eta in ((0.1, 0.0), (0.1, 0.01), (0.02, 0.003)):
        terms = (math.asin((1 - alpha) ** k) * (1 - eta) ** k for k in range(1, 5000))
        assert inflation(sign(alpha), eta) == pytest.approx(1 + 4 / math.pi * sum(terms), rel=1e-6)


def test_nesterov():  # S7; the reference's R at finite eta is 2 eta S/C
    assert inflation(nesterov(0.95)) == pytest.approx(32.90445, abs=5e-6)
    assert inflation(nesterov(0.95), 0.01) / (1 - 0.005) == pytest.approx(27.68076, abs=5e-6)
    assert inflation(nesterov(0.9)) == pytest.approx(14.158, abs=5e-4)
    assert inflation(nesterov(0.0)) == 1


@pytest.mark.parametrize(("mu", "kernel"), [(0.95, "nesterov"), ((0.9, 0.99), "lion"), ((0.95, 0.98), "lion")])
def test_kernels_by_their_correlations(mu, kernel):
    if kernel == "nesterov":
        update, a = nesterov(mu), [(1 - mu) * (1 + mu), *(mu * (1 - mu) * mu**k for k in range(1, 3000))]
    else:
        update = update_of("lion", (8,), betas=mu)
        a = [1 - mu[0], *(mu[0] * (1 - mu[1]) * mu[1] ** (k - 1) for k in range(1, 3000))]
    a = np.array(a)
    correlations = [float(a[:-k] @ a[k:] / (a @ a)) for k in (1, 2, 10, 100)]
    assert [update.amplitude * update.memory**k for k in (1, 2, 10, 100)] == pytest.approx(correlations)
    if mu == (0.9, 0.99):
        assert float(a.sum() ** 2 / (a @ a)) == pytest.approx(71.07, abs=5e-3)


def test_l2_on_noise():  # S8
    assert steady_square(l2(0.1), 0.05, 0.1) * 2 * 0.1 / 0.05 == pytest.approx(18.184, abs=5e-4)
    assert on_noise(l2(0.1), (2048,), 0.05, 0.1, 12_000) == pytest.approx((1, 1), rel=0.01)


def test_signs_on_noise():  # S9
    update = sign(0.1, (1, 2048))
    assert steady_square(update, 0.05, 0.1) / update.square * 2 * 0.1 / 0.05 == pytest.approx(12.7495, abs=5e-5)
    assert on_noise(update, (1, 2048), 0.05, 0.1, 12_000) == pytest.approx((1, 1), rel=0.015)


def test_appendix_a():  # S10
    base, corrected = appendix_a()
    first, *_, last = base.course
    assert first.rms**2 == pytest.approx(0.0500250125, abs=1e-10)
    assert (last.step, last.lr) == (20_000, 0)
    assert last.rms**2 == pytest.approx(0.0101345808, abs=1e-9)
    assert corrected.course[-1].rms ** 2 == pytest.approx(0.0500051058, abs=1e-9)
    assert [suppression(s) for s in (base, corrected)] == pytest.approx([0.2026, 0.9996], abs=5e-5)
    assert "reconstructed" in base.assumptions[0]


def test_appendix_a_by_drawing_it():
    for start in (0.0, 1.0):
        for s in appendix_a(steps=4000, initial_rms=start, stochastic=True, seed=3):
            assert s.course[-1].simulated_rms == pytest.approx(s.course[-1].rms, rel=0.03)


def test_adamw_on_noise():  # S11
    walk = run_on_noise(ADAMW, (4096,), constant(0.02), constant(0.5), 3000, 0.02, [])
    assert walk.balance == pytest.approx(0.01837, rel=0.02)
    assert walk.update_square == pytest.approx(0.0526, rel=0.01)
    assert steady_square(ADAMW, 0.02, 0.5) == pytest.approx(0.01835, abs=5e-6)
    assert 0.02 / (2 * 0.5) == 0.02  # equation 2 with the total contribution
    assert 0.02 * ADAMW.square / (2 * 0.5) == pytest.approx(0.00105, abs=5e-6)  # equation 2 with the measured step


def test_rotation_of_adamw():  # K1
    assert kosson_rotation(ADAMW, 1e-3, 0.1) == pytest.approx(0.0032444284, abs=1e-10)
    assert tuc_rotation(ADAMW, 1e-3, 0.1) == pytest.approx(0.0141421356, abs=1e-10)
    assert rotation(ADAMW, 1e-3, 0.1) == pytest.approx(0.0032444284, rel=1e-3)


def test_rotation_of_sgd_and_lion():  # K2
    sgdm, lion = update_of("sgdm", (8,)), update_of("lion", (8,))
    assert kosson_rotation(sgdm, 0.1, 5e-4) == pytest.approx(0.0072547625, abs=1e-10)
    assert rotation(sgdm, 0.1, 5e-4) == pytest.approx(0.0072547625, rel=1e-5)
    assert kosson_rotation(lion, 1e-4, 1.0) == pytest.approx(0.0021024584, abs=1e-10)
    assert rotation(lion, 1e-4, 1.0) == pytest.approx(0.0021024584, rel=0.01)
    assert kosson_rotation(l2(0.1), 0.1, 0.1) is None


def test_decay_of_a_norm():  # B5
    assert decay_of(0.0707106781, 1e-3) == pytest.approx(0.1, abs=1e-9)
    assert decay_of(steady_norm(ADAMW, 1e-3, 0.1), 1e-3) == pytest.approx(0.1, rel=1e-3)


def test_renormalized_step():  # N1
    weights, update = np.array([3.0, 4.0]), np.array([1.0, -0.5])
    raw = (1 - 0.05) * weights - 0.1 * update
    assert raw == pytest.approx([2.75, 3.85])
    assert np.linalg.norm(raw) == pytest.approx(4.7312788969, abs=1e-10)
    found = renormalized_step(weights, update, 0.1, 0.5)
    assert np.linalg.norm(found) == pytest.approx(4.73, abs=1e-12)
    assert found == pytest.approx([2.7492566563, 3.8489593188], abs=1e-10)
    assert renormalized_step(np.zeros(2), update, 0.1, 0.5) == pytest.approx([-0.1, 0.05])


# The optimizers


@pytest.mark.parametrize("name", ["adamw", "sgdm"])
def test_the_simulation_is_torchs_optimizer(name):
    rng = np.random.default_rng(7)
    weights = rng.standard_normal(50)
    weights *= 0.3 / np.sqrt(np.mean(weights**2))
    parameter = torch.nn.Parameter(torch.from_numpy(weights))
    make = {
        "adamw": lambda: torch.optim.AdamW([parameter], lr=0.02, weight_decay=0.5),
        "sgdm": lambda: torch.optim.SGD([parameter], lr=0.02, weight_decay=0.5, momentum=0.9),
    }
    optimizer = make[name]()
    for _ in range(30):
        parameter.grad = torch.from_numpy(rng.standard_normal(50))
        optimizer.step()
    walk = run_on_noise(update_of(name, (50,)), (50,), constant(0.02), constant(0.5), 30, 0.09, [30], seed=7)
    assert walk.squares[30] == pytest.approx(float((parameter.detach() ** 2).mean()), rel=1e-7)


def test_muon_is_torchs():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch before 2.9 has no Muon")
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((48, 24))
    weights *= 0.3 / np.sqrt(np.mean(weights**2))
    parameter = torch.nn.Parameter(torch.from_numpy(weights))
    optimizer = torch.optim.Muon([parameter], lr=0.5, weight_decay=0.1)
    for _ in range(20):
        parameter.grad = torch.from_numpy(rng.standard_normal((48, 24)))
        optimizer.step()
    walk = run_on_noise(update_of("muon", (48, 24)), (48, 24), constant(0.5), constant(0.1), 20, 0.09, [20], seed=7)
    assert walk.squares[20] == pytest.approx(float((parameter.detach() ** 2).mean()), rel=0.02)  # torch's is in bf16


@pytest.mark.parametrize(
    ("name", "shape", "lr", "decay", "steps", "within"),
    [
        ("sgdm", (4096,), 0.1, 0.02, 4000, 0.015),
        ("sgdw", (4096,), 0.1, 0.05, 5000, 0.015),
        ("lion", (4096,), 0.01, 0.5, 6000, 0.015),
        ("adamw-renormalized", (4096,), 0.02, 0.5, 4000, 0.015),
        ("scion-spectral", (32, 32), 0.1, 0.1, 4000, 0.03),
        ("scion-spectral", (32, 96), 0.1, 0.1, 1500, 0.03),
        ("scion-spectral", (48, 32), 0.1, 0.1, 1500, 0.03),
        ("muon", (64, 64), 0.1, 0.1, 1200, 0.15),
    ],
)
def test_balance_on_noise(name, shape, lr, decay, steps, within):
    squared, update = on_noise(update_of(name, shape), shape, lr, decay, steps)
    assert squared == pytest.approx(1, rel=within)
    if name not in ("sgdm", "adamw-renormalized"):
        assert update == pytest.approx(1, rel=1e-9 if name.startswith("scion") else 0.12)


def test_the_spectral_factor_of_the_reference():
    assert inflation(update_of("scion-spectral", (32, 32)), 0.01) == pytest.approx(13.6, rel=0.01)
    assert inflation(update_of("scion-spectral", (32, 96)), 0.01) == pytest.approx(16.45, rel=0.01)
    assert inflation(l2(0.1), 0.01) == pytest.approx(17.35, abs=0.01)  # 17.44 as 2 eta S/C


def test_the_spectral_table_is_what_matrices_do():
    rng = np.random.default_rng(0)
    cosines, weights = np.polynomial.legendre.leggauss(8)
    cosines, weights = (cosines + 1) / 2, weights / 2
    total = 0.0
    for _ in range(60):
        a = rng.standard_normal((48, 96))
        for c, w in zip(cosines, weights, strict=True):
            b = math.sqrt(1 - c * c) * rng.standard_normal((48, 96))
            total += w / c * float(np.sum(polar(a) * (polar(c * a + b) + polar(c * a - b)))) / 2 / 48 / 60
    assert total == pytest.approx(interpolated(SPECTRAL_REPEATS, 2.0), abs=0.01)
    assert [interpolated(SPECTRAL_REPEATS, x) for x in (1, 8, 50)] == [0.776, 0.979, 0.979]
    assert 0.87 < interpolated(SPECTRAL_REPEATS, 1.7) < 0.906


def test_newton_schulz_of_the_reference():
    sigma = np.array([0.001, 0.01, 0.1, 0.5, 1.0])
    padded = np.diag(sigma / np.linalg.norm(sigma))
    found = np.diag(newton_schulz(padded))
    naive = sigma / np.linalg.norm(sigma)
    for _ in range(5):
        naive = 3.4445 * naive - 4.7750 * naive**3 + 2.0315 * naive**5
    assert found == pytest.approx(naive, rel=1e-5)
    assert newton_schulz(np.ones((3, 2))).shape == (3, 2)


def test_steps_have_the_size_of_the_norms_table():
    assert update_of("scion-sign", (768, 3072)).square * 768 * 3072 == pytest.approx(768 / 3072)
    assert update_of("scion-spectral", (768, 3072)).square * 768 * 3072 == pytest.approx(768 / 3072 * 768)
    assert update_of("scion-spectral", (3072, 768)).square * 768 * 3072 == pytest.approx(4 * 768)
    assert update_of("scion-l2", (768,)).square * 768 == 768


def test_total_update_contribution():
    for betas in ((0.9, 0.999), (0.5, 0.95), (0.0, 0.9)):
        assert tuc(update_of("adamw", (100,), betas=betas), 1e-3, 100) == pytest.approx(0.01)
    assert tuc(update_of("sgdm", (100,), momentum=0.9, gradient_rms=0.2), 0.1, 100) == pytest.approx(
        0.1 * 0.2 * 10 / 0.1
    )
    assert tuc(update_of("adamw-renormalized", (100,)), 1e-3, 100) == pytest.approx(0.01)


def test_coupled_decay():
    sgdm = update_of("sgdm", (8,), momentum=0.9)
    assert removed(sgdm, 0.1, 5e-4) == pytest.approx(0.1 * 5e-4 / 0.1, rel=0.01)
    slow = 1 - removed(sgdm, 0.1, 0.01)
    assert slow**2 - (1 + 0.9 - 0.1 * 0.01) * slow + 0.9 == pytest.approx(0, abs=1e-12)
    assert removed(update_of("sgdm", (8,), momentum=0.0), 0.1, 0.5) == pytest.approx(0.05)
    assert steady_square(update_of("sgdm", (8,), momentum=0.0), 0.1, 0.5) == pytest.approx(
        steady_square(WALK, 0.1, 0.5)
    )
    with pytest.raises(UsageError, match=r"swing; 0\.0026"):
        removed(sgdm, 1.0, 0.1)


# Properties


def test_adamc_keeps_the_norm_where_adamws_collapses():
    start = steady_norm(ADAMW, 0.01, 0.1)
    choice = {"lr": 0.01, "weight_decay": 0.1, "steps": 20_000, "lr_shape": "cosine", "initial_rms": start}
    kept = specdiag.simulate("adamc", **choice)
    assert all(p.rms == pytest.approx(start, rel=0.015) for p in kept.course)  # a dip while momentum builds up
    assert kept.course[-1].rms == pytest.approx(start, rel=0.005)  # R is larger where eta is smaller
    falling = [p.rms for p in specdiag.simulate("adamw", **choice).course]
    assert falling[-1] < 0.46 * start
    assert falling[10:] == sorted(falling[10:], reverse=True)
    assert specdiag.simulate("adamw", corrected=True, **choice).course == kept.course


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.8, 0.95), (0.95, 0.999), (0.99, 0.9)])
def test_betas_do_not_move_adamws_norm(betas):
    assert steady_norm(update_of("adamw", (8,), betas=betas), 1e-3, 0.01) == pytest.approx(
        steady_norm(ADAMW, 1e-3, 0.01), rel=1e-3
    )


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw-renormalized"])
@pytest.mark.parametrize("ratio", [0.67, 1.5, 3.0])
def test_a_ratio_scales_the_norm_by_its_inverse_root(name, ratio):
    update = update_of(name, (64, 64))
    changed = steady_norm(update, 1e-3, 1e-3 * ratio) / steady_norm(update, 1e-3, 1e-3)
    assert changed == pytest.approx(ratio**-0.5, rel=5e-4)


def test_renormalising_takes_away_what_one_step_adds():
    plain, without = (steady_square(update_of(name, (8,)), 1e-4, 0.1) for name in ("adamw", "adamw-renormalized"))
    assert without / plain == pytest.approx(18 / 19, rel=1e-4)


@settings(max_examples=40)
@given(
    name=st.sampled_from(OPTIMIZERS), lr=st.floats(0.02, 0.05), decay=st.floats(0.5, 2.0), start=st.floats(0.0, 10.0)
)
def test_the_walk_ends_in_the_balance(name, lr, decay, start):
    update = update_of(name, (64, 64))
    decay *= 0.02 if update.coupled else 1.0
    eta, steady, steps = removed(update, lr, decay), steady_square(update, lr, decay), 6000
    found = expected(update, constant(lr), constant(decay), steps, start, [0, 20, steps])
    assert found[0] == start
    assert found[steps] == pytest.approx(steady, rel=1e-7)
    if not update.coupled:
        without = expected(update, constant(lr), constant(decay), 20, 0.0, [20])[20]
        assert found[20] == pytest.approx(without + start * (1 - eta) ** 40, rel=1e-9)


@pytest.mark.parametrize("ratio", [0.5, 1.4, 3.0])
def test_it_agrees_with_the_verdict_on_a_plan(ratio):
    base, lr, steps = 0.1, 1e-3, 8000
    start = steady_square(WALK, lr, base)
    ends = [expected(WALK, constant(lr), constant(base * r), steps, start, [steps])[steps] for r in (ratio, 1.0)]
    assert math.sqrt(ends[0] / ends[1]) == pytest.approx(
        norm_factor(ratio, base_weight_decay=base, lr=lr, steps=steps), rel=1e-9
    )


@pytest.mark.parametrize("start", [0.0, 0.02, 0.0702, 0.0712, 0.3])
def test_steps_to_steady(start):
    steady = steady_square(WALK, 1e-3, 0.1)
    steps = steps_to_steady(start**2, steady, 1e-4)
    walk = expected(WALK, constant(1e-3), constant(0.1), steps, start**2, [steps - 1, steps])
    away = {step: abs(math.sqrt(square / steady) - 1) for step, square in walk.items()}
    assert away[steps] <= 0.01 + 1e-9
    assert steps == 0 or away[steps - 1] > 0.01


@pytest.mark.parametrize("name", ["adamw", "sgdm", "sgdw", "scion-l2", "scion-sign", "random-walk"])
@pytest.mark.parametrize("corrected", [False, True])
def test_a_course_under_schedules_on_noise(name, corrected):
    update, shape, at = update_of(name, (64, 64)), (64, 64), [100, 200, 800, 1500, 2000]
    lr, peak = cosine(0.02, 2000, warmup=200), 0.015 if name == "sgdm" else 0.3
    decay = adamc(peak, lr, 0.02) if corrected else constant(peak)
    walk = run_on_noise(update, shape, lr, decay, 2000, 1e-9, at)
    predicted = expected(update, lr, decay, 2000, 1e-9, at)
    assert [math.sqrt(walk.squares[step] / predicted[step]) for step in at] == pytest.approx([1] * 5, abs=0.03)


def test_without_decay_norms_grow_as_the_root_of_the_steps():
    found = specdiag.simulate("scion-l2", lr=1e-3, weight_decay=0, steps=400, initial_rms=0)
    assert (
        found.balance.rms is found.balance.timescale is found.balance.steps_to_steady is found.balance.rotation is None
    )
    assert found.at(400).rms == pytest.approx(2 * found.at(100).rms, rel=0.04)  # less at first: no momentum yet
    assert found.at(400).rms == pytest.approx(1e-3 * math.sqrt(19 * 400), rel=0.02)
