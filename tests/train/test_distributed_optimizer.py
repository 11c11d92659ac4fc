"""The optimizer of a checkpoint of torch.distributed.checkpoint, in each form that programs save it in."""

import json
import os
import warnings

import pytest
import torch
from distributed_files import change_metadata, save_one
from foreign_programs import batches, llama, next_token_loss, train
from torch.distributed.checkpoint import _version
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

from specdiag import SourceError, UsageError
from specdiag.train.foreign.layouts import trainer_decayed
from specdiag.train.foreign.reading import is_foreign, read_foreign
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

STEPS = 3


def trained(optimizer=torch.optim.AdamW, **options):
    """A llama after some steps, in groups as a Trainer makes them."""
    model = llama(**options)
    decayed = trainer_decayed(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == first], "weight_decay": decay}
        for first, decay in ((True, 0.2), (False, 0.0))
    ]
    made = optimizer(groups, lr=1e-2)
    train(made, next_token_loss(model), batches(STEPS))
    return model, made


def saved(folder, model, optimizer, form="nested"):
    """Weights and optimizer in one folder, or as accelerate saves them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = StateDictOptions(flatten_optimizer_state_dict=form == "flattened")
        state = get_optimizer_state_dict(model, optimizer, options=options)
    model.config.save_pretrained(folder)
    if form == "accelerate":
        save_one(folder / "pytorch_model_fsdp_0", {"model": model.state_dict()})
        save_one(folder / "optimizer_0", {"optimizer": state})
    else:
        save_one(folder, {"model": model.state_dict(), "optimizer": state})
    return folder


def trainers(folder, step=STEPS, **changes):
    """A checkpoint as a Trainer under FSDP saves it, but for its random numbers."""
    saved(folder, *trained(), form="accelerate")
    state = {"global_step": step, "max_steps": 6, "train_batch_size": 2, "save_steps": 3, "logging_steps": 1}
    (folder / "trainer_state.json").write_text(json.dumps(state | changes))
    return folder


@pytest.mark.parametrize("form", ["nested", "flattened", "torch 2.3", "accelerate"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_its_moments_go_to_the_parameters_of_their_names(tmp_path, monkeypatch, form, tied):
    if form == "torch 2.3":
        monkeypatch.setattr(_version, "_derived_version", "2_3")  # all groups are then one object
    model, optimizer = trained(tie_word_embeddings=tied)
    source = saved(tmp_path / "a", model, optimizer, form)
    assert is_foreign(source)
    read = read_foreign(source)
    names = [name for name, _ in model.named_parameters()]
    assert set(read.moments) == set(names)
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        assert all(torch.equal(read.moments[name][key], state[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert read.step == STEPS
    assert read.settings.values["weight_decay"] == 0.2
    assert all(torch.equal(p, dict(read.model.named_parameters())[n]) for n, p in model.named_parameters())


def test_a_trainers_step_and_arguments(tmp_path):
    source = trainers(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-6" / "pytorch_model_fsdp_0").mkdir(parents=True)
    (tmp_path / "checkpoint-6" / "pytorch_model_fsdp_0" / ".metadata").touch()  # killed while it saved
    for place in (source, tmp_path):
        read = read_foreign(place)
        assert (read.step, read.steps_total, read.lr) == (3, 6, 1e-2)
        assert (read.settings.values["per_device_train_batch_size"], read.settings.values["save_steps"]) == (2, 3)
        assert any("has no training_args.bin" in note for note in read.notes)
        passed = "checkpoint-6 was not saved to the end and is passed over: checkpoint-3 is taken." in read.notes
        assert passed == (place == tmp_path)


def test_another_schedule_than_that_of_the_saved_lr_is_refused(tmp_path, text):
    request = Request(
        source=trainers(tmp_path / "run" / "checkpoint-3"), data=[text], out=tmp_path / "out", decay="uniform",
        settings={"use_cpu": True, "learning_rate": 1e-2, "lr_scheduler_type": "linear"},
    )  # fmt: skip
    with pytest.raises(
        UsageError, match=r"saved with lr 0.01 for step 4 of 6, and lr_scheduler_type=linear .* 0\.005:"
    ):
        prepare(request)
    assert not (tmp_path / "out").exists()


def test_other_steps_than_the_trainers_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"an optimizer that did 3 steps and a trainer_state.json of step 5"):
        read_foreign(trainers(tmp_path / "checkpoint-5", step=5))


def test_what_cannot_be_mapped_is_refused(tmp_path):
    model, optimizer = trained(torch.optim.Adamax)
    with pytest.raises(UsageError, match=r"the state of another optimizer than Adam and AdamW \(exp_inf"):
        read_foreign(saved(tmp_path / "other", model, optimizer))
    model, optimizer = trained()
    state = get_optimizer_state_dict(model, optimizer)
    model.config.save_pretrained(tmp_path / "two")
    save_one(tmp_path / "two", {"model": model.state_dict(), "g": state, "d": state})
    with pytest.raises(UsageError, match=r"two holds 2 optimizers \(d, g\), and a Trainer has one"):
        read_foreign(tmp_path / "two")
    saved(tmp_path / "part", model, optimizer)
    change_metadata(tmp_path / "part", lambda m: m.state_dict_metadata.pop("optimizer.state.lm_head.weight.exp_avg"))
    with pytest.raises(SourceError, match=r"part' has no exp_avg for lm_head\.weight: it is damaged"):
        read_foreign(tmp_path / "part")
    model.config.save_pretrained(tmp_path / "none")
    save_one(tmp_path / "none", {"model": model.state_dict()})
    with pytest.raises(UsageError, match=r"none' holds weights and no optimizer, .* fresh_optimizer=True"):
        read_foreign(tmp_path / "none")


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_nothing_in_it_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, optimizer = trained()
    state = get_optimizer_state_dict(model, optimizer)
    state["param_groups"][0]["eps"] = Hostile()
    model.config.save_pretrained(tmp_path / "a")
    save_one(tmp_path / "a", {"model": model.state_dict(), "optimizer": state})
    with pytest.raises(SourceError, match=r"param_groups.0.eps', and it wants to make .*system when it is opened"):
        read_foreign(tmp_path / "a")
    assert not (tmp_path / "ran").exists()
