import argparse
import json
import pickle
import sys
import types
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from specdiag.checkpoint.file_map import FileMap
from specdiag.errors import SourceError, UsageError
from specdiag.train.run_files import RunSettings, read_run

PEAK, TOTAL, DONE = 3e-4, 20, 5


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))


def trained(model, steps=DONE, decay=0.07, kind=torch.optim.AdamW, **options):
    """Trainer's two groups (matrices decayed, the rest not) and its schedule, a few steps into a run."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=PEAK, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / TOTAL)
    for _ in range(steps):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return optimizer, scheduler


def trainer_state(**changes):
    history = [{"step": DONE, "learning_rate": 2.4e-4, "loss": 1.0}, {"step": DONE, "eval_loss": 1.0}]
    return {"epoch": 0.5, "global_step": DONE, "max_steps": TOTAL, "log_history": history, **changes}


@pytest.fixture
def checkpoint(tmp_path):
    """A folder as transformers 5's Trainer leaves it."""
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    optimizer, scheduler = trained(network(), fused=True)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    (folder / "trainer_state.json").write_text(json.dumps(trainer_state()))
    (folder / "model.safetensors").write_bytes(b"not read here")
    return folder


def test_a_trainer_checkpoint(checkpoint):
    found = read_run(checkpoint)
    assert found.weight_decay == 0.07
    assert found.no_decay is True
    assert found.decoupled is True
    assert found.lr == pytest.approx(PEAK * (1 - DONE / TOTAL))
    assert found.peak_lr == PEAK
    assert (found.steps_done, found.steps_total, found.steps_left) == (DONE, TOTAL, TOTAL - DONE)
    assert found.origin["weight_decay"] == found.origin["lr"] == "optimizer.pt"
    assert found.origin["steps_done"] == "trainer_state.json"
    assert found.notes == ()
    assert msgspec.json.decode(msgspec.json.encode(found), type=RunSettings) == found


def test_the_weight_file_stands_for_its_folder(checkpoint):
    assert read_run(checkpoint / "model.safetensors") == read_run(checkpoint)


def test_the_moments_are_not_read(checkpoint, monkeypatch):
    """They are mapped: the file may be larger than memory."""
    asked = []
    monkeypatch.setattr(FileMap, "fetch", lambda *a: asked.append(a))
    monkeypatch.setattr(torch, "load", lambda *a, **k: asked.append(k))
    read_run(checkpoint)
    assert asked == []


def test_without_the_optimizer(checkpoint):
    (checkpoint / "optimizer.pt").unlink()
    found = read_run(checkpoint)
    assert found.weight_decay is None
    assert (found.peak_lr, found.origin["peak_lr"]) == (PEAK, "scheduler.pt")
    assert (found.lr, found.origin["lr"]) == (2.4e-4, "trainer_state.json")
    assert found.steps_left == TOTAL - DONE


def test_a_run_without_decay_and_one_of_a_single_group(checkpoint):
    torch.save(trained(network(), decay=0.0)[0].state_dict(), checkpoint / "optimizer.pt")
    assert read_run(checkpoint).weight_decay == 0
    torch.save(torch.optim.AdamW(network().parameters()).state_dict(), checkpoint / "optimizer.pt")
    found = read_run(checkpoint)
    assert (found.weight_decay, found.no_decay) == (0.01, False)


def test_coupled_decay_is_told_apart(checkpoint):
    torch.save(trained(network(), kind=torch.optim.Adam)[0].state_dict(), checkpoint / "optimizer.pt")
    assert read_run(checkpoint).decoupled is False
    torch.save(trained(network(), kind=torch.optim.SGD)[0].state_dict(), checkpoint / "optimizer.pt")
    assert read_run(checkpoint).decoupled is None


def test_several_decays_are_not_guessed(checkpoint):
    a, b, c = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    groups = [{"params": [a], "weight_decay": 0.1}, {"params": [b, c], "weight_decay": 0.3}]
    torch.save(torch.optim.AdamW(groups).state_dict(), checkpoint / "optimizer.pt")
    with pytest.raises(UsageError, match=r"0\.1 \(1 tensors\), 0\.3 \(2 tensors\); give the base as weight_d"):
        read_run(checkpoint)


def test_several_lrs_and_an_lr_in_a_tensor(checkpoint):
    a, b = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(2))
    groups = [{"params": [a], "lr": torch.tensor(0.25)}, {"params": [b], "lr": 0.5}]
    torch.save(torch.optim.AdamW(groups, foreach=False).state_dict(), checkpoint / "optimizer.pt")
    found = read_run(checkpoint)
    assert found.lr == 0.5
    assert "0.25 to 0.5: the largest is taken" in found.notes[0]
    assert found.origin["peak_lr"] == "scheduler.pt"


