"""NormWatch on models that are divided among processes: every rank gets the entries of the whole model."""

import json

import pytest
import torch
from several_ranks import run_ranks
from sharded_steps import steps, whole_model

from specdiag.dynamics.norm_log import load_norm_log

WORKER = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from several_ranks import gathered_bytes
from sharded_steps import steps, whole_model
import specdiag
from specdiag.optim import NormWatch
from specdiag.optim.norms import norm_watch

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world,))
found, out = {}, Path(sys.argv[1])


def sharded(model, mesh):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def parallel(model, mesh):
    split = {f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"} | {"self_attn.o_proj": RowwiseParallel()}
    split |= {f"mlp.{n}_proj": ColwiseParallel() for n in ("gate", "up")} | {"mlp.down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer, mesh, split)
    return model


found["fsdp"] = steps(sharded(whole_model(), mesh), out / f"log{rank}")
found["half"] = steps(sharded(whole_model(torch.bfloat16), mesh))
found["parallel"] = steps(parallel(whole_model(), mesh))
if world == 4:
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    found["both"] = steps(sharded(parallel(whole_model(), both["tensor"]), both["data"]))

model = sharded(whole_model(), mesh)
with gathered_bytes() as sizes:
    watch = steps(model, n=1, finish=False)
found["sent"] = sum(sizes)
found["size"] = sum(p.numel() * 4 for p in model.parameters() if p.ndim == 2)


def said(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]


optimizer = torch.optim.AdamW(model.parameters())
(out / "file").touch()
found["no folder"] = said(lambda: NormWatch(model, optimizer, out=out / "file"))
if rank == 1:
    norm_watch.inner_products = lambda *_: torch.zeros(0).item()
found["fails"] = said(lambda: steps(sharded(whole_model(), mesh)))
found["differ"] = said(lambda: NormWatch(model, optimizer, exclude="*.layers.1.*" if rank else ()))
flat = FullyShardedDataParallel(whole_model(), device_id=torch.device("cpu"))
found["flat"] = said(lambda: NormWatch(flat, torch.optim.AdamW(flat.parameters())))
(out / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(WORKER, folder, request.param)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("kind", ["fsdp", "half", "parallel", "both"])
def test_every_rank_gets_the_entries_of_the_whole_model(ranks, kind):
    told = [rank[kind] for rank in ranks[1] if kind in rank]
    whole = json.loads(json.dumps(steps(whole_model(torch.bfloat16 if kind == "half" else torch.float32))))
    assert all(each == told[0] for each in told)
    for own in told[:1]:
        assert [row[:3] for row in own["rows"]] == [row[:3] for row in whole["rows"]]
        for (*name, value), (*_, expected) in zip(own["rows"], whole["rows"], strict=True):
            assert value == pytest.approx(expected, rel=1e-6, abs=1e-12), name
        first = [[row for row in each["rows"] if row[0] == 0 and row[2] in EXACT] for each in (own, whole)]
        assert first[0] == first[1]
        assert {row[2] for row in first[0]} == set(EXACT)
        assert own["alerts"] == whole["alerts"]
        assert own["state"].keys() == whole["state"].keys()
        assert own["state"]["vectors"].keys() == whole["state"]["vectors"].keys()


EXACT = (
    "frobenius_norm", "weight_rms", "spectral_norm", "stable_rank", "sign_norm", "score_bound", "qk_stable_rank",
    "channel_size", "channel_index", "gradient_norm",
)  # fmt: skip


def test_only_the_first_rank_writes(ranks):
    folder, found = ranks
    log = load_norm_log(folder / "log0")
    assert len(next(iter(log.series("frobenius_norm").values()))) == 4
    assert not any((folder / f"log{rank}").exists() for rank in range(1, len(found)))


def test_weights_travel_twice_and_gradients_once(ranks):
    """Shards of odd length are padded to the longest one; nothing else is added."""
    _, found = ranks
    assert 3 * found[0]["size"] <= sum(rank["sent"] for rank in found) <= 3.1 * found[0]["size"]


def test_what_one_rank_cannot_do_ends_all(ranks):
    _, found = ranks
    assert found[0]["no folder"][0] == "UsageError"
    assert found[1]["fails"][0] == "RuntimeError"
    for rank, own in enumerate(found):
        if rank != 0:
            assert own["no folder"] == ["RankFailed", f"process 0 failed: {found[0]['no folder'][1]}"]
        if rank != 1:
            assert own["fails"] == ["RankFailed", f"process 1 failed: {found[1]['fails'][1]}"]
        assert "different matrices" in own["differ"][1]
        assert "fully_shard" in own["flat"][1]
