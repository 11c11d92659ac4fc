"""Whatever the files of a run hold, they end in a sentence: mutated configurations, outcomes, states and optimizers."""

import json
import os
from pathlib import Path

import msgspec
import pytest
import torch
from fuzzing import fuzz, json_mutations, mutations
from models import write_checkpoint

from specdiag import SourceError, UsageError
from specdiag.errors import SpecdiagError
from specdiag.system.folder_lock import LOCK, FolderLock
from specdiag.train.checkpoints.finite import check_state
from specdiag.train.checkpoints.inspect import damage, find_complete, read_state
from specdiag.train.checkpoints.manifest import MANIFEST, write_manifest
from specdiag.train.checkpoints.optimizer_state import read_optimizer
from specdiag.train.checkpoints.trainer_state import read_trainer_state
from specdiag.train.data.fingerprint import Fingerprint
from specdiag.train.recipe import PRESETS, load_recipe, validated
from specdiag.train.runs.config import CONFIG, RunConfig, load_config, save_config
from specdiag.train.runs.leaderboard import divergences, rank
from specdiag.train.runs.outcome import OUTCOME, Outcome, load_outcome, save_outcome
from specdiag.train.runs.schedule import ScheduleSpan
from specdiag.train.runs.sweep import tabulate

STATE = {
    "global_step": 6, "max_steps": 6, "epoch": 1.0, "train_batch_size": 4, "num_train_epochs": 1, "total_flos": 1.0,
    "log_history": [{"loss": 1.5, "step": 6, "learning_rate": 0.1}],
    "stateful_callbacks": {"AlphaDecayCallback": {"args": {"every": 2}, "attributes": {"saved": {"alphas": [2.5]}}}},
}  # fmt: skip
GROUP = {"lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.5, "params": [0, 1]}


def optimizer():
    moments = {"exp_avg": torch.ones(2, 2), "exp_avg_sq": torch.ones(2, 2)}
    return {"state": {i: {"step": torch.tensor(6.0), **moments} for i in (0, 1)}, "param_groups": [GROUP]}


@pytest.fixture
def checkpoint(tmp_path):
    folder = write_checkpoint(tmp_path / "run" / "checkpoint-6", {"w": torch.ones(2, 2)}, {})
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    torch.save(optimizer(), folder / "optimizer.pt")
    torch.save({"last_epoch": 6, "lr_lambdas": [None], "base_lrs": [0.1]}, folder / "scheduler.pt")
    torch.save({"cpu": torch.zeros(8)}, folder / "rng_state.pth")
    write_manifest(folder)
    return folder


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "ours"
    folder.mkdir()
    recipe = load_recipe("tiny-llama-bytes")
    prints = Fingerprint(files=(), tokens="bytes", block_size=128, seed=0)
    save_config(folder, RunConfig(recipe=recipe, fingerprint=prints, schedule=(ScheduleSpan(step=0, steps_total=4),)))
    return folder


def outcome(**changes):
    figures = {"loss": 1.5, "accuracy": 0.5}
    held = Outcome(step=6, steps_total=6, seconds=1.0, decay_seconds=0.1, tokens=100, train_loss=1.5, spike_share=None,
                   held_out_before=figures, held_out=figures)  # fmt: skip
    return msgspec.structs.replace(held, **changes)


def test_the_checkpoint_is_whole(checkpoint):
    assert damage(checkpoint) is None


def test_configurations(run):
    path, data = run / CONFIG, (run / CONFIG).read_bytes()

    def read(mutated):
        path.write_bytes(mutated)
        load_config(run)

    assert fuzz(read, mutations(data, 1)) >= 20


@pytest.mark.parametrize("preset", ["tiny-llama-bytes", "llama-60m"])
def test_recipes(tmp_path, preset):
    path, data = tmp_path / "recipe.toml", (PRESETS / f"{preset}.toml").read_bytes()

    def read(mutated):
        path.write_bytes(mutated)
        load_recipe(str(path))

    assert fuzz(read, mutations(data, 2)) >= 20


def test_values_of_recipes():
    content = msgspec.to_builtins(load_recipe("tiny-llama-bytes"))
    assert fuzz(validated, json_mutations(content, 3)) >= 20


def test_outcomes(run):
    save_outcome(run, outcome())
    path = run / OUTCOME
    data = path.read_bytes()

    def read(mutated):
        path.write_bytes(mutated if isinstance(mutated, bytes) else json.dumps(mutated).encode(errors="replace"))
        if load_outcome(run) is not None:
            rows, _ = rank([run, run])
            divergences(rows)
            tabulate([((("seed", "0"),), rows[0], None), ((("seed", "1"),), rows[1], None)])

    assert fuzz(read, mutations(data, 4)) >= 20
    assert fuzz(read, json_mutations(json.loads(data), 5)) >= 20


def test_manifests(checkpoint):
    path = checkpoint / MANIFEST
    data = path.read_bytes()

    def read(mutated):
        path.write_bytes(mutated if isinstance(mutated, bytes) else json.dumps(mutated).encode(errors="replace"))
        find_complete(checkpoint.parent, damage)

    assert fuzz(read, mutations(data, 6)) >= 20
    assert fuzz(read, json_mutations(json.loads(data), 7)) >= 20


def test_states_of_the_trainer(checkpoint):
    from transformers import TrainerState

    (checkpoint / MANIFEST).unlink()
    path = checkpoint / "trainer_state.json"

    def read(mutated):
        path.write_bytes(mutated if isinstance(mutated, bytes) else json.dumps(mutated).encode(errors="replace"))
        damage(checkpoint)
        read_state(checkpoint)
        TrainerState.load_from_json(str(path))

    assert fuzz(read, mutations(json.dumps(STATE).encode(), 8)) >= 20
    assert fuzz(read, json_mutations(STATE, 9)) >= 20


def test_optimizers(checkpoint):
    (checkpoint / MANIFEST).unlink()
    path = checkpoint / "optimizer.pt"
    data = path.read_bytes()

    def read(mutated):
        path.write_bytes(mutated)
        damage(checkpoint)
        state = read_optimizer(path)[1]
        check_state({str(key): own for key, own in state.items()}, "optimizer.pt")

    assert fuzz(read, mutations(data, 10)) >= 20
    plain = {"state": {"0": {"step": 6.0, "exp_avg_sq": [1.0]}}, "param_groups": [GROUP]}

    def read_values(mutated):
        torch.save(mutated, path)
        read(path.read_bytes())

    assert fuzz(read_values, json_mutations(plain, 11)) >= 20


def test_locks(tmp_path):
    own = FolderLock(tmp_path)
    data = (tmp_path / LOCK).read_bytes()
    own.release()

    def take(mutated):
        (tmp_path / LOCK).write_bytes(
            mutated if isinstance(mutated, bytes) else json.dumps(mutated).encode(errors="replace")
        )
        try:
            FolderLock(tmp_path).release()
        finally:
            (tmp_path / LOCK).unlink(missing_ok=True)

    assert fuzz(take, mutations(data, 12)) >= 20
    assert fuzz(take, json_mutations(json.loads(data), 13)) >= 20


@pytest.mark.parametrize("name", [OUTCOME, CONFIG, "trainer_state.json", MANIFEST, "recipe.toml"])
def test_no_pipe_and_no_device_is_read(tmp_path, run, checkpoint, name):
    readers = {
        OUTCOME: (run, load_outcome), CONFIG: (run, load_config), "recipe.toml": (tmp_path, lambda f: load_recipe(str(f / name))),
        "trainer_state.json": (checkpoint, read_state), MANIFEST: (checkpoint, damage),
    }  # fmt: skip
    folder, read = readers[name]
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    try:
        said = read(folder)
    except SpecdiagError as error:
        said = str(error)
    assert "not a regular file" in said
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    try:
        said = read(folder)
    except SpecdiagError as error:
        said = str(error)
    assert "not a regular file" in said


def test_a_state_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "trainer_state.json"
    for changes, said in [
        ({"global_step": -1}, "is damaged"), ({"max_steps": "6"}, "is damaged"), ({"no_such": 1}, "no_such"),
        ({"stateful_callbacks": {"AlphaDecayCallback": {"attributes": {"alphas": [float("nan")]}}}}, "alphas.0. is nan"),
    ]:  # fmt: skip
        path.write_text(json.dumps(STATE | changes))
        with pytest.raises(SourceError, match=said):
            read_trainer_state(path)


@pytest.mark.parametrize("value", ["nan", "inf", "1" * 30, "true", "'x'"])
def test_settings_are_finite_numbers_of_their_types(tmp_path, value):
    path = tmp_path / "recipe.toml"
    text = (PRESETS / "tiny-llama-bytes.toml").read_text().replace("learning_rate = 3e-3", f"learning_rate = {value}")
    path.write_text(text)
    with pytest.raises(UsageError, match="learning_rate"):
        load_recipe(str(path))


def test_old_outcomes_are_read(run):
    save_outcome(run, outcome())
    path = run / OUTCOME
    held = json.loads(path.read_bytes())
    del held["diverged_at"]
    held["held_out"]["loss"] = None
    Path(path).write_text(json.dumps(held))
    row = rank([run])[0][0]
    assert row.loss != row.loss
    assert divergences([row]) == ["'ours' diverged: its last evaluation is not finite."]
