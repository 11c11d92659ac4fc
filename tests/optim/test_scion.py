"""Scion and ScionC: exact steps, what a torch optimizer must do, and the norm that ScionC keeps."""

import copy
import io
import math

import pytest
import torch
from live_models import Decoder, Q, train, weights
from several_ranks import run_ranks

from specdiag import UsageError
from specdiag.decay import schedules
from specdiag.live.attaching import attach
from specdiag.optim import AlphaDecay, CorrectedDecay, GroupSchedule, Scion
from specdiag.optim.optimizers.lmo import direction

pytestmark = pytest.mark.usefixtures("one_thread")


def scion(model, **options):
    return Scion(model.parameters(), **{"lr": 1e-2, "radius": 5.0} | options)


def parameter(*shape, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    made = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    made.grad = torch.randn(shape, dtype=dtype)
    return made


def assert_same_state(found, expected):
    assert found["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(found["state"], expected["state"], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (6, 4, 3), (6, 4, 3, 3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_two_steps_by_hand(shape, momentum):
    p = parameter(*shape)
    optimizer = Scion([p], lr=0.1, momentum=momentum, weight_decay=0.5, radius=3.0)
    expected, average = p.detach().clone(), torch.zeros_like(p)
    for seed in (1, 2):
        p.grad = parameter(*shape, seed=seed).grad
        average = momentum * average + (1 - momentum) * p.grad
        kind = "bias-rms" if len(shape) < 2 else "spectral" if len(shape) == 2 else "spectral-conv"
        expected = (1 - 0.1 * 0.5) * expected - 0.1 * 3.0 * direction(kind, average)
        optimizer.step()
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-9)
    assert len(optimizer.state) == (1 if momentum else 0)


def test_the_reparameterised_form_is_the_same_step():
    constrained, reparameterised = parameter(6, 4), parameter(6, 4)
    Scion([constrained], lr=0.01, radius=50.0).step()
    Scion([reparameterised], lr=0.5, weight_decay=0.02).step()
    torch.testing.assert_close(constrained, reparameterised, rtol=0, atol=1e-14)


def test_weights_in_the_ball_stay_there():
    p = torch.nn.Parameter(torch.zeros(6, 4))
    optimizer = Scion([p], lr=0.3, radius=2.0, lmo="sign")
    for seed in range(30):
        p.grad = parameter(6, 4, dtype=torch.float32, seed=seed).grad
        optimizer.step()
        assert p.abs().max() <= 2.0 / 4 + 1e-6
    assert p.abs().max() > 0.1


def test_embeddings_are_transposed():
    table, stored = parameter(7, 3), parameter(7, 3)
    Scion([table], lr=1.0, momentum=0.0, weight_decay=0.0, lmo="col-norm-plain", transpose=True).step()
    rows = stored.grad / stored.grad.norm(dim=1, keepdim=True) * math.sqrt(3)
    torch.testing.assert_close(table.detach(), stored.detach() - rows, rtol=0, atol=1e-6)


def test_without_gradient_nothing_moves_and_a_zero_gradient_decays():
    absent, zero = parameter(4, 4), parameter(4, 4)
    before = absent.detach().clone()
    absent.grad, zero.grad = None, torch.zeros_like(zero)
    optimizer = Scion([absent, zero], lr=0.1)
    optimizer.step()
    assert torch.equal(absent, before)
    torch.testing.assert_close(zero.detach(), 0.9 * before)
    assert absent not in optimizer.state


def test_bfloat16_weights_and_gradients():
    model = Decoder().bfloat16()
    before = weights(model)
    optimizer = scion(model, lr=0.1)
    train(model, optimizer, 3)
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert {state["momentum_buffer"].dtype for state in optimizer.state.values()} == {torch.bfloat16}


def test_a_closure_is_run_with_gradients():
    p = parameter(4, 4)
    optimizer = Scion([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_it_learns_under_a_scheduler_that_changes_the_lr_alone():
    model = Decoder(layers=1)
    optimizer = scion(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    torch.manual_seed(0)
    batch = torch.randint(80, (4, 8))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert optimizer.param_groups[0]["weight_decay"] == 1.0


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"target_norm": 2.0}])
def test_interrupted_equals_uninterrupted_to_the_bit(options):
    model = Decoder()
    optimizer = scion(model, **options)
    train(model, optimizer, 5)
    first = Decoder()
    first_optimizer = scion(first, **options)
    train(first, first_optimizer, 2)
    saved = io.BytesIO()
    torch.save([first.state_dict(), first_optimizer.state_dict()], saved)
    saved.seek(0)
    weights_then, state = torch.load(saved)
    second = Decoder(seed=1)
    second_optimizer = scion(second, lr=1.0)
    second.load_state_dict(weights_then)
    second_optimizer.load_state_dict(state)
    assert_same_state(second_optimizer.state_dict(), first_optimizer.state_dict())
    train(second, second_optimizer, 3, start=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), second.parameters(), strict=True))


