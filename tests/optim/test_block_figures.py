"""Scores, QK and channels that a NormWatch logs: against the figures of a checkpoint, their alerts, and their state."""

import json

import numpy as np
import pytest
import torch
from wired_models import KINDS, random_model

from specdiag import UsageError, analyze
from specdiag.analysis.source import open_source
from specdiag.function.alarms import look_for_alarms
from specdiag.optim import NormWatch
from specdiag.optim.norms.head_figures import top_eigenvalue
from specdiag.trajectories.function_alerts import function_alerts, latest_values, logged_alerts
from specdiag.trajectories.metric_log import entry, latest, read_log

HEAD = "model.layers.0.self_attn[head=1.qk]"
PARTLY_ROTATED = ("gptj", "gpt_neox", "phi", "nemotron")
"""Rows beside the planes are in balance as one here, and one by one in a checkpoint's figures: two bounds."""

pytestmark = pytest.mark.usefixtures("one_thread")


def watched(model, **options):
    return NormWatch(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), every=1, **options)


def take(model, watch, step):
    """Take a step without a gradient: no weight changes."""
    watch.step(step)
    watch._optimizers[0].step()


def logged(watch, metric):
    return {e.module: e.value for e in watch.latest if e.metric == metric}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_the_checkpoint(kind):
    model = random_model(kind)
    watch = watched(model)
    take(model, watch, 0)
    expected, _ = look_for_alarms(open_source(model))
    bounds = {s.key: s.bound for s in expected.scores if "cross" not in s.key and "encoder_attn" not in s.key}
    found = logged(watch, "score_bound")
    assert set(found) == {k for k in bounds if "EncDecAttention" not in k}
    for key, bound in found.items():
        least, most = (0.8, 1.25) if kind in PARTLY_ROTATED else (1 - 1e-9, 1.005)
        assert least * bounds[key] <= bound <= most * bounds[key]
    ranks = {r.key: r.stable_rank for r in analyze(model, function=True, roles="qk").function if not r.cross_attention}
    assert sorted(logged(watch, "qk_stable_rank").values()) == pytest.approx(sorted(ranks.values()), rel=0.005)
    largest = {c.component or "": c for c in reversed(expected.channels)}
    assert logged(watch, "channel_size") == pytest.approx({k: c.size for k, c in largest.items()}, rel=1e-5)
    assert logged(watch, "channel_index") == {k: c.channel for k, c in largest.items()}
    assert watch.alerts == ()


@pytest.mark.parametrize("n", [1, 3, 64])
def test_the_largest_eigenvalue_is_bounded_from_above(n):
    rng = np.random.default_rng(n)
    a, b = (x @ x.T for x in rng.standard_normal((2, n, 2 * n)))
    exact = np.linalg.eigvals(a @ b).real.max()
    found = float(top_eigenvalue(torch.from_numpy(a @ b)))
    assert exact * (1 - 1e-12) <= found <= exact * n ** (1 / 1024) * (1 + 1e-12)
    assert float(top_eigenvalue(torch.eye(n).double())) == pytest.approx(n ** (1 / 1024))
    assert float(top_eigenvalue(torch.zeros(n, n).double())) < 1e-200


def test_a_short_healthy_run_raises_none_and_a_planted_growth_does(tmp_path, caplog):
    model = random_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    watch = NormWatch(model, optimizer, every=2, out=tmp_path)
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[1].mlp

    def train(start, until):
        seen = []
        for step in range(start, until):
            torch.manual_seed(step)
            tokens = torch.randint(3, 67, (4, 16))
            model(input_ids=tokens, labels=tokens).loss.backward()
            watch.step(step)
            optimizer.step()
            optimizer.zero_grad()
            if step % 2 == 0:
                seen += watch.alerts
        return seen

    assert train(0, 8) == []
    assert not caplog.records
    with torch.no_grad():
        attention.q_proj.weight[16:32] *= 400
        mlp.down_proj.weight[5] *= 10
    norm, scores, channel = train(8, 9)
    assert (norm.kind, norm.module) == ("norm", "model.layers.0.self_attn.q_proj.weight")
    assert (scores.kind, scores.step, scores.module) == ("scores", 8, HEAD)
    assert scores.message.startswith(f"the bound of the attention scores of {HEAD} went from ")
    assert " at step 6 to " in scores.message
    assert ", above 4000; such scores can saturate the softmax" in scores.message
    assert "lower the learning rate" in scores.message
    assert channel.kind == "channel"
    assert "of channel 5 of the residual stream went from 1." in channel.message
    assert [r.getMessage() for r in caplog.records] == [f"step 8: {a.message}" for a in (norm, scores, channel)]
    assert train(9, 13) == []
    with torch.no_grad():  # one direction is left of the queries of a head
        u, s, v = torch.linalg.svd(attention.q_proj.weight[:16])
        s[1:] *= 1e-3
        attention.q_proj.weight[:16] = u * s @ v[:16]
    (rank,) = train(13, 15)
    assert (rank.kind, rank.module) == ("rank", "model.layers.0.self_attn[head=0.qk]")
    assert rank.value < 1.1
    assert "the stable rank of QK of" in rank.message
    rows = latest(read_log(tmp_path / "specdiag_norms" / "specdiag_log.jsonl"))
    assert logged_alerts(rows, None, 14) == [norm, scores, channel, rank]
    assert logged_alerts(rows, 8, 14) == [rank]
    assert logged_alerts(rows, None, 8) == [norm, scores, channel]


