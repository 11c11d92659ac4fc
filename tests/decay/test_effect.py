import math

import msgspec
import numpy as np
import pytest

from specdiag.decay.effect import GEOMETRY, SHOWS, Verdict, balanced_factor, norm_factor, verdict
from specdiag.errors import UsageError

RATIOS = [0.67, 0.82, 1.4, 1.25, 2.56, 2.77, 3.0]
SIZES = [4, 4, 4, 4, 11, 11, 11]
RUN = {"base_weight_decay": 0.1, "lr": 1e-3}


def step_by_step(ratio, decay, lr, steps, falling):
    """The recursion as written, from the balance of ratio 1 at the first lr (C = 1)."""
    squared = lr / (decay * (2 - lr * decay))
    for step in range(steps):
        now = lr * (1 - step / steps) if falling else lr
        squared = (1 - now * ratio * decay) ** 2 * squared + now**2
    return squared


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.67, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("steps", [0, 1, 7, 512, 4999])
def test_the_recursion(falling, ratio, steps):
    for decay, lr in ((0.1, 1e-3), (0.5, 0.02)):
        expected = step_by_step(ratio, decay, lr, steps, falling) / step_by_step(1.0, decay, lr, steps, falling)
        found = norm_factor(
            ratio, base_weight_decay=decay, lr=lr, steps=steps, schedule="to zero" if falling else "constant"
        )
        assert found == pytest.approx(math.sqrt(expected), rel=3e-6 if falling else 1e-10)


def adamw(ratio, steps, falling, start, seed):
    """Norm after AdamW (torch's order of operations) on gradients of pure noise, from a copy of `start`."""
    rng = np.random.default_rng(seed)
    weights, mean, square, done = (np.copy(part) for part in start)
    lr, decay, betas = 0.01, 0.5, (0.9, 0.99)
    for step in range(steps):
        now = lr * (1 - step / steps) if falling else lr
        gradient = rng.standard_normal(weights.size)
        done += 1
        weights *= 1 - now * ratio * decay
        mean += (1 - betas[0]) * (gradient - mean)
        square += (1 - betas[1]) * (gradient**2 - square)
        denominator = np.sqrt(square / (1 - betas[1] ** done)) + 1e-8
        weights -= now / (1 - betas[0] ** done) * mean / denominator
    return weights, mean, square, done


@pytest.fixture(scope="module")
def balanced():
    return adamw(1.0, 1500, False, (np.zeros(8000), np.zeros(8000), np.zeros(8000), np.zeros(())), seed=0)


@pytest.mark.parametrize("falling", [False, True])
def test_against_adamw_on_noise(balanced, falling):
    reference = np.linalg.norm(adamw(1.0, 150, falling, balanced, seed=1)[0])
    for ratio in (0.3, 3.0):
        simulated = np.linalg.norm(adamw(ratio, 150, falling, balanced, seed=1)[0]) / reference
        schedule = "to zero" if falling else "constant"
        predicted = norm_factor(ratio, base_weight_decay=0.5, lr=0.01, steps=150, schedule=schedule)
        assert simulated - 1 == pytest.approx(predicted - 1, rel=0.1)
        assert abs(predicted - 1) > 0.1


def test_balance():
    for ratio in (0.25, 1.0, 4.0):
        factor = balanced_factor(ratio, **RUN)
        assert factor == pytest.approx(ratio**-0.5, rel=1e-3)
        assert norm_factor(ratio, steps=10**6, **RUN) == pytest.approx(factor)
    assert balanced_factor(0.0, **RUN) is None
    assert balanced_factor(2.0, base_weight_decay=0.0, lr=1e-3) is None


def test_a_plan_that_is_worth_a_run():
    found = verdict(RATIOS, SIZES, steps_left=20_000, shape_share=0.2, **RUN)
    assert found.answer == "worth a run"
    assert found.changes == pytest.approx([norm_factor(r, steps=20_000, **RUN) - 1 for r in RATIOS])
    assert found.balanced_changes == pytest.approx([r**-0.5 - 1 for r in RATIOS], rel=2e-3)
    assert found.uniform_ratio == pytest.approx(np.average(RATIOS, weights=SIZES))
    assert found.uniform_change == pytest.approx(norm_factor(found.uniform_ratio, steps=20_000, **RUN) - 1)
    assert found.median_change == pytest.approx(np.median(np.abs(found.changes)))
    assert found.median_distance == pytest.approx(np.median(np.abs(np.subtract(found.changes, found.uniform_change))))
    assert found.time_constant == pytest.approx(10_000)
    said = " ".join(found.reasons)
    assert "1/(lr x decay) = 10,000 steps. 20,000 are left, 2 of that" in said
    assert "do not imply a changed loss" in said
    assert msgspec.json.decode(msgspec.json.encode(found), type=Verdict) == found


