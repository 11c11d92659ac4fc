import math

import pytest

from specdiag.decay.schedules import (
    adamc,
    constant,
    cosine,
    effective_lr,
    gradient_weight_for,
    inflation,
    linear,
    per_step,
    scionc,
    scionc_exact,
    target_norm,
    target_norm_exact,
)
from specdiag.errors import UsageError

# C^2 of the paper's tables 4 and 5, and the decay at lr 0.01 and alpha 0.1 that each stands for.
TARGETS = [1.1875, 19 / 24, 0.59375, 0.475, 0.296875, 0.1484375]
DECAYS = [0.08, 0.12, 0.16, 0.20, 0.32, 0.64]


def at(schedule, steps):
    return [schedule(step) for step in steps]


def test_lr_schedules():
    assert at(constant(2.0), [0, 7]) == [2, 2]
    assert at(constant(2.0, warmup=4), [0, 1, 4, 9]) == [0, 0.5, 2, 2]
    assert at(linear(1.0, 12, warmup=2), [0, 1, 2, 7, 12, 99]) == [0, 0.5, 1, 0.5, 0, 0]
    assert at(cosine(1.0, 4), range(6)) == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0.1464466094, 0, 0])
    assert cosine(1.0, 100, warmup=10, final=0.1)(100) == pytest.approx(0.1)
    assert cosine(1.0, 100, warmup=10, final=0.1)(10) == 1
    with pytest.raises(UsageError, match="4 steps of warm-up do not fit in a schedule of 4"):
        linear(1.0, 4, warmup=4)


def test_adamc():
    assert adamc(0.1, constant(2.5e-4), 1e-3)(0) == pytest.approx(0.025, abs=1e-12)  # W3
    assert adamc(0.1, constant(0.0), 0.0)(0) == 0
    lr = linear(1e-3, 100, warmup=10)
    decay = adamc(0.1, lr, 1e-3)
    assert at(decay, [0, 5, 10, 55, 100]) == pytest.approx([0, 0.05, 0.1, 0.05, 0])
    with pytest.raises(UsageError, match="above the peak"):
        adamc(0.1, constant(2e-3), 1e-3)(0)
    with pytest.raises(UsageError, match="negative"):
        adamc(-0.1, constant(2e-3), 1e-3)


def test_an_adamc_step_of_adamw():
    # W2: lr .0025 of peak .01, decay .1, one step of AdamW from (1, -2) with gradient (.1, .2).
    lr, decay = 0.0025, adamc(0.1, constant(0.0025), 0.01)(0)
    assert decay == pytest.approx(0.025)
    moved = [w * (1 - lr * decay) - lr * g / (abs(g) + 1e-8) for w, g in ((1, 0.1), (-2, 0.2))]
    assert moved == pytest.approx([0.99743750025, -2.002374999875], abs=1e-9)


def test_the_convention_trap():
    half, whole = constant(0.5e-3), constant(1e-3)
    argument = adamc(0.1, half, 1e-3)(0) / adamc(0.1, whole, 1e-3)(0)
    removed = per_step(half, adamc(0.1, half, 1e-3))(0) / per_step(whole, adamc(0.1, whole, 1e-3))(0)
    assert (argument, removed) == pytest.approx((0.5, 0.25))


@pytest.mark.parametrize(("target", "decay"), list(zip(TARGETS, DECAYS, strict=True)))
def test_scionc_of_the_papers_tables(target, decay):
    rule = scionc(constant(target), linear(0.01, 2), constant(0.1))
    assert rule(0) == pytest.approx(decay, abs=1e-9)  # C1
    assert rule(1) == pytest.approx(decay / 2, abs=1e-9)  # C2
    assert target_norm(0.01, decay, 0.1) == pytest.approx(target)


def test_target_norm_of_the_gpt():
    lr = 2**-12 * 50
    assert target_norm(lr, 0.02, 0.1) == pytest.approx(5.79833984375, abs=1e-12)  # C3
    assert target_norm_exact(lr, 0.02, 0.1) == pytest.approx(5.785664459566, abs=1e-9)


@pytest.mark.parametrize(
    ("eta", "alpha", "near", "exact"),
    [(1e-3, 1, 500, 500.2501250625), (1e-3, 0.1, 9500, 9415.510530290), (0.01, 0.1, 950, 871.790143377)],
)
def test_steady_state(eta, alpha, near, exact):
    assert target_norm(1.0, eta, alpha) == pytest.approx(near, abs=1e-9)  # S2, S3, S4
    assert target_norm_exact(1.0, eta, alpha) == pytest.approx(exact, abs=1e-8)


