"""The law by which each optimizer decays, found by asking it, and applied beside its step: the bits of divided groups."""

import copy

import pytest
import torch
from decay_optimizers import FOREIGN, GroupMomentum, Lamb
from live_models import Decoder, train, weights
from live_optimizers import OPTIMIZERS, adamw

from specdiag import UsageError
from specdiag.live.attaching import attach
from specdiag.live.division import Division
from specdiag.live.laws import Law
from specdiag.live.probe import find_laws, is_separable
from specdiag.optim import AWD, AdaDecay, Combined, RenormalizedAdamW, optimizers

pytestmark = pytest.mark.usefixtures("one_thread")

LR = {"lr": 1e-2, "weight_decay": 0.1}
BEFORE, GRADIENT = Law("before"), Law("gradient", by_lr=False)
SGD = {**LR, "momentum": 0.9}
LAWS = {
    **{name: (OPTIMIZERS[name], BEFORE) for name in OPTIMIZERS if name.startswith(("AdamW", "Muon", "Lion"))},
    "AdamW amsgrad": (lambda m: adamw(m, amsgrad=True), BEFORE),
    "AdamW tensor lr": (lambda m: adamw(m, lr=torch.tensor(1e-2)), BEFORE),
    "NAdam decoupled": (lambda m: torch.optim.NAdam(m.parameters(), **LR, decoupled_weight_decay=True), BEFORE),
    "Renormalized": (lambda m: RenormalizedAdamW(m.parameters(), **LR), BEFORE),
    "Adam for-loop": (lambda m: torch.optim.Adam(m.parameters(), **LR, foreach=False), GRADIENT),
    "Adam foreach": (lambda m: torch.optim.Adam(m.parameters(), **LR, foreach=True), GRADIENT),
    "Adam fused": (lambda m: torch.optim.Adam(m.parameters(), **LR, fused=True), GRADIENT),
    "SGD": (lambda m: torch.optim.SGD(m.parameters(), **SGD), GRADIENT),
    "SGD nesterov": (lambda m: torch.optim.SGD(m.parameters(), **SGD, nesterov=True), GRADIENT),
    "SGD fused": (lambda m: torch.optim.SGD(m.parameters(), **SGD, fused=True), GRADIENT),
    "SGD maximize": (lambda m: torch.optim.SGD(m.parameters(), **SGD, maximize=True), Law("gradient", -1.0, False)),
    "RMSprop": (lambda m: torch.optim.RMSprop(m.parameters(), **LR), GRADIENT),
    "Adagrad": (lambda m: torch.optim.Adagrad(m.parameters(), **LR), GRADIENT),
}
each_law = pytest.mark.parametrize(("make", "law"), LAWS.values(), ids=LAWS)


def ratio(parameter, _):
    """Another one for each size, 1 among them."""
    return {64: 0.5, 4096: 1.7, 8192: 1.0, 5120: 3.0}[parameter.numel()]


@each_law
def test_each_optimizer_says_its_law(make, law):
    optimizer = make(Decoder())
    answer = find_laws(optimizer)
    assert set(answer.laws.values()) == {law}
    assert set(answer.laws) == {p for group in optimizer.param_groups for p in group["params"]}
    assert is_separable(optimizer)


@each_law
def test_it_is_applied_as_the_optimizer_would_have_done_in_groups_of_its_own(make, law):
    """The measure is the optimizer itself, built over groups that have the decays."""
    runs = []
    for attached in (False, True):
        model = Decoder()
        optimizer = make(model)
        if attached:
            attach(optimizer, "ratio", "test", ratio)
        else:
            (group,) = optimizer.param_groups
            optimizer.param_groups = [
                group | {"params": [p], "weight_decay": 0.1 * ratio(p, group)} for p in group["params"]
            ]
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        train(model, optimizer, 10, scheduler)
        runs.append(weights(model))
    split, ours = runs
    assert difference(ours, split) <= 1e-7


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_state_for_a_whole_group_is_left_alone(make):
    """At a decay that does nothing, any ratio leaves the plain run; ratio 2 on one matrix changes that matrix."""

    def run(attached):
        model = Decoder()
        optimizer = make(model, 1e-12)
        if attached:
            attach(optimizer, "ratio", "test", ratio)
        train(model, optimizer, 12)
        return weights(model), optimizer.state_dict()

    (plain, plain_state), (ours, state) = run(False), run(True)
    assert difference(ours, plain) <= 1e-7
    assert state["param_groups"] == plain_state["param_groups"]
    assert {k: sorted(v) for k, v in state["state"].items()} == {k: sorted(v) for k, v in plain_state["state"].items()}
    plain, ours = one_step(make, 1.0), one_step(make, 2.0)
    wanted = "layers.1.mlp.up_proj.weight"
    assert difference({wanted: ours[wanted]}, plain) > 1e-4
    assert difference({n: ours[n] for n in ours if n != wanted}, plain) <= 1.2e-7