def test_a_plan_without_time():
    found = verdict(RATIOS, SIZES, steps_left=50, **RUN)
    assert found.answer == "cannot show in the steps left"
    assert found.median_change < SHOWS
    needed = found.steps_to_show
    assert f"{needed:,} steps at lr 0.001 would" in " ".join(found.reasons)
    assert verdict(RATIOS, SIZES, steps_left=needed, **RUN).answer == "worth a run"
    assert verdict(RATIOS, SIZES, steps_left=needed - 1, **RUN).answer == "cannot show in the steps left"


def test_an_lr_that_falls_to_zero_shows_less():
    kept, falling = (verdict(RATIOS, SIZES, steps_left=5000, schedule=s, **RUN) for s in ("constant", "to zero"))
    assert falling.median_change < kept.median_change
    assert falling.time_constant == 2 * kept.time_constant
    assert "falls to zero" in falling.reasons[0]
    assert "2/(peak lr x decay) = " in falling.reasons[0]
    assert "after many more steps" in kept.reasons[1]
    assert "after many more steps" not in falling.reasons[1]


def test_a_plan_that_is_its_rival():
    found = verdict([2.0, 2.0], [10, 30], steps_left=20_000, **RUN)
    assert found.answer == "cannot show in the steps left"
    assert found.median_change > SHOWS
    assert found.median_distance == 0
    assert found.steps_to_show is None
    assert "Its difference from uniform decay" in " ".join(found.reasons)


def test_shape_comes_first_and_both_are_said():
    found = verdict(RATIOS, SIZES, steps_left=50, shape_share=0.93, **RUN)
    assert found.answer == "explained by shape"
    said = " ".join(found.reasons)
    assert "93 % of the plan" in said
    assert "too little to show" in said
    assert " 100 % of the plan" in " ".join(verdict(RATIOS, SIZES, steps_left=50, shape_share=1, **RUN).reasons)
    assert verdict(RATIOS, SIZES, steps_left=20_000, shape_share=GEOMETRY, **RUN).answer == "worth a run"


@pytest.mark.parametrize(("decay", "lr", "steps"), [(0.0, 1e-3, 1000), (0.1, 0.0, 1000), (0.1, 1e-3, 0)])
def test_where_nothing_happens(decay, lr, steps):
    found = verdict([0.0, *RATIOS], [1, *SIZES], base_weight_decay=decay, lr=lr, steps_left=steps)
    assert found.answer == "cannot show in the steps left"
    assert set(found.changes) == {0.0}
    assert found.balanced_changes[0] is None
    if lr * decay == 0:
        assert found.time_constant is None
        assert found.steps_to_show is None
        assert "Nothing decays" in found.reasons[0]


def test_numbers_of_numpy():
    found = verdict(np.array([2.0, 2.0]), np.array([7, 7]), steps_left=10, **RUN)
    assert found.uniform_ratio == 2
    assert type(found.uniform_ratio) is float
    msgspec.json.encode(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": [], "parameters": []}, "no module takes part"),
        ({"ratios": [-1.0], "parameters": [1]}, "negative or no number"),
        ({"ratios": [math.nan], "parameters": [1]}, "negative or no number"),
        ({"parameters": [0] * 7}, "0 parameters"),
        ({"lr": -1.0}, "lr=-1"),
        ({"base_weight_decay": math.inf}, "base_weight_decay=inf"),
        ({"steps_left": -5}, "steps_left=-5"),
        ({"shape_share": 1.2}, "between 0 and 1"),
        ({"lr": 0.5, "base_weight_decay": 1.0}, "remove all weights"),
        ({"lr": 1.5, "base_weight_decay": 1.0, "ratios": [0.1], "parameters": [1]}, "ratio 1 is 1.5"),
    ],
)
def test_impossible_requests(change, message):
    request = {"ratios": RATIOS, "parameters": SIZES, "steps_left": 10, **RUN, **change}
    with pytest.raises(UsageError, match=message):
        verdict(request.pop("ratios"), request.pop("parameters"), **request)


def test_a_large_model_is_quick():
    ratios = list(np.linspace(0.5, 3, 500))
    found = verdict(ratios, [1] * 500, steps_left=10**6, schedule="to zero", **RUN)
    assert found.answer == "worth a run"
