"""Runs under `accelerate launch --use_fsdp --fsdp_version 2`: the run of one process, whose checkpoints are its own."""

import dataclasses
import shutil
import signal

import pytest
import torch
from plain_run import library_text, llama
from recipes import tiny_recipe
from safetensors.torch import load_file
from several_ranks import run_ranks

from specdiag import UsageError
from specdiag.dynamics.norm_log import load_norm_log
from specdiag.train.checkpoints.inspect import defect
from specdiag.train.runs.begin import begin
from specdiag.train.runs.outcome import load_outcome
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

SMOOTH = {"adam_epsilon": 1e-4}
"""Else Adam makes whole steps of rounding, where gradients are near zero."""
EVERY_2 = {"every": 2, "mode": "sweep"}
"""All modules at once: round-robin measures as many at a step as there are processes."""
WORKER = """
import os, signal, sys, shutil
from pathlib import Path
os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
               "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "LOCAL_RANK": os.environ["RANK"]}
import torch
torch.set_num_threads(1)
from recipes import tiny_recipe
from torch.distributed.tensor import DTensor
from specdiag.train.checkpoints import publish
from specdiag.train.ranks import wait_for_all
from specdiag.train.runs.begin import begin
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

folder = Path(sys.argv[1])
recipe = tiny_recipe(folder / "library.txt", {"per_device_train_batch_size": 4 // int(os.environ["WORLD_SIZE"]),
                     "adam_epsilon": 1e-4}, decay="alphadecay", alphadecay={"every": 2, "mode": "sweep"},
                     eval_every=2, norms_every=2)
run = begin(recipe, folder / "sharded")
result = run.train()
assert all(isinstance(p, DTensor) for p in run.trainer.model.parameters())
assert result.step == 4
assert result.held_out_after["loss"] < result.held_out_before["loss"]
import msgspec, time
from specdiag.train.runs import rival
first = begin(recipe, folder / "first")
if os.environ["RANK"] == "1":  # it looks when the other one has written
    look = rival.existing_rival
    rival.existing_rival = lambda *arguments: time.sleep(1) or look(*arguments)
rival.reserve_rival(first, "uniform", folder / "rival")
assert (folder / "rival" / "specdiag_train.toml").exists()
if first.lock is not None:
    first.lock.release()
half = msgspec.structs.replace(recipe, settings=recipe.settings | {"bf16": True})
begin(half, folder / "half").train()
wait_for_all()
if os.environ["RANK"] == "0":
    for source, copy in (("sharded", "again"), ("sharded", "killed"), ("one", "wider")):
        shutil.copytree(folder / source, folder / copy)
        shutil.rmtree(folder / copy / "checkpoint-4")
wait_for_all()
prepare(Request(source=folder / "again")).train()
prepare(Request(source=folder / "wider", settings={"per_device_train_batch_size": 4 // int(os.environ["WORLD_SIZE"])},
                allow_data_shift=True)).train()

import plain_run, transformers
from safetensors.torch import save_file
from specdiag.train.sharding import shard, whole_weights

class Sharded(transformers.Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = shard(self.accelerator)

transformers.Trainer, plain_run.BATCH = Sharded, 2
os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
for name, dropout in (("plain", 0.0), ("random", 0.1)):
    model = plain_run.llama()
    model.model.layers[0].self_attn.attention_dropout = dropout
    trainer = plain_run.plain_trainer(folder / name, folder / "library.txt", folder, model=model, adam_epsilon=1e-4)
    trainer.train()
    weights = whole_weights(trainer.model)
    if os.environ["RANK"] == "0":
        save_file(weights, folder / f"{name}.safetensors")
wait_for_all()
script = {"lr_scheduler_type": "cosine", "warmup_steps": 1, "seed": 7}
foreign = prepare(Request(source=folder / "random" / "checkpoint-2", data=[folder / "library.txt"], out=folder / "theirs",
                          config=str(folder / "random.config"), decay="uniform", settings=script, block_size=32,
                          tokenizer="bytes"))
assert foreign.step == 2
foreign.train()
killed = prepare(Request(source=folder / "killed"))
publish.write_manifest = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # called by the first rank
killed.train()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of one process, one of two with sharded weights, and what each goes on to from the other's middle."""
    folder = tmp_path_factory.mktemp("sharded")
    text = library_text(folder)
    config = llama().config
    config.save_pretrained(folder / "random.config")
    config.attention_dropout = 0.0
    config.save_pretrained(folder / "plain.config")
    begin(tiny_recipe(text, SMOOTH, decay="alphadecay", alphadecay=EVERY_2), folder / "one").train()
    run_ranks(WORKER, folder, ends=[-signal.SIGKILL, 1])
    shutil.copytree(folder / "sharded", folder / "narrower")
    shutil.rmtree(folder / "narrower" / "checkpoint-4")
    batch = {"per_device_train_batch_size": 4}
    prepare(Request(source=folder / "narrower", settings=batch, allow_data_shift=True)).train()
    return folder