def test_a_copy_of_the_optimizer_works():
    model = Decoder(layers=1)
    optimizer = scion(model)
    train(model, optimizer, 1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    for each in ((model, optimizer), (twin, twin_optimizer)):
        train(*each, 1, start=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("options", [{}, {"target_norm": 2.0}])
def test_ratio_2_changes_that_parameter_by_the_predicted_decay_and_no_other(options):
    runs = []
    for attached in (False, True):
        model = Decoder(layers=1).double()
        optimizer = scion(model, **options)
        train(model, optimizer, 2)
        before = weights(model)
        if attached:
            wanted = dict(model.named_parameters())[Q]
            attach(optimizer, "ratio", "test", lambda p, _, wanted=wanted: 2.0 if p is wanted else 1.0)
        train(model, optimizer, 1, start=2)
        runs.append(weights(model))
    plain, ours = runs
    removed = 1e-2 if not options else (1e-2 * 5.0) ** 2 * 19 / (2 * 2.0)
    assert all(torch.equal(plain[name], ours[name]) for name in plain if name != Q)
    torch.testing.assert_close(ours[Q], plain[Q] - removed * before[Q], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("target", "decay"), [(1.1875, 0.08), (0.59375, 0.16), (0.475, 0.20), (0.296875, 0.32), (0.1484375, 0.64)]
)
def test_the_published_decays_of_scionc(target, decay):
    """decay-methods C1 and C2: the argument in the reparameterised form, lr 0.01 and 0.005, alpha 0.1."""
    for lr, expected in ((0.01, decay), (0.005, decay / 2)):
        p = parameter(3, 3)
        before = p.detach().clone()
        p.grad = torch.zeros_like(p)
        Scion([p], lr=lr, target_norm=target).step()
        torch.testing.assert_close(p.detach(), (1 - lr * expected) * before, rtol=0, atol=1e-12)


def test_at_constant_target_it_is_corrected_decay():
    runs = []
    for by_target in (False, True):
        model = Decoder(layers=1).double()
        groups = [{"params": [p for p in model.layers.parameters() if p.ndim == 2]}]
        target = schedules.target_norm(0.1 * 2, 1 / 2, 0.1)
        optimizer = Scion(groups, lr=0.1, radius=2.0, target_norm=target if by_target else None)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        if not by_target:
            CorrectedDecay(optimizer, model, rule="scionc")
        train(model, optimizer, 5, scheduler)
        runs.append(weights(model))
    torch.testing.assert_close(*runs, rtol=0, atol=1e-10)


def test_scionc_keeps_the_norm_that_it_was_told_while_lr_and_momentum_change():
    """Updates at right angles to the weights: random gradients, l2-normalised steps."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(2048, dtype=torch.float64))
    optimizer = Scion([p], lr=0.05, target_norm=4.0, momentum=0.5)
    with torch.no_grad():
        p *= math.sqrt(4.0 * 2048) / p.norm()
    lr = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules.cosine(1.0, 600, final=0.2))
    momentum = GroupSchedule(optimizer, "momentum", lambda step: 0.5 + 0.3 * step / 600)
    for _ in range(600):
        p.grad = torch.randn_like(p)
        optimizer.step()
        lr.step()
        momentum.step()
    assert float(p.detach().square().sum()) / 2048 == pytest.approx(4.0, rel=0.05)


def test_a_cosine_target_as_published():
    """decay-methods C4 and C5."""
    p = parameter(3, 3)
    p.grad = torch.zeros_like(p)
    fixed = parameter(3, 3)
    fixed.grad = torch.zeros_like(fixed)
    optimizer = Scion([{"params": [p], "target_norm": 1.1875}, {"params": [fixed]}], lr=0.01)
    target = GroupSchedule(optimizer, "target_norm", schedules.cosine(1.1875, 4, final=0.296875))
    lr = torch.optim.lr_scheduler.LambdaLR(optimizer, schedules.cosine(1.0, 4))
    for c2, decay in ((1.1875, 0.08), (1.0570709885, 0.0767096751), (0.7421875, 0.064), (0.4273040115, 0.0325586176)):
        assert optimizer.param_groups[0]["target_norm"] == pytest.approx(c2, abs=1e-9)
        assert optimizer.param_groups[1]["target_norm"] is None
        before = p.detach().clone()
        optimizer.step()
        now = optimizer.param_groups[0]["lr"]
        torch.testing.assert_close(p.detach(), (1 - now * decay) * before, rtol=0, atol=1e-11)
        lr.step()
        target.step()
    resumed = GroupSchedule(optimizer, "target_norm", schedules.cosine(1.1875, 4, final=0.296875))
    assert optimizer.param_groups[0]["target_norm"] == 1.1875
    resumed.load_state_dict(target.state_dict())
    assert optimizer.param_groups[0]["target_norm"] == pytest.approx(0.296875)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr=-1\.0 must be at least 0"),
        ({"momentum": 1.0}, r"momentum=1\.0 must be in \[0, 1\); Scion's alpha is 1 - momentum"),
        ({"weight_decay": -0.1}, r"weight_decay=-0\.1 must be at least 0"),
        ({"radius": 0.0}, r"radius=0\.0 must be above 0"),
        ({"target_norm": 0.0}, r"target_norm=0\.0 must be above 0, or None"),
        ({"lmo": "euclid"}, "lmo=euclid must be auto or one of sign"),
        ({"orthogonalization": "qr"}, "orthogonalization=qr must be one of polar-express"),
        ({"lmo": "spectral"}, r"spectral LMO needs at least 2 axes and a parameter has shape \(64,\)"),
        ({"transpose": True}, r"transpose=True needs matrices and a parameter has shape \(64,\)"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        scion(Decoder(layers=1), **options)


def test_what_only_a_step_can_tell_is_refused():
    p = parameter(4, 4)
    with pytest.raises(UsageError, match=r"would remove 1900 % of the weights in one step"):
        Scion([p], lr=1.0, target_norm=0.5).step()
    with pytest.raises(UsageError, match="has a number 'betas'"):
        GroupSchedule(Scion([p]), "betas", schedules.constant(0.1))
    table = torch.nn.Embedding(9, 4, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UsageError, match="no sparse gradients"):
        Scion(table.parameters()).step()


WORKER = """
import copy, sys
import torch, torch.distributed as dist
from live_models import Decoder, train
from specdiag import UsageError
from specdiag.optim import AlphaDecay, Scion
from specdiag.optim.optimizers import lmo
from specdiag.optim.optimizers import scion

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, folder = dist.get_rank(), sys.argv[1]
worked = []
original = scion.direction
scion.direction = lambda kind, tensor, method: worked.append(kind) or original(kind, tensor, method)

def build(options):
    model = torch.nn.parallel.DistributedDataParallel(Decoder(layers=1))
    return model, Scion(model.parameters(), lr=1e-2, radius=5.0, process_group=dist.group.WORLD, **options)

for name, options in (("scion", {}), ("scionc", {"target_norm": 2.0})):
    model, optimizer = build(options)
    decay = AlphaDecay(model, optimizer, every=2, mode="sweep")
    worked.clear()  # of the steps that found the law of decay
    train(model, optimizer, 3, decay=decay)
    try:
        optimizer.state_dict()
    except UsageError as error:
        refused = str(error)
    held = len(optimizer.state)
    optimizer.consolidate_state_dict()
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), decay.state_dict()])
    train(model, optimizer, 2, decay=decay, start=3)

    resumed, second = build(options)
    resumed.load_state_dict(saved[0])
    second.load_state_dict(copy.deepcopy(saved[1]))
    counted = list(worked)
    resumed_decay = AlphaDecay(resumed, second, every=2, mode="sweep")
    worked[:] = counted
    resumed_decay.load_state_dict(saved[2])
    train(resumed, second, 2, decay=resumed_decay, start=3)
    torch.save({
        "weights": [p.detach() for p in model.parameters()], "resumed": [p.detach() for p in resumed.parameters()],
        "held": held, "later": len(second.state), "refused": refused, "state": saved[1],
        "spectral": worked.count("spectral"),
    }, f"{folder}/{name}{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(WORKER, folder)
    return lambda name: [torch.load(folder / f"{name}{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("name", "options"), [("scion", {}), ("scionc", {"target_norm": 2.0})])
def test_two_ranks_share_the_work_and_have_the_bits_of_one(ranks, name, options):
    model = Decoder(layers=1)
    optimizer = scion(model, **options)
    decay = AlphaDecay(model, optimizer, every=2, mode="sweep")
    train(model, optimizer, 3, decay=decay)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    alone = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 2, decay=decay, start=3)
    found = ranks(name)
    for rank in found:
        assert_same_state(rank["state"], alone)
        for ours in (rank["weights"], rank["resumed"]):
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), ours, strict=True))
        assert rank["later"] == rank["held"]
        assert "call consolidate_state_dict() on every rank first" in rank["refused"]
    vectors = len(list(model.parameters())) - len(matrices)
    assert sum(rank["held"] - vectors for rank in found) == len(matrices)
    assert sum(rank["spectral"] for rank in found) == len(matrices) * 7
    assert abs(found[0]["spectral"] - found[1]["spectral"]) <= 2 * 7
