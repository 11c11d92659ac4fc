"""AlphaDecay on live optimizers: exact where it does nothing, exactly predicted where it does something."""

import math

import pytest
import torch
from command import python
from live_models import Decoder, Q, decays_of_a_step, float32_errors, train, weights
from live_optimizers import OPTIMIZERS, adamw, muon

import specdiag
from specdiag.decay.assignment import assign
from specdiag.live.attaching import attach
from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_with_all_ratios_1_a_run_is_bitwise_what_it_is_without(make):
    runs = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        decay = AlphaDecay(model, optimizer, every=2, s1=1.0, s2=1.0) if attached else None
        if attached:
            # The next number after 1, which float32 does not have: the law is applied, and must not show either.
            attach(optimizer, "schedule", "test", lambda *_: math.nextafter(1.0, 2.0))
        train(model, optimizer, 5, scheduler, decay)
        runs.append((weights(model), optimizer.state_dict()))
    (plain, plain_state), (ours, our_state) = runs
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    torch.testing.assert_close(our_state, plain_state, rtol=0, atol=0)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_twice_a_half_of_the_decay_changes_no_bit(make):
    runs = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        if attached:
            for group in optimizer.param_groups:
                group["weight_decay"] /= 2
            attach(optimizer, "ratio", "test", lambda p, _: 2.0)
        train(model, optimizer, 4)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("fused", [False, True])
def test_ratio_2_changes_that_parameter_by_the_predicted_decay_and_no_other(fused):
    runs = []
    for attached in (False, True):
        model = Decoder().double()
        optimizer = adamw(model, fused=fused)
        train(model, optimizer, 3)
        before = weights(model)
        if attached:
            wanted = dict(model.named_parameters())[Q]
            attach(optimizer, "ratio", "test", lambda p, _, wanted=wanted: 2.0 if p is wanted else 1.0)
        train(model, optimizer, 1, start=3)
        runs.append(weights(model))
    plain, ours = runs
    assert all(torch.equal(plain[name], ours[name]) for name in plain if name != Q)
    torch.testing.assert_close(ours[Q], plain[Q] - 1e-2 * 0.1 * before[Q], rtol=0, atol=1e-15)


def test_alphas_and_ratios_are_those_of_analyze_and_recommend():
    model = Decoder(width=96, mlp=200)
    train(model, adamw(model), 3)
    decay = AlphaDecay(model, adamw(model), measure_first=True)
    decay.step(0)
    report = specdiag.analyze(model)
    plan = specdiag.recommend(model)
    assert list(decay.ratios) == [entry.name for entry in plan.entries]
    of_alpha, of_ratio = float32_errors(model)
    assert decay.alphas == pytest.approx({name: report[name].alpha for name in decay.alphas}, abs=of_alpha)
    assert decay.ratios == pytest.approx(plan.ratios, abs=of_ratio)


@pytest.mark.parametrize("rule", ["linear", "sqrt", "log2", "sigmoid", "uniform"])
@pytest.mark.parametrize("basis", ["alpha", "square"])
def test_every_rule_and_basis_is_that_of_recommend(rule, basis):
    model = Decoder(mlp=160)
    decay = AlphaDecay(model, adamw(model), rule=rule, basis=basis, measure_first=True)
    decay.step(0)
    plan = specdiag.recommend(model, rule=rule, basis=basis)
    values = {entry.name: entry.value for entry in plan.entries}
    assert decay.alphas == pytest.approx(values, abs=2 * float32_errors(model)[0])
    measured = [decay.alphas[entry.name] for entry in plan.entries]
    assert list(decay.ratios.values()) == assign(rule, measured, [entry.layer for entry in plan.entries], 0.67, 3.0)


def test_the_optimizer_reads_ratio_times_decay_inside_its_step_and_nothing_outside():
    model = Decoder()
    no_decay = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "lr": 1e-2},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    decay = AlphaDecay(model, optimizer, measure_first=True)
    seen = decays_of_a_step(optimizer, model)
    held = optimizer.param_groups
    train(model, optimizer, 1, decay=decay)
    assert {name: seen[name] for name in decay.ratios} == pytest.approx({n: 0.1 * r for n, r in decay.ratios.items()})
    assert min(decay.ratios.values()) == 0.67
    assert max(decay.ratios.values()) == 3.0
    assert seen["layers.0.self_attn.q_proj.bias"] == 0.0
    assert seen["lm_head.weight"] == seen["embed_tokens.weight"] == 0.1
    assert optimizer.param_groups is held
    assert [group["weight_decay"] for group in held] == [0.1, 0.0]


def test_two_optimizers():
    model = Decoder()
    hidden = muon(model)
    taken = {id(p) for p in hidden.param_groups[0]["params"]}
    rest = torch.optim.AdamW([p for p in model.parameters() if id(p) not in taken], weight_decay=0.2)
    decay = AlphaDecay(model, [hidden, rest], measure_first=True, roles=["q", "k", "v", "o", "up", "down", "head"])
    seen = [decays_of_a_step(optimizer, model) for optimizer in (hidden, rest)]
    train(model, [hidden, rest], 1, decay=decay)
    assert seen[0][Q] == 0.1 * decay.ratios[Q]
    assert seen[1]["lm_head.weight"] == 0.2 * decay.ratios["lm_head.weight"]
    assert seen[1]["norm.weight"] == 0.2


def test_wrappers_of_accelerate_are_looked_through():
    from accelerate import Accelerator

    model = Decoder()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, adamw(model))
    decay = AlphaDecay(prepared, optimizer, measure_first=True)
    seen = decays_of_a_step(optimizer.optimizer, model)
    train(prepared, optimizer, 1, decay=decay)
    assert seen[Q] == 0.1 * decay.ratios[Q]


def test_it_is_imported_lazily_and_without_a_trainer():
    code = """
import specdiag, sys
specdiag.optim.AlphaDecay, specdiag.optim.CorrectedDecay
assert not {"transformers", "accelerate"} & set(sys.modules)
"""
    python(code)