def weights(folder, run):
    return load_file(folder / run / "checkpoint-4" / "model.safetensors")


def largest_difference(folder, first, second):
    return differ(weights(folder, first), weights(folder, second))


def differ(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in b)


@pytest.mark.parametrize("run", ["sharded", "wider", "narrower"])
def test_the_weights_are_those_of_one_process(folder, run):
    assert largest_difference(folder, run, "one") < 1e-5
    assert defect(folder / run / "checkpoint-4") is None


def test_bf16_acts_on_shards_too(folder):
    losses = [load_outcome(folder / run).held_out["loss"] for run in ("half", "sharded")]
    assert 1e-6 < abs(losses[0] / losses[1] - 1) < 1e-2
    assert all(tensor.dtype == torch.float32 for tensor in weights(folder, "half").values())


def test_it_goes_on_to_the_bit(folder):
    assert largest_difference(folder, "again", "sharded") == 0
    states = [torch.load(folder / run / "checkpoint-4" / "optimizer.pt") for run in ("again", "sharded", "one")]
    assert [state["param_groups"] for state in states[:2]] == [states[2]["param_groups"]] * 2
    for key, own in states[2]["state"].items():
        assert own.keys() == states[0]["state"][key].keys()
        assert all(torch.equal(states[0]["state"][key][name], states[1]["state"][key][name]) for name in own)
        assert all(states[0]["state"][key][name].shape == own[name].shape for name in own)


def test_as_many_processes_go_on_to_the_bit_with_what_a_trainer_saved_under_fsdp(folder):
    ours = load_file(folder / "theirs" / "checkpoint-6" / "model.safetensors")
    assert differ(ours, load_file(folder / "random.safetensors")) == 0


def test_one_process_goes_on_with_it(folder):
    settings = {"lr_scheduler_type": "cosine", "warmup_steps": 1, "seed": 7, "use_cpu": True}
    request = Request(source=folder / "plain" / "checkpoint-2", data=[folder / "library.txt"], out=folder / "alone",
                      config=str(folder / "plain.config"), decay="uniform", settings=settings, block_size=32,
                      tokenizer="bytes")  # fmt: skip
    with pytest.raises(UsageError, match="was trained by 2 processes and this is 1, which see other batches"):
        prepare(request)
    assert not (folder / "alone").exists()
    settings["per_device_train_batch_size"] = 4
    prepare(dataclasses.replace(request, allow_data_shift=True)).train()
    ours = load_file(folder / "alone" / "checkpoint-6" / "model.safetensors")
    assert differ(ours, load_file(folder / "plain.safetensors")) < 1e-5


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before(folder):
    assert not (folder / "killed" / "checkpoint-4").exists()
    assert (folder / "killed" / ".saving").exists()
    assert defect(folder / "killed" / "checkpoint-2") is None
    batch = {"per_device_train_batch_size": 4}
    run = prepare(Request(source=folder / "killed", settings=batch, allow_data_shift=True))
    run.lock.release()
    assert run.step == 2
    assert any("checkpoint-4 was passed over: the run was killed while it was being saved" in n for n in run.notes)


def test_the_decay_acts(folder):
    ratios = [
        line for line in (folder / "sharded" / "specdiag_log.jsonl").read_text().splitlines() if '"ratio"' in line
    ]
    assert any("3.0" in line for line in ratios)
    assert {row.step for row in load_norm_log(folder / "sharded").rows} == {0, 2, 4}


def test_other_numbers_of_processes_are_named(folder):
    with pytest.raises(UsageError, match="was trained by 2 processes and this is 1, which see other batches"):
        prepare(Request(source=folder / "sharded", extend=1))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "asks for FSDP1, .* set fsdp_version=2"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, with which specdiag does not train"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "asks for Megatron-LM"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "asks for CPU offload, .* set fsdp_offload_params=false",
        ),
    ],
)
def test_what_else_accelerate_launch_asks_for_is_refused(tmp_path, monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        begin(tiny_recipe(tmp_path / "text.txt"), tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        prepare(Request(source=tmp_path))
    assert not (tmp_path / "run").exists()
