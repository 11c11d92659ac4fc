"""AlphaDecay on live optimizers: exact where it does nothing, exactly predicted where it does something."""

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import esd, naive_hill
from live_models import Decoder, decays_of_a_step, train, weights

import specdiag
from specdiag import UsageError
from specdiag.decay.multipliers import attach
from specdiag.optim import AlphaDecay
from specdiag.optim.exponents import exponents
from specdiag.optim.schedule import due, rounds

Q = "layers.0.self_attn.q_proj.weight"

pytestmark = pytest.mark.usefixtures("one_thread")


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, **options)


def muon(model):
    return torch.optim.Muon([p for p in model.layers.parameters() if p.ndim == 2], lr=1e-2, weight_decay=0.1)


class Lion(torch.optim.Optimizer):
    """arXiv 2302.06675, algorithm 2."""

    def __init__(self, params, lr, weight_decay, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            lr, (b1, b2) = group["lr"], group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"]).sub_(lr * m.lerp(p.grad, 1 - b1).sign())
                m.lerp_(p.grad, 1 - b2)


OPTIMIZERS = {
    "AdamW for-loop": lambda m: adamw(m, foreach=False),
    "AdamW foreach": lambda m: adamw(m, foreach=True),
    "AdamW fused": lambda m: adamw(m, fused=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, weight_decay=0.1),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.1),
    "Muon": muon,
    "Lion": lambda m: Lion(m.parameters(), lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_with_all_ratios_1_a_run_is_bitwise_what_it_is_without(make):
    runs = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        decay = AlphaDecay(model, optimizer, every=2, s1=1.0, s2=1.0) if attached else None
        if attached:
            # Another multiplier that splits the groups to no effect: the swap itself must not show either.
            attach(optimizer, "schedule", "test", lambda p, _: 1.0 + 1e-17 if p.ndim == 2 else 1.0)
        train(model, optimizer, 5, scheduler, decay)
        runs.append((weights(model), optimizer.state_dict()))
    (plain, plain_state), (ours, our_state) = runs
    assert all(torch.equal(plain[name], ours[name]) for name in plain)
    torch.testing.assert_close(our_state, plain_state, rtol=0, atol=0)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_splitting_the_groups_changes_no_bit(make):
    runs = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        if attached:
            # Twice a half of the decay in one half of the matrices: other groups, equal decays.
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
    decay = AlphaDecay(model, adamw(model), fresh=False)
    decay.step(0)
    report = specdiag.analyze(model)
    plan = specdiag.recommend(model)
    assert list(decay.ratios) == [entry.name for entry in plan.entries]
    assert decay.alphas == pytest.approx({name: report[name].alpha for name in decay.alphas}, rel=2e-6)
    assert decay.ratios == pytest.approx(plan.ratios, abs=1e-5)


@pytest.mark.parametrize("rule", ["linear", "sqrt", "log2", "sigmoid", "uniform"])
@pytest.mark.parametrize("basis", ["alpha", "square"])
def test_every_rule_and_basis_is_that_of_recommend(rule, basis):
    model = Decoder(mlp=160)
    decay = AlphaDecay(model, adamw(model), rule=rule, basis=basis, fresh=False)
    decay.step(0)
    assert decay.ratios == pytest.approx(specdiag.recommend(model, rule=rule, basis=basis).ratios, abs=2e-5)


def test_the_optimizer_reads_ratio_times_decay_inside_its_step_and_nothing_outside():
    model = Decoder()
    no_decay = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim == 2], "lr": 1e-2},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    decay = AlphaDecay(model, optimizer, fresh=False)
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


def test_a_checkpoint_goes_on_in_a_plain_optimizer_and_back(tmp_path):
    model = Decoder()
    optimizer = adamw(model)
    train(model, optimizer, 3, decay=AlphaDecay(model, optimizer, fresh=False))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    plain = adamw(model)
    plain.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    assert len(plain.param_groups) == 1
    train(model, plain, 1, start=3)
    optimizer.load_state_dict(plain.state_dict())
    train(model, optimizer, 1, start=4)