def difference(ours, expected):
    """The largest, over the largest weight of its tensor."""
    return max(float((ours[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in ours)


def one_step(make, factor):
    model = Decoder()
    optimizer = make(model, 0.1)
    wanted = model.layers[1].mlp.up_proj.weight
    if factor != 1:
        attach(optimizer, "ratio", "test", lambda p, _: factor if p is wanted else 1.0)
    train(model, optimizer, 1)
    return weights(model)


def test_the_answer_of_stacked_state():
    optimizer = FOREIGN["stacked Muon and AdamW"](Decoder(), 0.1)
    laws = {tuple(p.shape): law for p, law in find_laws(optimizer).laws.items() if p.ndim == 2}
    assert laws[64, 64] == laws[64, 128] == Law("cautious")
    assert laws[80, 64] == BEFORE
    assert laws[128, 64] == Law("cautious", pytest.approx(2**0.5, rel=1e-6))
    assert not is_separable(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.Adafactor(m.parameters(), **LR),
        lambda m: AWD(m.parameters(), lr=0.05, weight_decay=0.02),
        lambda m: AdaDecay(m.parameters(), lr=0.05, weight_decay=0.1),
        lambda m: optimizers("scionc", m, lr=2**-8)[0],
        lambda m: Lamb(m.parameters(), **LR),
    ],
    ids=["Adafactor", "AWD", "AdaDecay", "ScionC", "LAMB"],
)
def test_what_has_no_law_but_is_separable_is_divided(make):
    optimizer = make(Decoder())
    assert len(find_laws(optimizer).laws) < 18
    assert is_separable(optimizer)
    attach(optimizer, "ratio", "test", ratio)
    seen = []
    step = type(optimizer).step
    optimizer.register_step_pre_hook(lambda held, *_: seen.append(len(held.param_groups)))
    train_on(optimizer)
    assert seen[0] > len(optimizer.param_groups)
    assert step is type(optimizer).step


def train_on(optimizer):
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


def test_what_has_neither_is_refused_before_the_first_step():
    model = Decoder()
    with pytest.raises(UsageError, match=r"by no law .* keeps something for each as a whole.*param_groups\(model"):
        attach(GroupMomentum(model.parameters(), trust=True, **LR), "ratio", "test", ratio)
    assert not any(name.startswith("_specdiag") or name == "step" for name in vars(model))


def test_an_optimizer_that_decays_nothing_or_steps_nothing_is_refused():
    class Deaf(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                torch.optim.SGD([{**group, "weight_decay": 0.0}]).step()

    class Idle(torch.optim.SGD):
        def step(self, closure=None):
            return None

    with pytest.raises(UsageError, match="Deaf does not apply the weight_decay of its groups"):
        attach(Deaf(Decoder().parameters(), **LR), "ratio", "test", ratio)
    with pytest.raises(UsageError, match="Idle does not step the Parameters of its groups"):
        attach(Idle(Decoder().parameters(), **LR), "ratio", "test", ratio)


def test_an_optimizer_that_draws_random_numbers_is_asked_with_the_same_ones():
    class Noisy(torch.optim.AdamW):
        @torch.no_grad()
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(torch.randn_like(p), alpha=1e-3)

    assert set(find_laws(Noisy(Decoder().parameters(), **LR)).laws.values()) == {BEFORE}


def test_asking_changes_nothing_of_the_optimizer():
    model = Decoder()
    optimizer = FOREIGN["stacked Muon and AdamW"](model, 0.1)
    train(model, optimizer, 2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    gradients = [p.grad for p in model.parameters()]
    before, held = weights(model), copy.deepcopy(optimizer.state_dict())
    attributes, versions = dict(vars(optimizer)), [p._version for p in model.parameters()]
    random = torch.get_rng_state()
    find_laws(optimizer)
    is_separable(optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    assert vars(optimizer) == attributes
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert [p._version for p in model.parameters()] == versions
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert optimizer.state_dict()["param_groups"] == held["param_groups"]
    torch.testing.assert_close(optimizer.state_dict()["state"], held["state"], rtol=0, atol=0)


def test_combined_is_served_by_its_parts():
    def parts(model):
        matrices = [p for p in model.layers.parameters() if p.ndim == 2]
        taken = set(matrices)
        rest = [p for p in model.parameters() if p not in taken]
        return torch.optim.Muon(matrices, **LR), torch.optim.SGD(rest, **SGD)

    runs = []
    for combine in (False, True):
        model = Decoder()
        several = list(parts(model))
        one = [Combined(several)] if combine else several
        attach(one, "ratio", "test", ratio)
        train(model, one, 4)
        runs.append(weights(model))
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_divided_groups_come_back_with_what_was_written_into_them():
    model = Decoder()
    optimizer = adamw(model)
    whole = optimizer.param_groups
    (group,) = whole
    division = Division(optimizer, lambda g: [g | {"params": [p]} for p in g["params"]])
    for part in optimizer.param_groups:
        part["count"] = 3
    division.join(optimizer)
    assert optimizer.param_groups is whole
    assert group["count"] == 3
    division = Division(optimizer, lambda g: [g | {"params": [p]} for p in g["params"]])
    for number, part in enumerate(optimizer.param_groups):
        part["count"] = number
    with pytest.raises(UsageError, match="keeps 'count' for each group, which differs"):
        division.join(optimizer)
    assert optimizer.param_groups is whole


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "options", [{"capturable": True}, {"fused": True}, {"foreach": True}, {"fused": True, "capturable": True}]
)
def test_on_a_gpu_it_is_applied_as_in_groups_of_its_own(options):
    runs = []
    for attached in (False, True):
        model = Decoder().cuda()
        optimizer = adamw(model, **options)
        if attached:
            attach(optimizer, "ratio", "test", ratio)
        else:
            (group,) = optimizer.param_groups
            optimizer.param_groups = [
                group | {"params": [p], "weight_decay": 0.1 * ratio(p, group)} for p in group["params"]
            ]
        for step in range(5):
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn(p.shape).to(p)
            optimizer.step()
        runs.append(weights(model))
    assert difference(runs[1], runs[0]) <= 2e-7