def test_nanogpt(tmp_path):
    model = network()
    optimizer, _ = trained(model)
    for group in optimizer.param_groups:
        group.pop("initial_lr")  # nanoGPT sets the lr by hand
    config = {"learning_rate": 6e-4, "max_iters": 600_000, "weight_decay": 0.1, "device": "cuda"}
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "model_args": {"n_layer": 2}}
    torch.save(
        {**content, "iter_num": 2000, "best_val_loss": torch.tensor(3.1), "config": config}, tmp_path / "ckpt.pt"
    )
    found = read_run(tmp_path)
    assert (found.weight_decay, found.no_decay, found.peak_lr) == (0.07, True, 6e-4)
    assert found.lr == pytest.approx(PEAK * (1 - DONE / TOTAL))
    assert (found.steps_done, found.steps_left) == (2000, 598_000)
    assert set(found.origin.values()) == {"ckpt.pt"}
    assert read_run(tmp_path / "ckpt.pt") == found


@pytest.mark.parametrize("name", ["optimizer", "optimizer_state_dict", "optim"])
@pytest.mark.parametrize("legacy", [False, True])
def test_plain_dictionaries(tmp_path, name, legacy):
    model = network()
    content = {
        "model": model.state_dict(),
        name: trained(model)[0].state_dict(),
        "step": DONE,
        "args": argparse.Namespace(a=1),
    }
    torch.save(content, tmp_path / "last.pt", _use_new_zipfile_serialization=not legacy)
    found = read_run(tmp_path)
    assert (found.weight_decay, found.peak_lr, found.steps_done, found.steps_left) == (0.07, PEAK, DONE, None)


def test_lightning_and_several_optimizers(tmp_path):
    model = network()
    states = [
        trained(model)[0].state_dict(),
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).state_dict(),
    ]
    torch.save({"state_dict": model.state_dict(), "optimizer_states": states, "global_step": 7}, tmp_path / "a.ckpt")
    found = read_run(tmp_path)
    assert (found.weight_decay, found.steps_done) == (0.07, 7)
    torch.save({"model": {}, "optimizer": {"muon": states[0], "adam": states[1]}, "step": "later"}, tmp_path / "b.pt")
    found = read_run(tmp_path / "b.pt")
    assert (found.weight_decay, found.steps_done) == (0.07, None)


def test_where_there_is_no_run(tmp_path):
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "missing") is None
    torch.save(network().state_dict(), tmp_path / "model.pt")
    assert read_run(tmp_path) is None
    torch.save(torch.zeros(3), tmp_path / "model.pt")
    assert read_run(tmp_path / "model.pt") is None
    torch.save({"optimizer": {"param_groups": []}}, tmp_path / "other.pt")
    assert read_run(tmp_path / "other.pt") is None
    assert read_run(tmp_path) is None  # two files: which one?


def test_a_stray_torch_file_beside_safetensors_is_left(checkpoint):
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json"):
        (checkpoint / name).unlink()
    (checkpoint / "vocab.pt").write_bytes(b"garbage")
    assert read_run(checkpoint) is None


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt"])
@pytest.mark.parametrize("cut", [0, 3, 200, -100])
def test_damaged_torch_files(checkpoint, name, cut):
    if name == "scheduler.pt":
        (checkpoint / "optimizer.pt").unlink()
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SourceError, match=name) as caught:
        read_run(checkpoint)
    assert "\n" not in str(caught.value)


def test_compressed_again(checkpoint):
    path = checkpoint / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(SourceError, match="was compressed again"):
        read_run(checkpoint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        "\xff",
        "[" * 100_000,
        '{"global_step": "five"}',
        '{"global_step": -3}',
        '{"max_steps": true}',
        '{"log_history": [{"learning_rate": NaN}]}',
    ],
)
def test_damaged_json(checkpoint, text):
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "trainer_state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"trainer_state\.json"):
        read_run(checkpoint)


def test_an_unplanned_end(checkpoint):
    (checkpoint / "trainer_state.json").write_text(json.dumps(trainer_state(max_steps=0, log_history=None)))
    assert read_run(checkpoint).steps_left is None
    (checkpoint / "trainer_state.json").write_text(json.dumps(trainer_state(max_steps=-1)))
    assert read_run(checkpoint).steps_left is None
    (checkpoint / "trainer_state.json").write_text(json.dumps(trainer_state(max_steps=3)))
    assert read_run(checkpoint).steps_left == 0


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "0.1", True, None, [0.1], torch.zeros(2), 1j])
def test_a_decay_that_is_none(checkpoint, decay):
    torch.save({"state": {}, "param_groups": [{"params": [0], "weight_decay": decay}]}, checkpoint / "optimizer.pt")
    with pytest.raises(SourceError, match=r"optimizer\.pt.*weight_decay="):
        read_run(checkpoint)


