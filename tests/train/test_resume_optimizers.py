"""Every method of the registry in a transformers Trainer: interrupted equals uninterrupted, and AlphaDecay acts."""

import copy
import gc
import math
import shutil

import pytest
import torch
import transformers
from plain_run import BATCH, BLOCK, SEED, library_text, llama
from safetensors.torch import load_file

from specdiag import UsageError
from specdiag.live.attaching import decays_in_force
from specdiag.optim import METHODS, AlphaDecay, Combined, optimizers
from specdiag.optim.decay_semantics import decay_kind, decay_semantics, removed
from specdiag.optim.layout import layout
from specdiag.train import AlphaDecayCallback
from specdiag.train.checkpoints.inspect import defect
from specdiag.train.data.tokens import load_data

Q = "model.layers.0.self_attn.q_proj.weight"
STEPS = 6
FACTORS = [0.0, 0.5, *(0.5 + 0.5 * math.cos(math.pi * i / 4) for i in range(4))]
"""Fractions of the peak lr: two steps of warm-up, then a cosine to 0."""
LR = {"sgd": 0.1, "sgdc": 0.1, "awd": 0.1, "adadecay": 0.1, "scion": 2**-8, "scionc": 2**-8, "muon": 4e-3}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Every Trainer collects garbage when it begins, and looks at all that torch and transformers have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    text = library_text(folder)
    return load_data([text], tokenizer=None, vocabulary=256, block_size=BLOCK, seed=SEED, cache=folder).train


def built(name, model, **options):
    found = optimizers(name, model, **{"lr": LR.get(name, 1e-2), "weight_decay": 0.5} | options)
    return found[0] if len(found) == 1 else Combined(found)


def a_trainer(folder, blocks, name, *callbacks, steps=STEPS, schedule="cosine", saves=3, **options):
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=steps, save_steps=saves, save_strategy="steps" if saves else "no", logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, per_device_train_batch_size=BATCH, seed=SEED,
    )  # fmt: skip
    model = llama()
    optimizer = built(name, model, **options)
    warmup = 2 if schedule == "cosine" else 0
    scheduler = transformers.get_scheduler(schedule, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    trainer = transformers.Trainer(model, arguments, train_dataset=blocks, optimizers=(optimizer, scheduler))
    trainer.remove_callback(transformers.PrinterCallback)
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def saved(folder, step=STEPS):
    """Weights, optimizer and scheduler of a checkpoint."""
    checkpoint = folder / f"checkpoint-{step}"
    read = (torch.load(checkpoint / f, weights_only=True) for f in ("optimizer.pt", "scheduler.pt"))
    return load_file(checkpoint / "model.safetensors"), *read


def same(first, second):
    """Bitwise, and of the same types."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def resumed(source, folder, blocks, name, *callbacks, **options):
    shutil.copytree(source / "checkpoint-3", folder / "checkpoint-3")
    trainer = a_trainer(folder, blocks, name, *callbacks, **options)
    trainer.train(resume_from_checkpoint=True)
    return trainer


class Reading(transformers.TrainerCallback):
    """Record lr and decay by parameter, as they are in force in each step."""

    def __init__(self):
        self.steps = []

    def on_train_begin(self, args, state, control, **kwargs):
        names = {p: name for name, p in kwargs["model"].named_parameters()}

        def read(optimizer, *_):
            decays = decays_in_force(optimizer)
            for group in optimizer.param_groups:
                for p in group["params"]:  # the first reading counts: steps within steps run the hooks again
                    self.steps[-1].setdefault(names[p], (group["lr"], decays[p]))

        held = kwargs["optimizer"].optimizer
        for each in getattr(held, "optimizers", [held]):
            each.register_step_pre_hook(read)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append({})


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_equals_uninterrupted(name, tmp_path, blocks):
    """Also where it is built with another lr and decay: those of the checkpoint hold, adamc's peak among them."""
    readings, peak = (Reading(), Reading()), LR.get(name, 1e-2)
    a_trainer(tmp_path / "whole", blocks, name, readings[0]).train()
    assert defect(tmp_path / "whole" / "checkpoint-3") is None
    resumed(tmp_path / "whole", tmp_path / "resumed", blocks, name, readings[1], lr=2 * peak, weight_decay=0.25)
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "resumed"))
    assert readings[0].steps[3:] == readings[1].steps
    for factor, step in zip(FACTORS, readings[0].steps, strict=True):
        assert [lr for lr, _ in step.values()] == pytest.approx([peak * factor] * len(step))
        assert step[Q][1] == pytest.approx(0.5 * factor if name in ("adamc", "sgdc") else 0.5)
        assert step["lm_head.weight"][1] == 0.5
    if name.startswith("scion"):
        assert {group["radius"] for group in saved(tmp_path / "resumed")[1]["param_groups"]} == {50.0, 3000.0}