def test_adamw_norm_per_coordinate():
    assert math.sqrt(target_norm(1e-3, 0.1)) == pytest.approx(0.0707106781, abs=1e-10)  # S1
    assert math.sqrt(target_norm_exact(1e-3, 0.1)) == pytest.approx(0.0707124460, abs=1e-10)


def test_scionc_with_cosine_target():
    target = cosine(1.1875, 4, final=0.296875)
    assert at(target, range(5)) == pytest.approx([1.1875, 1.0570709885, 0.7421875, 0.4273040115, 0.296875], abs=1e-9)
    rule = scionc(target, cosine(0.01, 4), constant(0.1))
    assert at(rule, range(5)) == pytest.approx([0.08, 0.0767096751, 0.064, 0.0325586176, 0], abs=1e-9)  # C4, C5


def test_scionc_is_adamc_where_momentum_and_target_stand_still():
    lr = cosine(0.01, 100, warmup=10)
    left, right = scionc(constant(1.1875), lr, constant(0.1)), adamc(0.08, lr, 0.01)
    assert at(left, range(101)) == pytest.approx(at(right, range(101)), abs=1e-12)


def test_scionc_refuses_the_impossible():
    with pytest.raises(UsageError, match="C\\^2 is 0 at step 3"):
        scionc(constant(0.0), constant(0.01), constant(0.1))(3)
    with pytest.raises(UsageError, match="raise C\\^2"):
        scionc(constant(1e-3), constant(0.5), constant(0.1))(0)
    with pytest.raises(UsageError, match="gradient_weight=0"):
        scionc(constant(1.0), constant(0.01), constant(0.0))(0)


def test_scionc_exact():
    rates = {0.01: 0.08, 0.005: 0.0399879976, 0.001: 0.0079968320}
    for lr, decay in rates.items():
        assert scionc_exact(0.08, constant(lr), 0.01)(0) == pytest.approx(decay, abs=1e-9)  # C6
    assert scionc_exact(0.5, constant(0.25), 0.5)(0) == pytest.approx(0.2250827824, abs=1e-9)  # C7
    assert adamc(0.5, constant(0.25), 0.5)(0) == pytest.approx(0.25)
    assert scionc_exact(0.5, constant(0.0), 0.5)(0) == 0
    assert scionc_exact(0.0, constant(0.1), 0.5)(0) == 0
    with pytest.raises(UsageError, match="no decay keeps the norm"):
        scionc_exact(0.5, constant(2.0), 0.5)(0)


def test_exact_decay_keeps_the_norm_to_the_last_digit():
    lr, c2 = 0.003, 0.01**2 / (1 - (1 - 0.01 * 0.08) ** 2)
    decay = scionc_exact(0.08, constant(lr), 0.01)(0)
    assert (1 - lr * decay) ** 2 * c2 + lr**2 == pytest.approx(c2, rel=1e-12)


def test_momentum():
    alphas = [1, 0.5, 0.1, 0.05, 0.02, 0.01]
    assert [inflation(a) for a in alphas] == pytest.approx([1, 3, 19, 39, 99, 199])  # S5
    expected = [1, 1.7320508, 4.3588989, 6.2449980, 9.9498744, 14.1067360]
    assert [effective_lr(1.0, a) for a in alphas] == pytest.approx(expected, abs=5e-8)


def test_momentum_instead_of_lr_decay():
    assert gradient_weight_for(1.0, 0.1) == pytest.approx((0.1, 1))
    assert gradient_weight_for(0.5, 0.1) == pytest.approx((0.3478260870, 1), abs=1e-9)  # C8
    assert gradient_weight_for(0.25, 0.1) == pytest.approx((0.9142857143, 1), abs=1e-9)
    for share in (1.0, 0.5, math.sqrt(0.1 / 1.9), 0.1, 0.01):
        alpha, factor = gradient_weight_for(share, 0.1)
        assert effective_lr(factor, alpha) / effective_lr(1.0, 0.1) == pytest.approx(share)
    with pytest.raises(UsageError, match="share"):
        gradient_weight_for(0.0, 0.1)


def test_the_papers_simulation_of_the_end_of_training():
    # S10, appendix A as reconstructed: squared norm in expectation, lr falling to 0 along a cosine.
    total, peak, base = 20_000, 0.01, 0.1
    lr = cosine(peak, total)
    ends = {}
    for name, decay in (("base", constant(base)), ("corrected", adamc(base, lr, peak))):
        squared = target_norm_exact(peak, base)
        assert squared == pytest.approx(0.0500250125, abs=1e-10)
        for step in range(1, total + 1):
            squared = (1 - lr(step) * decay(step)) ** 2 * squared + lr(step) ** 2
        ends[name] = squared
    assert ends == pytest.approx({"base": 0.0101345808, "corrected": 0.0500051058}, abs=1e-9)