@pytest.mark.parametrize(
    ("metric", "values", "raised"),
    [
        pytest.param("score_bound", (30, 70, 150, 400), [], id="scores grow while a run begins"),
        pytest.param("score_bound", (900, 1700, 3000, 3900), [], id="scores grow as in finished models"),
        pytest.param("score_bound", (900, 1900), [1], id="scores double at once"),
        pytest.param("score_bound", (3900, 4100, 4300, 7900, 8100), [1, 4], id="scores pass the limit and its double"),
        pytest.param("score_bound", (9000, 9000), [0], id="scores are high from the beginning"),
        pytest.param("qk_stable_rank", (12, 7, 4, 2.1), [], id="rank falls slowly"),
        pytest.param("qk_stable_rank", (12, 12, 11, 12, 11.5, 5.5, 2), [5], id="a settled rank halves at once"),
        pytest.param("qk_stable_rank", (11.3, 10.6, 5.4, 1.4, 1.2, 1.2, 1.3), [], id="rank falls while a run begins"),
        pytest.param("qk_stable_rank", (11.3, 1.2, 1.5, 1.6, 1.6), [], id="rank falls at the first logged step"),
        pytest.param("channel_size", (1.05, 1.25, 1.8, 2.6, 3.1), [], id="channels grow as in finished models"),
        pytest.param("channel_size", (1.1, 1.7), [1], id="a channel leaps"),
        pytest.param("update_ratio", (0.008, 0.066, 0.071, 0.027, 0.062), [], id="updates of a healthy run"),
        pytest.param("update_ratio", (0.027, 0.047, 1.17, 0.12), [2], id="an update replaces the matrix"),
        pytest.param("update_ratio", (0.01, 0.2), [1], id="an update is many times as large at once"),
        pytest.param("frobenius_norm", (4, 6, 8, 9, 10), [], id="a norm grows as in a healthy run"),
        pytest.param("frobenius_norm", (4, 32), [1], id="a norm leaps"),
        pytest.param("weight_rms", (0.02, 0.019, 0.0, 0.0), [2], id="a matrix vanishes"),
        pytest.param("stable_rank", (20, 7, 1.7, 0.9), [], id="stable rank falls while a run begins"),
        pytest.param("stable_rank", (20, 20, 19, 20, 20, 9), [5], id="a settled stable rank halves at once"),
        pytest.param("channel_size", (3.9, 4.1, 4.2), [1], id="a channel passes the limit"),
    ],
)
def test_what_raises_an_alert(metric, values, raised):
    before, found = {}, []
    for step, value in enumerate(values):
        rows = [entry(step, "m", metric, value)]
        found += [alert.step for alert in function_alerts(before, rows)]
        before |= latest_values(before, rows)
    assert found == raised


def test_one_alert_for_many_heads():
    before = latest_values({}, [entry(0, f"a[head={i}.qk]", "score_bound", 1500) for i in range(4)])
    rows = [entry(5, f"a[head={i}.qk]", "score_bound", 3100 + i) for i in range(4)]
    (alert,) = function_alerts(before, rows)
    assert alert.module == "a[head=3.qk]"
    assert "went from 1500 at step 0 to 3103 (3 more likewise); " in alert.message


def test_alerts_go_on_where_a_run_resumes():
    model = random_model("llama")
    watch = watched(model)
    take(model, watch, 0)
    state = json.loads(json.dumps(watch.state_dict()))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 300
    again, fresh = watched(model), watched(model)
    again.load_state_dict(state)
    take(model, again, 1)
    assert [alert.message.count(" at step 0 to ") for alert in again.alerts] == [1, 1]
    take(model, fresh, 1)
    assert [alert.message.count(" is ") for alert in fresh.alerts] == [1]


def test_alerts_can_be_off_and_say_what_they_leave_out():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    watch = watched(Plain())
    assert len(watch.notes) == 1
    assert watch.notes[0].endswith("scores, QK and channels are not watched.")
    model = random_model("llama")
    off = watched(model, alerts=False)
    take(model, off, 0)
    assert not logged(off, "score_bound")
    assert off.notes == ()
    chosen = watched(model, roles=("up", "down"))
    take(model, chosen, 0)
    assert not logged(chosen, "score_bound")
    assert logged(chosen, "channel_size")
    with pytest.raises(UsageError, match="alerts"):
        watched(model, alerts="no")


def test_figures_that_are_not_finite_are_logged_as_none():
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = torch.nan
    watch = watched(model)
    take(model, watch, 0)
    assert logged(watch, "score_bound")["model.layers.0.self_attn[head=0.qk]"] is None
    assert logged(watch, "score_bound")[HEAD] > 0
    assert watch.alerts == ()


def test_bfloat16_weights_have_the_figures_of_their_values():
    model = random_model("llama").bfloat16()
    watch = watched(model)
    take(model, watch, 0)
    exact = watched(model.double())
    take(model, exact, 0)
    assert logged(watch, "score_bound") == pytest.approx(logged(exact, "score_bound"), rel=1e-4)
    assert logged(watch, "qk_stable_rank") == pytest.approx(logged(exact, "qk_stable_rank"), rel=1e-4)
