"""Power iteration that goes on: the reference's case, a lower bound, zero matrices, states to the bit."""

import json

import numpy as np
import pytest
import torch

from specdiag.optim.norms.power_iteration import PowerIteration, power_step


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sigma(matrix):
    return float(np.linalg.svd(matrix.double().numpy(), compute_uv=False).max())


def test_the_reference_case():  # V1
    matrix, vector = torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64))[None], torch.full((1, 2, 1), 0.5**0.5)
    vector, found = vector.double(), []
    for _ in range(4):
        norm, vector = power_step(matrix, vector)
        found.append(norm.item())
    assert found == pytest.approx([1.8439088915, 1.9884280610, 1.9992681588, 1.9999542259], abs=1e-7)
    ratio = np.array([4.0, 1.0])  # the same by hand: v after t rounds is (4^t, 1)
    images = [np.array([2.0, 1.0]) * ratio**t for t in range(4)]
    by_hand = [np.linalg.norm(np.array([2.0, 1.0]) * image) / np.linalg.norm(image) for image in images]
    assert found == pytest.approx(by_hand, abs=1e-9)


def test_a_lower_bound_that_converges_on_a_slowly_moving_matrix():
    powers, matrix = PowerIteration(), random(1, 60, 40)
    for step in range(60):
        matrix = matrix + 0.001 * random(1, 60, 40, seed=step + 1)
        found = powers.norms({"w": matrix})["w"]
        assert found <= sigma(matrix) * (1 + 1e-6)
    assert found == pytest.approx(sigma(matrix), rel=5e-3)


@pytest.mark.parametrize("shape", [(1, 30, 90), (1, 90, 30), (5, 20, 30)])
def test_tall_wide_and_stacked(shape):
    powers, matrix = PowerIteration(rounds=20), random(*shape)
    for _ in range(30):
        found = powers.norms({"w": matrix})["w"]
    assert found == pytest.approx(sigma(matrix), rel=1e-4)
    (state,) = powers.state_dict().values()
    assert state["shape"] == [shape[0], min(shape[1:])]


def test_after_zero_and_after_nan_it_starts_anew():
    powers, matrix = PowerIteration(), random(1, 20, 10)
    assert powers.norms({"w": torch.zeros(1, 20, 10)})["w"] == 0
    assert powers.state_dict() == {}
    for _ in range(100):
        found = powers.norms({"w": matrix})["w"]
    assert found == pytest.approx(sigma(matrix), rel=1e-4)
    bad = matrix.clone()
    bad[0, 0, 0] = torch.nan
    assert not np.isfinite(powers.norms({"w": bad, "other": matrix})["w"])
    assert list(powers.state_dict()) == ["other"]
    assert powers.norms({"w": matrix})["w"] > 0.9 * sigma(matrix)


def test_one_zero_matrix_of_a_stack():
    powers, matrix = PowerIteration(), random(2, 20, 10)
    matrix[1] = 0
    assert powers.norms({"w": matrix})["w"] == pytest.approx(sigma(matrix), rel=0.05)
    assert powers.state_dict() == {}


def test_a_saved_state_goes_on_to_the_bit():
    matrices = {"a": random(1, 50, 40), "b": random(3, 20, 30, seed=1).double()}
    first, second = PowerIteration(), PowerIteration()
    first.norms(matrices)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for _ in range(3):
        assert first.norms(matrices) == second.norms(matrices)
    assert first.state_dict() == second.state_dict()


def test_vectors_that_no_longer_fit_are_dropped():
    powers = PowerIteration()
    powers.norms({"a": random(1, 50, 40), "b": random(1, 20, 30)})
    powers.keep({"a": (1, 40, 50), "b": (1, 20, 19)})
    assert list(powers.state_dict()) == ["a"]
    assert powers.norms({}) == {}


def test_low_precision_is_widened():
    matrix = random(1, 40, 40).bfloat16()
    powers = PowerIteration()
    for _ in range(50):
        found = powers.norms({"w": matrix})["w"]
    assert found == pytest.approx(sigma(matrix.float()), rel=1e-3)