@pytest.mark.parametrize("mode", ["round-robin", "sweep", "background"])
@pytest.mark.parametrize("stop", [3, 7])
def test_interrupted_equals_uninterrupted(mode, stop):
    def build():
        model = Decoder()
        optimizer = adamw(model)
        return model, optimizer, AlphaDecay(model, optimizer, every=5, mode=mode)

    model, optimizer, decay = build()
    train(model, optimizer, 12, decay=decay)

    first, first_optimizer, first_decay = build()
    train(first, first_optimizer, stop, decay=first_decay)
    state = json.loads(json.dumps(first_decay.state_dict()))
    second, second_optimizer, second_decay = build()
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(copy.deepcopy(first_optimizer.state_dict()))
    second_decay.load_state_dict(state)
    assert second_decay.ratios == first_decay.ratios
    train(second, second_optimizer, 12 - stop, decay=second_decay, start=stop)
    assert second_decay.ratios == decay.ratios
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second.parameters(), strict=True))


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


def test_an_exception_inside_step_leaves_no_trace():
    model = Decoder()
    optimizer = adamw(model)
    train(model, optimizer, 2, decay=AlphaDecay(model, optimizer, fresh=False))
    layout = optimizer.state_dict()["param_groups"]

    class Failed(Exception):
        pass

    def closure():
        raise Failed

    for look in (optimizer.state_dict, lambda: train(model, optimizer, 1)):
        with pytest.raises(Failed):
            optimizer.step(closure)
        look()
        assert optimizer.state_dict()["param_groups"] == layout
        assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_has_the_users_groups_and_what_it_sets_acts_at_once(keyword):
    """As in Lightning, where the whole training step is a closure, and may follow a decay schedule of its own."""
    model, expected = Decoder(), Decoder()
    optimizer = adamw(model)
    held = optimizer.param_groups
    decay = AlphaDecay(model, optimizer, fresh=False)

    def gradients(of):
        torch.manual_seed(0)
        loss = of(torch.randint(80, (2, 8))).loss
        loss.backward()
        return loss

    def closure():
        assert optimizer.param_groups is held
        decay.step(0)
        held[0]["weight_decay"] = 0.2
        return gradients(model)

    assert (optimizer.step(closure=closure) if keyword else optimizer.step(closure)) > 0
    assert optimizer.param_groups is held
    assert held[0]["weight_decay"] == 0.2
    assert max(decay.ratios.values()) == 3.0
    parameters = [
        {"params": [p], "weight_decay": 0.2 * decay.ratios.get(name, 1.0)} for name, p in expected.named_parameters()
    ]
    gradients(expected)
    torch.optim.AdamW(parameters, lr=1e-2).step()
    ours, expected = weights(model), weights(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_closure_that_runs_twice_and_one_that_is_left_unused():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            with torch.enable_grad():
                closure()
            return super().step(closure)

    model = Decoder()
    optimizer = Twice(model.parameters(), lr=1e-2, weight_decay=0.1)
    AlphaDecay(model, optimizer, fresh=False).step(0)
    calls = []
    optimizer.step(lambda: calls.append(len(optimizer.param_groups)))
    assert calls == [1, 1]
    assert optimizer.param_groups[0]["count"] == 1
    assert len(optimizer.param_groups) == 1
    lion = Lion(model.parameters(), lr=1e-3, weight_decay=0.1)
    decay = AlphaDecay(model, lion, fresh=False)
    decay.step(0)
    seen = decays_of_a_step(lion, model)
    model(torch.randint(80, (2, 8))).loss.backward()
    lion.step(lambda: None)
    assert seen[Q] == pytest.approx(0.1 * decay.ratios[Q])


def test_two_optimizers():
    model = Decoder()
    hidden = muon(model)
    taken = {id(p) for p in hidden.param_groups[0]["params"]}
    rest = torch.optim.AdamW([p for p in model.parameters() if id(p) not in taken], weight_decay=0.2)
    decay = AlphaDecay(model, [hidden, rest], fresh=False, roles=["q", "k", "v", "o", "up", "down", "head"])
    seen = [decays_of_a_step(optimizer, model) for optimizer in (hidden, rest)]
    train(model, [hidden, rest], 1, decay=decay)
    assert seen[0][Q] == 0.1 * decay.ratios[Q]
    assert seen[1]["lm_head.weight"] == 0.2 * decay.ratios["lm_head.weight"]
    assert seen[1]["norm.weight"] == 0.2


def test_what_an_optimizer_writes_into_its_groups_stays():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                group["count"] = group.get("count", 0) + 1
            super().step(closure)

    model = Decoder()
    torch.optim.SGD(model.parameters())  # from here on super().step() runs the hooks too
    optimizer = Counting(model.parameters(), lr=1e-2, weight_decay=0.1)
    train(model, optimizer, 3, decay=AlphaDecay(model, optimizer, fresh=False))
    assert optimizer.param_groups[0]["count"] == 3


def test_an_optimizer_that_keeps_other_things_for_each_group_is_refused():
    class Summing(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                group["total"] = sum(float(p.detach().sum()) for p in group["params"])

    model = Decoder()
    optimizer = Summing(model.parameters(), lr=1e-2, weight_decay=0.1)
    with pytest.raises(UsageError, match=r"keeps 'total' for each group.*param_groups\(model, lr=...\)"):
        train(model, optimizer, 1, decay=AlphaDecay(model, optimizer, fresh=False))
    assert len(optimizer.param_groups) == 1


def test_a_tied_head_takes_no_part():
    model = Decoder(tied=True)
    decay = AlphaDecay(model, adamw(model), fresh=False)
    decay.step(0)
    assert len(decay.ratios) == 12
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=1e-5)


def test_gpt2_with_its_transposed_fused_weights():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=80, n_positions=16))
    decay = AlphaDecay(model, adamw(model), fresh=False)
    decay.step(0)
    report = specdiag.analyze(model)
    fused = "transformer.h.0.attn.c_attn.weight"
    parts = [report[f"{fused}[{part}]"].alpha for part in "qkv"]
    assert decay.alphas[fused] == pytest.approx(np.mean(parts), abs=1e-6)
    assert decay.ratios == pytest.approx(specdiag.recommend(report).ratios, abs=1e-5)