def test_the_comparison_would_tell(tmp_path, blocks):
    """Without its scheduler a Trainer starts optimizer and lr anew; another lr is another run."""
    a_trainer(tmp_path / "whole", blocks, "adamw").train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    (tmp_path / "b" / "checkpoint-3" / "scheduler.pt").unlink()
    a_trainer(tmp_path / "b", blocks, "adamw").train(resume_from_checkpoint=True)
    assert not same(saved(tmp_path / "whole")[0], saved(tmp_path / "b")[0])


def after_one_step(folder, blocks, name, *callbacks, **options):
    trainer = a_trainer(folder, blocks, name, *callbacks, steps=1, schedule="constant", saves=0, **options)
    trainer.train()
    return {key: value.detach() for key, value in trainer.model.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_a_ratio_of_2_is_twice_the_decay(name, tmp_path, blocks):
    """Matrices that take part move as with twice the method's decay, everything else as without AlphaDecay."""
    plain, double = (after_one_step(tmp_path, blocks, name, weight_decay=decay) for decay in (0.5, 1.0))
    callback = AlphaDecayCallback(s1=2.0, s2=2.0, measure_first=True)
    ours = after_one_step(tmp_path, blocks, name, callback, weight_decay=0.5)
    taking_part = {key for key in ours if "_proj" in key}
    assert callback.decay.ratios == dict.fromkeys(taking_part, 2.0)
    for key, weight in ours.items():
        assert torch.equal(weight, (double if key in taking_part else plain)[key]), key
        assert key not in taking_part or not torch.equal(weight, plain[key])


def two(model, **kinds):
    """Matrices of attention under one optimizer, everything else under another."""
    ours = [p for n, p in model.named_parameters() if "self_attn" in n]
    rest = [p for n, p in model.named_parameters() if "self_attn" not in n]
    return [kinds["first"](ours), kinds["second"](rest)]


def adamw_and_sgd(model):
    return two(
        model,
        first=lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
        second=lambda p: torch.optim.SGD([{"params": p[:1], "lr": 0.05}, {"params": p[1:]}], lr=0.1, momentum=0.9),
    )


def loss_of(model):
    ids = torch.arange(BLOCK)[None] % 256
    return model.eval()(input_ids=ids, labels=ids).loss


def test_combined_steps_as_each_alone():
    runs = []
    for combine in (False, True):
        model = llama()
        held = adamw_and_sgd(model)
        one = Combined(held)
        stepping = [one] if combine else held
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in stepping]
        for _ in range(3):
            loss_of(model).backward()
            for each in stepping:
                each.step()
            one.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
        assert all(p.grad is None for p in model.parameters())
        runs.append(([p.detach() for p in model.parameters()], [held[0].state_dict(), held[1].state_dict()]))
        assert [group["lr"] for group in one.param_groups] == [1e-2 / 8, 0.05 / 8, 0.1 / 8]
        assert all(a is b for a, b in zip(one.param_groups, held[0].param_groups + held[1].param_groups, strict=True))
    assert same(*runs)


