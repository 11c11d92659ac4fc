"""When AlphaDecay measures each matrix."""

import math

import numpy as np
import pytest
import torch
from live_models import Decoder
from live_optimizers import adamw

from specdiag.optim import AlphaDecay
from specdiag.optim.rules.measurement_schedule import due, rounds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_fresh_run_starts_at_ratio_1_and_a_resumed_one_with_a_sweep():
    model = Decoder()
    fresh = AlphaDecay(model, adamw(model), every=4)
    for step in range(4):
        assert set(fresh.ratios.values()) == {1.0}
        fresh.step(step)
    assert max(fresh.ratios.values()) == 3.0
    resumed = AlphaDecay(model, adamw(model), every=4)
    resumed.step(1000)
    assert max(resumed.ratios.values()) == 3.0


@pytest.mark.parametrize(("n", "every"), [(7, 500), (84, 500), (84, 10), (3, 1)])
def test_no_exponent_is_older_than_every(n, every):
    came = {i: [-1] for i in range(n)}
    for step in range(3 * every):
        for i in due(n, every, "round-robin", step - 1, step):
            came[i].append(step)
    assert all(np.diff(steps[1:]).max() == every for steps in came.values())
    assert max(steps[1] for steps in came.values()) < every
    calls = [len(due(n, every, "round-robin", s - 1, s)) for s in range(every)]
    assert max(calls) == math.ceil(n / every)


def test_steps_that_are_skipped_or_repeated_lose_no_module():
    assert due(7, 10, "round-robin", -1, 9) == list(range(7))
    assert due(7, 10, "round-robin", 9, 99) == list(range(7))
    assert due(7, 10, "round-robin", 5, 5) == []
    assert due(7, 10, "sweep", 8, 9) == list(range(7)) == due(7, 10, "sweep", 5, 12)
    assert due(7, 10, "sweep", 9, 18) == []
    assert rounds([1.0, 5.0, 3.0, 3.0], 2) == [[1, 2], [3, 0]]


def test_sweep_measures_where_the_released_code_does():
    model = Decoder()
    decay = AlphaDecay(model, adamw(model), every=3, mode="sweep")
    measured = []
    for step in range(7):
        before = decay.state_dict()["exponents"]
        with torch.no_grad():
            model.layers[0].self_attn.q_proj.weight += 0.1 * torch.randn(64, 64)
        decay.step(step)
        if decay.state_dict()["exponents"] != before:
            measured.append(step)
    assert measured == [2, 5]
