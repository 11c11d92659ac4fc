"""Optimizers and options that AlphaDecay cannot serve are refused, with what to do."""

import pytest
import torch
from live_models import Decoder, Q, decays_of_a_step, train
from live_optimizers import adamw

import specdiag
from specdiag import UsageError
from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


def foreign(module, name, optimizer):
    return type(name, (), {"__module__": module, "optimizer": optimizer, "param_groups": optimizer.param_groups})()


@pytest.mark.parametrize(
    "home",
    ["deepspeed.runtime.zero.stage_1_and_2", "megatron.core.optimizer", "colossalai.zero", "accelerate.utils.deepspeed"],
)  # fmt: skip
def test_optimizers_that_flatten_their_groups_are_refused_with_what_works_there(home):
    model = Decoder()
    with pytest.raises(UsageError, match=rf"{home}\.Some.*plan\.param_groups\(model, lr=\.\.\.\)"):
        AlphaDecay(model, foreign(home, "Some", adamw(model)))


def test_other_optimizers_that_cannot_be_served_are_refused():
    model = Decoder()

    class Wrapping(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

    with pytest.raises(UsageError, match=r"Wrapping wraps a torch.optim.adamw.AdamW"):
        AlphaDecay(model, Wrapping(adamw(model)))
    with pytest.raises(UsageError, match="without 'weight_decay'"):
        AlphaDecay(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UsageError, match="no step hooks"):
        AlphaDecay(model, object())
    optimizer = adamw(model)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    with pytest.raises(UsageError, match="compiles anew for every decay"):
        AlphaDecay(model, optimizer)


def test_a_step_that_is_compiled_or_captured_is_refused_when_it_comes(monkeypatch):
    model = Decoder()
    optimizer = adamw(model)
    AlphaDecay(model, optimizer)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(UsageError, match="is being compiled, with its decay baked in"):
        optimizer.step()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(UsageError, match="captured in a CUDA graph"):
        optimizer.step()


def test_an_optimizer_that_is_never_stepped_here_is_noticed():
    model = Decoder()
    optimizer = adamw(model)
    decay = AlphaDecay(model, optimizer)
    for step in range(100):
        decay.step(step)
    with pytest.raises(UsageError, match="has not run its step hooks for 100 steps"):
        decay.step(100)


def test_an_optimizer_that_was_rebuilt_is_noticed():
    model = Decoder()
    optimizer = adamw(model)
    decay = AlphaDecay(model, optimizer)
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(p.detach()) for p in model.parameters()]
    with pytest.raises(UsageError, match=rf"no longer holds {Q}.*after accelerator.prepare"):
        decay.step(0)


def test_two_of_them_on_one_optimizer_are_refused_until_one_is_detached():
    model = Decoder()
    optimizer = adamw(model)
    first = AlphaDecay(model, optimizer)
    with pytest.raises(UsageError, match=r"AlphaDecay already sets the decay.*detach"):
        AlphaDecay(model, optimizer)
    with pytest.raises(UsageError, match="AlphaDecay already sets the decay"):
        specdiag.recommend(model, weight_decay=0.1).apply(optimizer, model)
    first.detach()
    first.detach()
    with AlphaDecay(model, optimizer, measure_first=True) as second:
        second.step(0)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1)
    assert set(seen.values()) == {0.1}
    with pytest.raises(UsageError, match="was detached"):
        second.step(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 must be"),
        ({"mode": "daily"}, "unknown mode='daily'; choose from round-robin, sweep"),
        ({"basis": "rho"}, "unknown basis='rho'; choose from alpha, square"),
        ({"rule": "cubic"}, "unknown rule='cubic'"),
        ({"s1": 3.0, "s2": 1.0}, r"s1 3\.0 and s2 1\.0"),
        ({"include": "*.nothing"}, r"'\*\.nothing' matches none of"),
        ({"roles": "cook"}, "unknown roles='cook'"),
    ],
)
def test_bad_options(options, message):
    model = Decoder()
    with pytest.raises(UsageError, match=message):
        AlphaDecay(model, adamw(model), **options)
