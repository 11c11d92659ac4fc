"""`torchrun -m specdiag train`: two processes on the CPU train one model, write one run and stop together."""

import json
import signal
import time

import msgspec
import pytest
import torch
from command import call, start, torchrun
from plain_run import library_text
from recipes import tiny_recipe, write_recipe
from safetensors.torch import load_file

from specdiag import UsageError
from specdiag.train.checkpoints.inspect import defect
from specdiag.train.recipe import load_recipe
from specdiag.train.runs.begin import begin
from specdiag.train.runs.outcome import load_outcome
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.trajectories.metric_log import read_log

TRAIN = torchrun("-m", "specdiag", "train")
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    text, settings = library_text(folder), {"per_device_train_batch_size": 2, "adam_epsilon": 1e-4}
    recipe = tiny_recipe(text, settings, decay="alphadecay", alphadecay={"every": 2, "mode": "sweep"})
    write_recipe(recipe, folder / "tiny.toml")
    return folder


def test_two_ranks_write_one_run_that_two_go_on_with(folder):
    first = call([*TRAIN, "tiny.toml"], cwd=folder, env=ENVIRONMENT)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("Weight decay (alphadecay)") == 1
    assert f"Step 4: {2 * 2 * 32 * 4} tokens" in first.stdout
    last = folder / "tiny" / "checkpoint-4"
    assert defect(last) is None
    assert len(list(last.glob("rng_state_*.pth"))) == 2
    assert [e.step for e in read_log(folder / "tiny" / "specdiag_log.jsonl") if e.metric == "loss"] == [1, 2, 3, 4]
    alone = load_recipe(str(folder / "tiny.toml"))
    alone = msgspec.structs.replace(alone, settings=alone.settings | {"per_device_train_batch_size": 4})
    held_out = begin(alone, folder / "alone").train().held_out_before["loss"]
    assert load_outcome(folder / "tiny").held_out_before["loss"] == pytest.approx(held_out, rel=1e-6)
    one, two = (load_file(folder / run / "checkpoint-4" / "model.safetensors") for run in ("alone", "tiny"))
    assert all(torch.allclose(two[name], one[name], rtol=0, atol=1e-4) for name in one)  # a step alone moves by 1e-2
    state = json.loads((last / "trainer_state.json").read_text())["stateful_callbacks"]["AlphaDecayCallback"]
    assert all(value > 1 for value in state["attributes"]["saved"]["exponents"].values())
    with pytest.raises(UsageError, match="was trained by 2 processes and this is 1, which see other batches"):
        prepare(Request(source=folder / "tiny", extend=1))
    shifted = prepare(Request(source=folder / "tiny", extend=1, allow_data_shift=True))
    assert (
        "The run was trained by 2 processes and this is 1: at the same per_device_train_batch_size a step has 1/2 of "
        "their blocks." in shifted.notes
    )
    shifted.lock.release()
    on = call([*TRAIN, "--resume", "tiny", "--extend", "1"], cwd=folder, env=ENVIRONMENT)
    assert on.returncode == 0, on.stderr
    assert defect(folder / "tiny" / "checkpoint-5") is None


def test_a_polite_kill_stops_both_after_the_same_step(folder):
    arguments = ("tiny.toml", "-o", "cut", "--steps-total", "5000")
    run = start([*TRAIN, *arguments], cwd=folder, env=ENVIRONMENT)
    log = folder / "cut" / "specdiag_log.jsonl"
    until = time.monotonic() + 90
    while time.monotonic() < until and not (log.exists() and b'"loss"' in log.read_bytes()):
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=90)
    steps = [int(path.name.partition("-")[2]) for path in (folder / "cut").glob("checkpoint-*")]
    assert steps, said
    assert defect(folder / "cut" / f"checkpoint-{max(steps)}") is None
    assert "go on with 'specdiag train --resume" in said
