"""Models that are divided among processes: each tensor is measured at one of them, and all get the report of the whole."""

import json

import pytest
import torch
from live_models import Decoder
from several_ranks import run_ranks

import specdiag

WORKER = """
import json, sys
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import specdiag
from specdiag.checkpoint import torch_tensors
from several_ranks import gathered_bytes
from live_models import Decoder

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("all",))
found = {}


def sharded(model, mesh):
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallel(model, mesh):
    attention = {f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"} | {"self_attn.o_proj": RowwiseParallel()}
    plan = attention | {"mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for layer in model.layers:
        parallelize_module(layer, mesh, plan)
    return model


read, fails, read_owned = set(), False, torch_tensors._read_owned


def reading(name, tensor, *rest):
    if not tensor.division.together:
        read.add(name)
        if fails:
            raise RuntimeError("the device is gone")
    return read_owned(name, tensor, *rest)


torch_tensors._read_owned = reading


def told(source):
    read.clear()
    report = specdiag.analyze(source, device="cpu")
    rows = [[r.key, r.role, r.alpha, r.square_alpha, r.frobenius_norm, r.status] for r in report]
    return {"rows": rows, "skipped": [s.name for s in report.skipped], "here": sorted(read),
            "processes": report.provenance.processes}


for dtype in (torch.float32, torch.bfloat16):
    for tied in (False, True):
        model = sharded(Decoder(width=66, mlp=130, tied=tied).to(dtype), mesh)
        found[f"fsdp {dtype} {tied}"] = told(model)
found["state dict"] = told(model.state_dict())
model = parallel(Decoder(width=66, mlp=132), mesh)
found["tensor parallel"] = told(model)
plan = specdiag.recommend(model, weight_decay=0.1)
found["plan"] = [[e.name, e.ratio] for e in plan.entries]
found["groups"] = [g["weight_decay"] for g in plan.param_groups(model, lr=1e-3)]
if world == 4:
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found["both"] = told(sharded(parallel(Decoder(width=66, mlp=132), both["tensor"]), both["data"]))

model = sharded(Decoder(width=64, mlp=128), mesh)
with gathered_bytes() as sizes:
    specdiag.analyze(model, device="cpu")
found["sent"], found["size"] = sum(sizes), sum(p.numel() * 4 for p in model.parameters())

for source, options in ((model, {"function": True}), (model, {"exclude": "nothing"})):
    try:
        specdiag.analyze(source, device="cpu", **options)
    except specdiag.UsageError as error:
        found[f"refused {list(options)[0]}"] = str(error)

for name, value in (("too little", 1000), ("no number", 0)):
    try:
        specdiag.analyze(model, device="cpu", memory=value if rank == 1 else None)
    except (specdiag.UsageError, specdiag.ComputationError) as error:
        found[name] = [type(error).__name__, str(error)]

state = model.state_dict()
try:
    specdiag.analyze({name: t for name, t in state.items() if rank or "layers.1" not in name}, device="cpu")
except specdiag.UsageError as error:
    found["pipeline"] = str(error)
fails = rank == 1
try:
    specdiag.analyze(model, device="cpu")
except Exception as error:
    found["failed"] = [type(error).__name__, str(error)]
open(sys.argv[1] + f"/{rank}.json", "w").write(json.dumps(found))
dist.destroy_process_group()
"""


def rows(model):
    return [
        [r.key, r.role, r.alpha, r.square_alpha, r.frobenius_norm, r.status]
        for r in specdiag.analyze(model, device="cpu")
    ]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(WORKER, folder, request.param)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_fsdp_has_the_report_of_the_whole_model_to_the_bit(ranks, dtype, tied):
    whole = rows(Decoder(width=66, mlp=130, tied=tied).to(dtype))
    told = [rank[f"fsdp {dtype} {tied}"] for rank in ranks]
    assert all(each["rows"] == whole for each in told)
    assert all(each["processes"] == len(ranks) for each in told)
    assert all(each["skipped"] == told[0]["skipped"] for each in told)


def test_each_matrix_is_read_by_one_process_alone(ranks):
    """Embedding and head are on all ranks under tensor parallelism here."""
    for name, divided in (("fsdp torch.float32 False", 14), ("tensor parallel", 12)):
        here = [set(rank[name]["here"]) for rank in ranks]
        assert sum(map(len, here)) == len(set().union(*here)) == divided
        assert all(here)


def test_a_state_dict_of_shards_is_the_same(ranks):
    assert all(r["state dict"]["rows"] == r["fsdp torch.bfloat16 True"]["rows"] for r in ranks)


def test_tensor_parallel_models_have_it_too_and_plans(ranks):
    model = Decoder(width=66, mlp=132)
    plan = specdiag.recommend(model, weight_decay=0.1)
    for rank in ranks:
        assert rank["tensor parallel"]["rows"] == rows(model)
        assert rank["plan"] == [[e.name, e.ratio] for e in plan.entries]
        assert rank["groups"] == [g["weight_decay"] for g in plan.param_groups(model, lr=1e-3)]
        if "both" in rank:
            assert rank["both"]["rows"] == rows(model)


def test_a_shard_travels_once(ranks):
    """Shards of odd length are padded to the longest one; nothing else is added."""
    total = sum(rank["sent"] for rank in ranks)
    assert ranks[0]["size"] <= total <= 1.02 * ranks[0]["size"]


def test_what_needs_several_matrices_or_globs_is_refused_on_all(ranks):
    assert len({rank["refused function"] for rank in ranks}) == 1
    assert "full state dict" in ranks[0]["refused function"]
    assert len({rank["refused exclude"] for rank in ranks}) == 1


def test_processes_of_different_layers_are_refused(ranks):
    assert all("pipeline or expert parallelism" in rank["pipeline"] for rank in ranks)


@pytest.mark.parametrize("name", ["too little", "no number"])
def test_memory_that_is_refused_at_one_process_alone_ends_all(ranks, name):
    kind, reason = ranks[1][name]
    assert kind == "UsageError"
    assert "memory=" in reason
    assert all(rank[name] == ["RankFailed", f"process 1 failed: {reason}"] for i, rank in enumerate(ranks) if i != 1)


def test_the_failure_of_one_process_ends_all(ranks):
    assert "the device is gone" in ranks[1]["failed"][1]
    assert all("process 1 failed: the device is gone" in rank["failed"][1] for i, rank in enumerate(ranks) if i != 1)
