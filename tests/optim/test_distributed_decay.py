"""AlphaDecay on two ranks: the work is shared and every rank has the same bits."""

import json
from types import SimpleNamespace

import pytest
import torch
from several_ranks import run_ranks

from specdiag.optim.rules import replicas

WORKER = """
import json, sys
import torch, torch.distributed as dist
from live_models import Decoder, train
from specdiag import UsageError
from specdiag.optim import AlphaDecay
from specdiag.optim.rules import background
from specdiag.optim.rules import replicas

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
measured = []
exponents = replicas.exponents
replicas.exponents = lambda stacks, basis: measured.extend(stacks) or exponents(stacks, basis)
found = {}

model = torch.nn.parallel.DistributedDataParallel(Decoder())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
decay = AlphaDecay(model, optimizer, every=3, measure_first=True)
decay.step(0)
found["shared"] = len(measured)
found["first"] = decay.alphas
train(model, optimizer, 4, decay=decay)
with torch.no_grad():
    model.module.layers[0].self_attn.q_proj.weight[0, 0] = float("nan") if rank == 0 else 1.0
decay.step(10)
found["ddp"] = decay.ratios

from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
mesh = init_device_mesh("cpu", (2,))
model = Decoder()
for layer in model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
decay = AlphaDecay(model, optimizer, every=3, measure_first=True)
measured.clear()
decay.step(0)
found["sharded"] = decay.alphas
found["sharded_work"] = len(measured)
train(model, optimizer, 3, decay=decay)
found["fsdp"] = decay.ratios

def of_layers_sharded(model):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)

def stepped(mode, shard):
    # From the second step on decay.step finds begun what is due. State is asked of one rank alone, as by a Trainer.
    model = Decoder()
    if shard:
        of_layers_sharded(model)
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    decay = AlphaDecay(model, optimizer, every=2, mode=mode)
    late, start = [], background.Background.start
    background.Background.start = lambda own, rounds: late.append(len(rounds)) or start(own, rounds)
    for step in range(4):
        late.clear()
        train(model, optimizer, 1, decay=decay, start=step)
        if step and mode == "background":
            assert late == [0, 3], late
    background.Background.start = start
    if rank == 0:
        decay.state_dict()
    decay.detach()
    return decay.alphas, decay.ratios

for shard in (False, True):
    found[f"round-robin {shard}"] = stepped("round-robin", shard)
    found[f"background {shard}"] = stepped("background", shard)

from specdiag.live.attaching import attach

def ratio(p, _):
    return {64: 0.5, 4096: 1.7, 8192: 1.0, 5120: 3.0}[p.numel()]

def decayed(shard, kind, options):
    # The batches of the ranks are the same: shards must end where one process does that has a group for each decay.
    model = Decoder().eval()
    if shard:
        of_layers_sharded(model)
        optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
        attach(optimizer, "ratio", "test", ratio)
    else:
        groups = [{"params": [p], "weight_decay": 0.1 * ratio(p, None)} for p in model.parameters()]
        optimizer = kind(groups, lr=1e-2, **options)
    train(model, optimizer, 4)
    return [p.detach().full_tensor() if shard else p.detach() for p in model.parameters()]

kinds = {
    "foreach": (torch.optim.AdamW, {"foreach": True}), "for-loop": (torch.optim.AdamW, {"foreach": False}),
    "fused": (torch.optim.AdamW, {"fused": True}), "sgd": (torch.optim.SGD, {"momentum": 0.9}),
}
for name, (kind, options) in kinds.items():
    pairs = zip(decayed(True, kind, options), decayed(False, kind, options))
    found[name] = max(float((ours - whole).abs().max()) for ours, whole in pairs)

def failing(*_):
    raise RuntimeError("the device is gone")

for shard in (False, True):
    for mode in ("round-robin", "background"):
        model = Decoder()
        if shard:
            fully_shard(model, mesh=mesh)
        decay = AlphaDecay(
            model, torch.optim.AdamW(model.parameters(), weight_decay=0.1), mode=mode, measure_first=True
        )
        if rank == 1:
            held = background._measure_copy, replicas.exponents
            background._measure_copy = replicas.exponents = failing
        try:
            decay.step(0)
        except Exception as error:
            found[f"failed {mode} {shard}"] = [type(error).__name__, str(error)]
        if rank == 1:
            background._measure_copy, replicas.exponents = held
        decay.detach()

from specdiag.optim import AlphaLR

def at_own_rates(shard, kind, options):
    model = Decoder().eval()
    if shard:
        of_layers_sharded(model)
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
    rates = AlphaLR(model, optimizer, every=2, blend=2)
    train(model, optimizer, 2, decay=rates)
    saved = json.loads(json.dumps(rates.state_dict()))
    rates.detach()
    rates = AlphaLR(model, optimizer, every=2, blend=2)
    rates.load_state_dict(saved)
    train(model, optimizer, 2, decay=rates, start=2)
    found[f"rates {shard}"] = rates.ratios
    return [p.detach().full_tensor() if shard else p.detach() for p in model.parameters()]

for name, (kind, options) in kinds.items():
    pairs = zip(at_own_rates(True, kind, options), at_own_rates(False, kind, options))
    found[f"rates {name}"] = max(float((ours - whole).abs().max()) for ours, whole in pairs)

model = Decoder(layers=1 + rank)
try:
    AlphaDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
except UsageError as error:
    found["refused"] = str(error)
open(sys.argv[1] + f"/{rank}.json", "w").write(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(WORKER, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    from live_models import Decoder

    from specdiag.optim import AlphaDecay

    model = Decoder()
    decay = AlphaDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1), measure_first=True)
    decay.step(0)
    return decay.alphas


def test_ranks_share_the_work_and_have_the_same_bits(ranks, alone):
    assert [rank["shared"] for rank in ranks] == [6, 6]
    assert ranks[0]["first"] == ranks[1]["first"] == alone
    assert ranks[0]["ddp"] == ranks[1]["ddp"]
    assert max(ranks[0]["ddp"].values()) == 3.0


def test_sharded_parameters_have_the_exponents_of_whole_ones(ranks, alone):
    assert [rank["sharded_work"] for rank in ranks] == [6, 6]
    assert ranks[0]["sharded"] == ranks[1]["sharded"] == alone
    assert ranks[0]["fsdp"] == ranks[1]["fsdp"]


@pytest.mark.parametrize("shard", [False, True])
def test_in_the_background_ranks_have_the_bits_of_round_robin(ranks, shard):
    assert ranks[0][f"background {shard}"] == ranks[1][f"background {shard}"] == ranks[0][f"round-robin {shard}"]
    assert max(ranks[0][f"background {shard}"][1].values()) == 3.0


@pytest.mark.parametrize("name", ["foreach", "for-loop", "fused", "sgd"])
def test_shards_decay_as_whole_weights_do(ranks, name):
    """The law is applied to each rank's part; gradients are means over ranks of equal batches."""
    assert all(rank[name] <= 2e-7 for rank in ranks)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("mode", ["round-robin", "background"])