@pytest.mark.parametrize("groups", [None, [], [3], "many"])
def test_an_optimizer_without_groups(checkpoint, groups):
    torch.save({"state": {}, "param_groups": groups}, checkpoint / "optimizer.pt")
    with pytest.raises(SourceError, match="holds no parameter groups"):
        read_run(checkpoint)


def test_odd_groups_do_not_crash(checkpoint):
    groups = [{"params": 3, "weight_decay": 0.1, "decoupled_weight_decay": []}, {"lr": 0.1}]
    torch.save({"param_groups": groups}, checkpoint / "optimizer.pt")
    assert read_run(checkpoint).weight_decay == 0.1


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numbers_of_numpy(tmp_path, kind):
    """As a best accuracy lies beside the optimizer, or an lr that a schedule computed."""
    groups = [{"lr": kind(2), "weight_decay": kind(3), "params": [0]}]
    content = {"optimizer": {"state": {}, "param_groups": groups}, "step": np.int64(7), "best": kind(1)}
    torch.save(content, tmp_path / "x.pt")
    run = read_run(tmp_path / "x.pt")
    assert (run.lr, run.weight_decay, run.steps_done) == (2.0, 3.0, 7)


class Trap:
    def __reduce__(self):
        return (print, ("run!",))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "ckpt.pt"])
def test_nothing_is_run(tmp_path, capsys, name):
    torch.save({"param_groups": [{"weight_decay": 0.1}], "base_lrs": [Trap()], "trap": Trap()}, tmp_path / name)
    if name == "scheduler.pt":
        with pytest.raises(SourceError, match="for a decay or an lr"):
            read_run(tmp_path)
    else:
        assert read_run(tmp_path).weight_decay == 0.1
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SourceError, match=name):
        read_run(tmp_path)
    assert capsys.readouterr().out == ""


class TrainingArguments:
    """A stand-in for transformers' own, under its name."""


TrainingArguments.__module__ = "transformers.training_args"


@pytest.fixture
def transformers(monkeypatch):
    """A package of that name with the one class that the stand-in needs."""
    for name in [n for n in sys.modules if n.partition(".")[0] in ("transformers", "accelerate")]:
        monkeypatch.delitem(sys.modules, name)
    package, module = types.ModuleType("transformers"), types.ModuleType("transformers.training_args")
    package.__spec__, package.__path__ = types.SimpleNamespace(), []
    package.training_args, module.TrainingArguments = module, TrainingArguments
    for made in (package, module):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, "accelerate", None)


def arguments(**values):
    made = TrainingArguments()
    made.__dict__.update(weight_decay=0.07, learning_rate=PEAK, output_dir="out", **values)
    return made


def test_training_arguments(checkpoint, transformers):
    torch.save(arguments(), checkpoint / "training_args.bin")
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "scheduler.pt").unlink()
    found = read_run(checkpoint)
    assert (found.weight_decay, found.origin["weight_decay"]) == (0.07, "training_args.bin")
    assert (found.peak_lr, found.origin["peak_lr"]) == (PEAK, "training_args.bin")


def test_the_optimizer_wins_over_training_arguments(checkpoint, transformers):
    (checkpoint / "training_args.bin").write_bytes(b"never opened")
    assert read_run(checkpoint).weight_decay == 0.07


def test_training_arguments_that_hold_more(checkpoint, transformers, capsys):
    torch.save(arguments(callback=Trap()), checkpoint / "training_args.bin")
    (checkpoint / "optimizer.pt").unlink()
    found = read_run(checkpoint)
    assert found.weight_decay is None
    assert "more than transformers' own settings" in found.notes[0]
    assert capsys.readouterr().out == ""


def test_damaged_training_arguments(checkpoint, transformers):
    torch.save(arguments(), checkpoint / "training_args.bin")
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "training_args.bin").write_bytes((checkpoint / "training_args.bin").read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"training_args\.bin.* is a damaged zip archive"):
        read_run(checkpoint)


def test_training_arguments_without_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "training_args.bin").write_bytes(b"never opened")
    found = read_run(Path(tmp_path))
    assert found.weight_decay is None
    assert "takes transformers, which is not installed" in found.notes[0]