def test_a_module_around_the_model_hides_no_config():
    """Where heads are interleaved in a fused matrix, only the config says how many there are."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=80, **sizes))
    around = torch.nn.Module()
    around.net, around.loss = model, torch.nn.CrossEntropyLoss()
    measured = []
    for module in (model, torch.nn.parallel.DataParallel(around)):
        decay = AlphaDecay(module, adamw(module), fresh=False)
        decay.step(0)
        measured.append(decay.alphas)
    assert measured[1] == {f"net.{name}": alpha for name, alpha in measured[0].items()}
    assert "gpt_neox.layers.0.attention.query_key_value.weight" in measured[0]
    around.head = torch.nn.Linear(64, 64)
    assert len(AlphaDecay(around, adamw(around)).ratios) == 3


def test_stacked_experts_share_the_mean_of_their_exponents():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 80,
    }
    model = MixtralForCausalLM(MixtralConfig(num_local_experts=3, num_key_value_heads=2, **sizes))
    decay = AlphaDecay(model, adamw(model), fresh=False)
    decay.step(0)
    name = "model.layers.0.mlp.experts.down_proj"
    stack = model.model.layers[0].mlp.experts.down_proj.detach().numpy()
    assert decay.alphas[name] == pytest.approx(np.mean([naive_hill(esd(w)) for w in stack]), abs=1e-6)
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=1e-5)
    assert len(decay.state_dict()["modules"]) == 4 + 3 * 3


def test_a_compiled_model():
    model = Decoder()
    compiled = torch.compile(model, backend="eager")
    optimizer = adamw(compiled)
    decay = AlphaDecay(compiled, optimizer, fresh=False)
    train(compiled, optimizer, 2, decay=decay)
    assert Q in decay.ratios


def test_a_matrix_that_is_not_finite_keeps_its_exponent_and_is_named_once(caplog):
    model = Decoder()
    decay = AlphaDecay(model, adamw(model), every=1, fresh=False)
    decay.step(0)
    before = decay.alphas[Q]
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    for step in (1, 2):
        decay.step(step)
        assert decay.alphas[Q] == before
    assert [r.getMessage() for r in caplog.records if Q in r.getMessage()] == [
        f"{Q} could not be measured (not finite, or no convergence): keeps exponent {before:.3f}"
    ]


def test_a_matrix_without_an_exponent_gets_ratio_1():
    model = Decoder()
    torch.nn.init.zeros_(model.layers[0].self_attn.o_proj.weight)
    torch.nn.init.zeros_(model.layers[1].self_attn.o_proj.weight[:, 8:])
    decay = AlphaDecay(model, adamw(model), fresh=False)
    decay.step(0)
    for layer in (0, 1):
        assert decay.alphas[f"layers.{layer}.self_attn.o_proj.weight"] is None
        assert decay.ratios[f"layers.{layer}.self_attn.o_proj.weight"] == 1.0
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_exponents_of_every_type(dtype):
    torch.manual_seed(0)
    w = torch.randn(2, 96, 64).to(dtype)
    expected = naive_hill(np.concatenate([esd(slice.double().numpy()) for slice in w]))
    assert exponents([w], "alpha") == pytest.approx([expected], abs=2e-6)
    assert exponents([w * 1e-2], "alpha") == exponents([w * 1e-2], "alpha")
    assert exponents([torch.randn(1, 20, 400)], "alpha") == [None]


def test_threads_change_no_bit():
    torch.manual_seed(0)
    stacks = [torch.randn(1, 128, 96) for _ in range(4)]
    alone = exponents(stacks, "alpha")
    torch.set_num_threads(3)
    assert exponents(stacks, "alpha") == alone


def test_the_accelerator_route_agrees_with_the_cpu():
    from specdiag.optim.exponents import _on_accelerator

    torch.manual_seed(0)
    stacks = [torch.randn(1, 64, 160), torch.randn(1, 96, 64), torch.randn(1, 64, 160), torch.zeros(1, 64, 64)]
    stacks.append(torch.full((1, 64, 64), float("nan")))
    for basis in ("alpha", "square"):
        on_cpu, batched = exponents(stacks, basis), _on_accelerator(stacks, basis)
        assert batched[:3] == pytest.approx(on_cpu[:3], abs=1e-5)
        assert batched[3] is on_cpu[3] is None
        assert math.isnan(batched[4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = Decoder().cuda()
    optimizer = adamw(model, fused=True)
    decay = AlphaDecay(model, optimizer, fresh=False)
    decay.step(0)
    assert decay.ratios == pytest.approx(specdiag.recommend(model.cpu()).ratios, abs=1e-4)


def foreign(module, name, optimizer):
    return type(name, (), {"__module__": module, "optimizer": optimizer, "param_groups": optimizer.param_groups})()


@pytest.mark.parametrize(
    "home",
    ["deepspeed.runtime.zero.stage_1_and_2", "megatron.core.optimizer", "colossalai.zero", "bitsandbytes.optim.adamw",
     "accelerate.utils.deepspeed"],
)  # fmt: skip
def test_optimizers_that_flatten_their_groups_are_refused_with_what_works_there(home):
    model = Decoder()
    with pytest.raises(UsageError, match=rf"{home}\.Some.*plan\.param_groups\(model, lr=\.\.\.\)"):
        AlphaDecay(model, foreign(home, "Some", adamw(model)))


def test_wrappers_of_accelerate_are_looked_through():
    from accelerate import Accelerator

    model = Decoder()
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, adamw(model))
    decay = AlphaDecay(prepared, optimizer, fresh=False)
    seen = decays_of_a_step(optimizer.optimizer, model)
    train(prepared, optimizer, 1, decay=decay)
    assert seen[Q] == 0.1 * decay.ratios[Q]


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
    with AlphaDecay(model, optimizer, fresh=False) as second:
        second.step(0)
    seen = decays_of_a_step(optimizer, model)
    train(model, optimizer, 1)
    assert set(seen.values()) == {0.1}
    with pytest.raises(UsageError, match="was detached"):
        second.step(1)


def test_frozen_parameters_and_adapters():
    model = Decoder()
    some = [p for name, p in model.named_parameters() if "layers.1" in name]
    assert len(AlphaDecay(model, torch.optim.AdamW(some)).ratios) == 6
    with pytest.raises(UsageError, match="holds no weight matrix of this Decoder"):
        AlphaDecay(model, torch.optim.AdamW(Decoder().parameters()))
    model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(64, 8, bias=False)
    with pytest.raises(UsageError, match=r"adapters \(layers\.0\.self_attn\.q_proj\.lora_A\.weight\)"):
        AlphaDecay(model, adamw(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decay_that_rounding_undoes_is_said(dtype):
    model = Decoder().to(dtype)
    with pytest.warns(UserWarning, match=r"rounding undoes it.*float32.*stochastic rounding"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1))
    AlphaDecay(model, torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=0.1))
    AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-1, weight_decay=0.1))


def test_bf16_weights_really_do_not_move_below_that_rate_and_do_above():
    w = torch.randn(10_000).to(torch.bfloat16)
    threshold = torch.finfo(torch.bfloat16).eps / 4
    assert torch.equal(w * (1 - 0.99 * threshold), w)
    assert not torch.equal(w * (1 - 1.01 * threshold), w)


def test_of_a_fused_step_part_of_that_decay_is_left():
    """It rounds decay and update together: where the update alone moves a weight, the decay moves the odds."""

    def norm(weight_decay, dtype=torch.bfloat16, **options):
        torch.manual_seed(0)
        w = torch.nn.Parameter((0.02 * torch.randn(20_000)).to(dtype))
        optimizer = torch.optim.AdamW([w], weight_decay=weight_decay, **options)
        for _ in range(300):
            w.grad = torch.randn(20_000).to(dtype)
            optimizer.step()
        return float(w.detach().double().norm())

    def kept(**options):
        """The share of what decay takes from the norm of float32 weights that it takes from that of bfloat16."""
        whole = 1 - norm(0.3, torch.float32, **options) / norm(0.0, torch.float32, **options)
        return (1 - norm(0.3, **options) / norm(0.0, **options)) / whole

    assert kept(lr=3e-4, fused=False) == 0
    assert 0.5 < kept(lr=3e-4, fused=True) < 0.9
    assert 0.02 < kept(lr=1e-4, fused=True) < 0.3
    assert kept(lr=1e-5, fused=True) < 0.01
    model = Decoder().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="rounding undoes it, or part of it .a fused step rounds decay and update"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True))


def test_no_decay_to_multiply_is_said():
    model = Decoder()
    with pytest.warns(UserWarning, match="all 12 matrices is 0"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 must be"),
        ({"mode": "daily"}, "unknown mode 'daily'; choose from round-robin, sweep"),
        ({"basis": "rho"}, "unknown basis 'rho'; choose from alpha, square"),
        ({"rule": "cubic"}, "unknown rule 'cubic'"),
        ({"s1": 3.0, "s2": 1.0}, r"s1 3\.0 and s2 1\.0"),
        ({"include": "*.nothing"}, r"'\*\.nothing' matches no matrix"),
        ({"roles": "cook"}, "unknown role 'cook'"),
    ],
)
def test_bad_options(options, message):
    model = Decoder()
    with pytest.raises(UsageError, match=message):
        AlphaDecay(model, adamw(model), **options)


def test_a_state_of_other_modules_or_another_basis_is_refused(caplog):
    model = Decoder()
    state = AlphaDecay(model, adamw(model)).state_dict()
    deeper = Decoder(layers=3)
    other = AlphaDecay(deeper, adamw(deeper))
    with pytest.raises(UsageError, match=r"12 against 18 here.*'layers\.2\.self_attn\.q_proj\.weight'"):
        other.load_state_dict(state)
    with pytest.raises(UsageError, match="basis alpha, not square"):
        AlphaDecay(model, adamw(model), basis="square").load_state_dict(state)
    later = AlphaDecay(model, adamw(model), every=7, fresh=False)
    later.step(0)
    later.load_state_dict(state)
    assert "every 500 -> 7" in caplog.text
    assert set(later.ratios.values()) == {1.0}


def test_it_is_imported_lazily_and_without_a_trainer():
    code = """
import specdiag, sys
specdiag.optim.AlphaDecay, specdiag.optim.CorrectedDecay
assert not {"transformers", "accelerate"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