def test_what_one_rank_cannot_measure_ends_all(ranks, mode, shard):
    first, second = (rank[f"failed {mode} {shard}"] for rank in ranks)
    assert second == ["RuntimeError", "the device is gone"]
    assert first[0] == "ComputationError"
    assert "rank 1 could not measure its matrices" in first[1]


@pytest.mark.parametrize("name", ["foreach", "for-loop", "fused", "sgd"])
def test_shards_step_at_the_rates_of_whole_weights(ranks, name):
    """AlphaLR scales the update of each rank's part; it is saved and loaded half way."""
    assert all(rank[f"rates {name}"] <= 2e-7 for rank in ranks)
    assert ranks[0]["rates True"] == ranks[1]["rates True"] == pytest.approx(ranks[0]["rates False"], abs=1e-4)
    assert max(ranks[0]["rates True"].values()) == 5.0


def test_ranks_of_different_modules_are_refused(ranks):
    assert all("different modules (pipeline or expert parallelism)" in rank["refused"] for rank in ranks)


def test_a_parameter_of_several_matrices_is_gathered_once(monkeypatch):
    """Stacked experts are measured over many rounds."""
    gathered = []
    monkeypatch.setattr(replicas, "gather", lambda parameter, ranks: gathered.append(parameter) or parameter)
    experts, other = torch.nn.Parameter(torch.randn(3, 4, 4)), torch.nn.Parameter(torch.randn(4, 4))
    matrices = [SimpleNamespace(parameter=experts, cut=lambda whole, i=i: whole[i]) for i in range(3)]
    matrices.append(SimpleNamespace(parameter=other, cut=lambda whole: whole))
    cuts = list(replicas.Replicas(matrices).cuts([[0], [1], [2], [3]]))
    assert [id(parameter) for parameter in gathered] == [id(experts), id(other)]
    assert all(cuts[i][i].equal(experts[i]) for i in range(3))
