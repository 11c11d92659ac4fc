"""Alerts on losses, updates and norms: a spike, a loss that is not finite, a step too large, a matrix that vanishes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live_models import Decoder, Q
from live_optimizers import adamw
from transformers import TrainerControl, TrainerState

from specdiag.optim import NormWatch
from specdiag.train.callbacks.run_log import RunLogCallback
from specdiag.trajectories import watching
from specdiag.trajectories.function_alerts import logged_alerts
from specdiag.trajectories.loss_alerts import LossWatch, loss_alerts
from specdiag.trajectories.metric_log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def falling(n, seed=0):
    """Losses of a healthy run: they fall, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.1, n)
    return [(step, 2.5 + 3 * math.exp(-step / 15) + float(noise[step])) for step in range(n)]


def test_a_healthy_run_has_none_and_one_bad_batch_one():
    for seed in range(20):
        losses = falling(300, seed)
        assert loss_alerts(losses, None, 300) == []
        losses[200] = (200, 9.5)
        (alert,) = loss_alerts(losses, None, 300)
        assert (alert.step, alert.kind, alert.value) == (200, "spike", 9.5)
        mean, deviation = np.mean([v for _, v in losses[:200]]), np.std([v for _, v in losses[:200]])
        assert f"is 9.5 after a mean of {mean:.4g}, {(9.5 - mean) / deviation:.0f} standard deviations" in alert.message


def test_a_fall_a_flat_loss_and_the_first_losses_are_no_spikes():
    watch = LossWatch()
    assert [watch.observe(step, 9.0) for step in range(9)] == [None] * 9
    assert watch.observe(9, 1.0) is None
    flat = LossWatch()
    assert all(flat.observe(step, 2.0) is None for step in range(50))
    assert flat.observe(50, 2.05) is None
    assert flat.observe(51, 2.2).kind == "spike"


def test_losses_that_are_not_finite_raise_one_alert_until_they_are_finite_again():
    watch = LossWatch()
    kinds = [watch.observe(step, loss) for step, loss in enumerate([2.0, math.nan, math.inf, 2.0, math.nan])]
    assert [None if alert is None else alert.kind for alert in kinds] == [None, "nonfinite", None, None, "nonfinite"]


def test_only_steps_that_were_asked_for_are_told_but_all_before_count():
    losses = [*falling(100), (100, 9.5), (101, 2.5)]
    assert [a.step for a in loss_alerts(losses, 99, 101)] == [100]
    assert loss_alerts(losses, 100, 101) == []
    assert loss_alerts(losses, None, 99) == []


def watched(out, spoil):
    """Alerts of two logged steps, between which a model is spoilt."""
    torch.manual_seed(0)
    model = Decoder()
    optimizer = adamw(model)
    watch = NormWatch(model, optimizer, every=1, out=out)
    found = []
    for step in range(3):
        if step == 2:
            spoil(model, optimizer)
        model(torch.randint(80, (2, 8))).loss.backward()
        watch.step(step)
        optimizer.step()
        optimizer.zero_grad()
        found.append([alert.kind for alert in watch.alerts])
    watch.finish(3)
    log = read_log(out / "specdiag_norms" / "specdiag_log.jsonl")
    last = [alert.kind for alert in watch.alerts]
    assert [(a.step, a.kind) for a in logged_alerts(log, None, 3)] == [
        (step, kind) for step, kinds in enumerate([*found, last]) for kind in kinds
    ]
    return found


def parameter(model):
    return dict(model.named_parameters())[Q]


def test_a_matrix_that_vanishes_or_explodes_and_a_step_too_large(tmp_path):
    def dies(model, _):
        parameter(model).data.zero_()

    def grows(model, _):
        parameter(model).data.mul_(5)

    def leaps(_, optimizer):
        for group in optimizer.param_groups:
            group["lr"] *= 1000

    assert watched(tmp_path / "healthy", lambda *_: None) == [[], [], []]
    assert "dead" in watched(tmp_path / "dead", dies)[2]
    assert watched(tmp_path / "grown", grows)[2] == ["norm"]
    assert "update" in watched(tmp_path / "leap", leaps)[2]


def test_a_spike_is_warned_of_while_it_trains_and_found_in_the_log(tmp_path, caplog):
    log = RunLogCallback(tmp_path, None, lambda _: None, lambda *_: None, pytest.fail)
    losses = [*falling(100), (100, 9.5), (101, 2.5)]
    for step, loss in losses:
        log.on_log(None, TrainerState(global_step=step), TrainerControl(), logs={"loss": loss})
    (alert,) = loss_alerts(losses, None, 101)
    assert [record.getMessage() for record in caplog.records] == [f"step 100: {alert.message}"]
    seen = SimpleNamespace(run=str(tmp_path), steps=[SimpleNamespace(step=90)])
    assert watching._of_logs(seen, 100) == [alert]
    assert watching._of_logs(seen, 99) == []
