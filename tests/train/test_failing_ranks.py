"""A failure of one process ends all of them with its number; none waits for it."""

import json
import re

import pytest
from plain_run import library_text
from several_ranks import run_ranks

WORKER = """
import errno, json, os, sys
from pathlib import Path
os.environ |= {"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "LOCAL_RANK": os.environ["RANK"]}
import torch
torch.set_num_threads(1)
from recipes import tiny_recipe
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import specdiag
from live_models import Decoder
from specdiag.checkpoint import divided
from specdiag.system import gathering
from specdiag.train.callbacks import run_log
from specdiag.train.checkpoints import trainer
from specdiag.train.ranks import count_ranks
from specdiag.train.runs.begin import begin
from specdiag.train.runs import run as runs

count_ranks()
folder, rank, said = Path(sys.argv[1]), int(os.environ["RANK"]), {}

def out_of_memory(*_, **__):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

def log_full(*_, **__):
    raise specdiag.ComputationError("cannot write the log: No space left on device")

def told(name, call, plant=None):
    # `plant` is (rank, module, attribute, replacement)
    if plant is not None and plant[0] == rank:
        _, module, attribute, replacement = plant
        held = getattr(module, attribute)
        setattr(module, attribute, replacement)
    try:
        call()
        said[name] = None
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
    if plant is not None and plant[0] == rank:
        setattr(module, attribute, held)

model = fully_shard(Decoder(), mesh=init_device_mesh("cpu", (2,)))
told("gather", lambda: specdiag.analyze(model, device="cpu"), (1, gathering, "_empty", out_of_memory))
told("copy", lambda: specdiag.analyze(model, device="cpu"), (1, divided.Owned, "of", out_of_memory))
roles = folder / ("roles.toml" if rank else "none.toml")
(folder / "roles.toml").write_text("[[rule]]\\npattern = 'embed_tokens.weight'\\nrole = 'embed'\\n")
told("open", lambda: specdiag.analyze(model, device="cpu", role_map=roles))
told("well", lambda: specdiag.analyze(model, device="cpu"))

def trained(name, **changes):
    settings = {"per_device_train_batch_size": 2, "save_steps": 1} | changes
    begin(tiny_recipe(folder / "library.txt", settings, steps_total=2), folder / name).train()

for kind in ("replicas", "shards"):
    os.environ["ACCELERATE_USE_FSDP"] = str(kind == "shards").lower()
    told(f"log {kind}", lambda: trained(f"log-{kind}"), (0, run_log, "append_log", log_full))
    told(f"first {kind}", lambda: trained(f"first-{kind}"), (0, trainer.CrashSafeTrainer, "_save", disk_full))
    told(f"random {kind}", lambda: trained(f"random-{kind}"), (1, trainer.CrashSafeTrainer, "_save_rng_state", disk_full))
    told(f"space {kind}", lambda: trained(f"space-{kind}"), (1, trainer.CrashSafeTrainer, "check_space", log_full))
told("figures", lambda: trained("figures"), (0, runs, "append_log", log_full))
(folder / f"{rank}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Sentences of each process, by the planted failure."""
    folder = tmp_path_factory.mktemp("failing")
    library_text(folder, 4000)
    run_ranks(WORKER, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize(
    ("name", "rank", "own", "other"),
    [
        ("gather", 1, "can't allocate memory", "process 1 could not put tensors together"),
        (
            "copy",
            1,
            "can't allocate memory",
            "process 1 failed: .*can't allocate memory|process 1 could not put tensors",
        ),
        ("open", 0, "none.toml", "process 0 failed: .*none.toml"),
        ("log replicas", 0, "cannot write the log", "process 0 failed"),
        ("log shards", 0, "cannot write the log", "process 0 failed"),
        (
            "first replicas",
            0,
            r"checkpoint-1 could not be saved \(.*No space",
            r"could not be saved \(process 0 failed",
        ),
        ("first shards", 0, r"checkpoint-1 could not be saved \(.*No space", r"could not be saved \(process 0 failed"),
        ("random replicas", 1, r"could not be saved \(.*No space", r"could not be saved \(process 1 failed"),
        ("random shards", 1, r"could not be saved \(.*No space", r"could not be saved \(process 1 failed"),
        ("space replicas", 1, "No space left", "process 1 failed"),
        ("space shards", 1, "No space left", "process 1 failed"),
        ("figures", 0, "cannot write the log", "process 0 failed"),
    ],
)
def test_all_raise(said, name, rank, own, other):
    assert re.search(own, said[rank][name][1])
    assert re.search(other, said[1 - rank][name][1])


def test_they_work_together_again(said):
    assert said[0]["well"] is said[1]["well"] is None