def test_combined_is_saved_loaded_and_copied_whole():
    model = llama()
    one = Combined(adamw_and_sgd(model))
    loss_of(model).backward()
    assert one.state == {}
    one.step()
    assert set(one.state) == set(model.parameters())
    held = copy.deepcopy(one.state_dict())
    assert [group["params"] for group in held["param_groups"]] == [[0, 1, 2, 3], [4], list(range(5, 12))]
    assert set(held["state"]) == set(range(12))
    assert {key for state in one.state.values() for key in state} == {
        "step", "exp_avg", "exp_avg_sq", "momentum_buffer",
    }  # fmt: skip
    other = Combined(adamw_and_sgd(llama(seed=1)))
    other.load_state_dict(held)
    assert same(other.state_dict(), held)
    assert same(Combined(other.optimizers).state_dict(), held)
    assert all(s is other.state[p] for each in other.optimizers for p, s in each.state.items())
    twin_model, twin = copy.deepcopy((model, one))
    assert same(twin.state_dict(), held)
    for each, optimizer in ((model, one), (twin_model, twin)):
        optimizer.zero_grad()
        loss_of(each).backward()
        optimizer.step()
        assert set(optimizer.state) == set(each.parameters())
    assert all(map(torch.equal, model.parameters(), twin_model.parameters()))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(held | {"param_groups": held["param_groups"][:1]})


def test_combined_runs_hooks_and_a_closure():
    model, seen = llama(), []
    one = Combined(adamw_and_sgd(model))
    one.register_step_pre_hook(lambda *_: seen.append("before"))
    one.register_step_post_hook(lambda *_: seen.append("after"))
    one.optimizers[1].register_step_post_hook(lambda *_: seen.append("its own"))
    one.register_state_dict_post_hook(lambda *_: seen.append("saved"))
    one.register_load_state_dict_post_hook(lambda *_: seen.append("loaded"))

    def closure():
        seen.append("closure")
        loss = loss_of(model)
        loss.backward()
        return loss

    assert one.step(closure).item() > 0
    one.load_state_dict(one.state_dict())
    assert seen == ["before", "closure", "its own", "after", "saved", "loaded"]


def test_combined_is_told_apart_where_the_kind_of_decay_counts():
    """Ratios and plans go by its groups; what says how a decay acts looks at who steps it."""
    model = llama()
    one = Combined(adamw_and_sgd(model))
    first, _, last = one.param_groups
    last["weight_decay"] = 0.5
    assert [decay_kind(one, group) for group in (first, last)] == ["decoupled", "coupled"]
    assert (removed(one, first), removed(one, last)) == (pytest.approx(5e-3), 0.0)
    assert [decay_semantics(one, group, torch.Size((4, 4))).optimizer for group in (first, last)] == ["adamw", "sgdm"]
    assert [line.split()[0] for line in layout(model, one).splitlines()[1:]] == ["AdamW", "SGD", "SGD"]
    scion = Combined(optimizers("scion", llama()))
    assert removed(scion, scion.param_groups[0]) == 2**-12


def test_a_combined_whose_step_raised_can_go_on():
    model = llama()
    one = Combined(adamw_and_sgd(model))
    decay = AlphaDecay(model, one, s1=2.0, s2=2.0, measure_first=True)
    groups = [list(each.param_groups) for each in one.optimizers]
    handle = one.optimizers[1].register_step_pre_hook(lambda *_: 1 / 0)
    loss_of(model).backward()
    decay.step()
    with pytest.raises(ZeroDivisionError):
        one.step()
    assert [each.param_groups for each in one.optimizers] == groups
    handle.remove()
    one.step()
    assert len(one.state_dict()["param_groups"]) == 3


def test_what_cannot_be_combined_is_said():
    model = llama()
    first, second = adamw_and_sgd(model)
    with pytest.raises(ValueError, match="more than one parameter group"):
        Combined([first, first])
    with pytest.raises(ValueError, match="empty parameter list"):
        Combined([])
    with pytest.raises(UsageError, match="add it to an optimizer, then combine them"):
        Combined([first, second]).add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
