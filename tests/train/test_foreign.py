"""Checkpoints of other programs: the next step after reading one is the step that the program would have done."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from foreign_programs import (
    BATCH,
    BETAS,
    CLIP,
    TIME,
    alphadecay_run,
    batches,
    lightning_run,
    nano_lr,
    nano_run,
    next_token_loss,
    script_run,
    train,
)

from specdiag import SourceError, UsageError
from specdiag.live.parameters import live_parameters
from specdiag.train.foreign.moments import load_moments
from specdiag.train.foreign.reading import is_foreign, read_foreign
from specdiag.train.foreign.schedules import rate
from specdiag.train.models.nano_gpt import NanoGPTForCausalLM

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def trainer_of(read, folder, **options):
    """A Trainer with the settings of the file and no others; coupled decay is torch's Adam."""
    arguments = transformers.TrainingArguments(
        str(folder / "run"),
        report_to="none",
        use_cpu=True,
        max_steps=read.steps_total or 10,
        **read.settings.values | options,
    )
    rates = {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }
    adam = {"optimizer_cls_and_kwargs": (torch.optim.Adam, rates)} if read.optimizer == "adam" else {}
    trainer = transformers.Trainer(read.model, arguments, **adam)
    trainer.create_optimizer()
    return trainer


def one_more_step(read, folder, batch, lr, *, clip=CLIP, decay_all=None, **options):
    """Weights after a step of a Trainer's optimizer that got the moments, by name."""
    trainer = trainer_of(read, folder, **options)
    said = load_moments(read, trainer.optimizer, read.model)
    assert f"all at step {read.step}" in said
    for group in trainer.optimizer.param_groups:
        group["weight_decay"] = group["weight_decay"] if decay_all is None else decay_all
    read.model.train()
    train(trainer.optimizer, next_token_loss(read.model), [batch], lambda _: lr, clip)
    return {name: p.detach() for name, p in live_parameters(read.model).items()}


def assert_same(ours, theirs, *, transposed=(), rtol=1e-6, atol=1e-7):
    theirs = {name: p.detach() for name, p in theirs.named_parameters(remove_duplicate=False)}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        wanted = tensor.T if name.endswith(tuple(transposed)) else tensor
        torch.testing.assert_close(ours[name], wanted, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("old", [False, True])
def test_the_next_step_after_nanogpt_is_its_own(tmp_path, bias, old):
    model, optimizer, _ = nano_run(tmp_path / "ckpt.pt", bias=bias, old=old)
    assert is_foreign(tmp_path)
    read = read_foreign(tmp_path)
    assert (read.kind, read.optimizer, read.step) == ("nanoGPT checkpoint", "adamw", 6)
    assert type(read.model).__name__ == ("GPT2LMHeadModel" if bias else "NanoGPTForCausalLM")
    moved = {name for name in CONV1D if bias}
    assert_same(
        {n: p.detach() for n, p in live_parameters(read.model).items()}, model, transposed=moved, rtol=0, atol=0
    )
    tokens = batches(1, seed=9)[0]
    torch.testing.assert_close(read.model.eval()(tokens).logits, model(tokens), rtol=1e-4, atol=1e-5)
    before = {name: p.detach().clone() for name, p in live_parameters(read.model).items()}
    lr = optimizer.param_groups[0]["lr"]
    decays = [group["weight_decay"] for group in trainer_of(read, tmp_path).optimizer.param_groups]
    assert decays == [0.1, 0.0]
    if old:  # tables had no decay then
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    ours = one_more_step(read, tmp_path, tokens, lr, decay_all=0.0 if old else None)
    train(optimizer, model.loss, [tokens], lambda _: lr)
    assert_same(ours, model, transposed=moved)
    moment = max((ours[name] - before[name]).abs().max() for name in ours)
    assert moment > 1e-3  # far above the tolerance


def test_swapped_moments_do_another_step(tmp_path):
    """Shows that the test above would notice lost or misplaced moments."""
    model, optimizer, _ = nano_run(tmp_path / "ckpt.pt", bias=True)
    tokens, lr = batches(1, seed=9)[0], optimizer.param_groups[0]["lr"]
    train(optimizer, model.loss, [tokens], lambda _: lr)
    for spoil in ("zero", "untransposed", "layers"):
        read = read_foreign(tmp_path / "ckpt.pt")
        name, other = (f"transformer.h.{layer}.attn.c_proj.weight" for layer in (0, 1))
        for key in ("exp_avg", "exp_avg_sq"):
            if spoil == "zero":
                read.moments[name][key].zero_()
            elif spoil == "untransposed":
                read.moments[name][key] = read.moments[name][key].T.contiguous()
            else:
                held = read.moments[name][key], read.moments[other][key]
                read.moments[other][key], read.moments[name][key] = held
        with pytest.raises(AssertionError, match=r"c_proj\.weight"):
            assert_same(one_more_step(read, tmp_path, tokens, lr), model, transposed=CONV1D)


def test_a_padded_vocabulary_is_kept_and_tied_weights_are_one(tmp_path):
    small = {"n_layer": 1, "n_embd": 8, "vocab_size": 50304}
    model, optimizer, _ = nano_run(tmp_path / "ckpt.pt", bias=True, model_args=small, steps=2)
    read = read_foreign(tmp_path / "ckpt.pt")
    assert (read.model.config.vocab_size, read.model.config.eos_token_id) == (50304, 50256)
    assert read.model.lm_head.weight is read.model.transformer.wte.weight
    assert "lm_head.weight" not in read.moments
    assert len(read.moments) == len(list(model.parameters()))
    assert any("50304 tokens with padding" in line for line in read.notes)
    tokens, lr = batches(1, seed=9)[0], optimizer.param_groups[0]["lr"]
    ours = one_more_step(read, tmp_path, tokens, lr)
    train(optimizer, model.loss, [tokens], lambda _: lr)
    assert_same(ours, model, transposed=CONV1D)


def test_a_nanogpt_without_biases_is_opened_again_by_transformers(tmp_path):
    nano_run(tmp_path / "ckpt.pt", bias=False)
    read = read_foreign(tmp_path / "ckpt.pt")
    read.model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert isinstance(again, NanoGPTForCausalLM)
    tokens = batches(1)[0]
    torch.testing.assert_close(again(tokens).logits, read.model.eval()(tokens).logits, rtol=0, atol=0)
    assert again.generate(tokens[:, :4], max_new_tokens=TIME, do_sample=False).shape == (BATCH, 4 + TIME)
    with pytest.raises(UsageError, match="32 tokens are more than the 16 positions"):
        again(tokens.repeat(1, 2))
    with pytest.raises(UsageError, match="no padding"):
        again(tokens, attention_mask=tokens < 0)


def test_what_nanogpt_tells_of_its_settings(tmp_path):
    nano_run(tmp_path / "ckpt.pt", bias=False, compiled=False, model_args={"dropout": 0.2})
    read = read_foreign(tmp_path / "ckpt.pt")
    assert read.settings.values == {
        "weight_decay": 0.1, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "adam_epsilon": 1e-8, "learning_rate": 1e-2,
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 5, "max_grad_norm": CLIP,
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}, "warmup_steps": 3,
    }  # fmt: skip
    assert read.settings.values.keys() == read.settings.origin.keys()
    assert (read.block_size, read.steps_total, read.model.config.dropout) == (TIME, 60, 0.2)
    assert read.settings.notes == []  # on the CPU nanoGPT computes in float32, whatever its dtype says
    nano_run(tmp_path / "gpu.pt", bias=True, device="cuda", decay_lr=False, model_args={"dropout": 0.2})
    other = read_foreign(tmp_path / "gpu.pt")
    assert other.settings.values["lr_scheduler_type"] == "constant"
    dropouts = [getattr(other.model.config, name) for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")]
    assert dropouts == [0.2] * 3
    if not torch.cuda.is_available():
        assert other.settings.notes == ["The run computed in bfloat16 on a GPU, and goes on in float32 here."]


@pytest.mark.parametrize("end", [60, 40, 90])
def test_the_schedule_is_nanogpts_after_its_warm_up(tmp_path, end):
    _, _, content = nano_run(tmp_path / "ckpt.pt", bias=False, lr_decay_iters=end)
    read = read_foreign(tmp_path / "ckpt.pt")
    values = read.settings.values
    for step in range(3, 61):
        assert rate(1e-2, values, step, 60) == pytest.approx(nano_lr(content["config"], step), rel=1e-9)
    assert not [line for line in read.notes if line.startswith("The lr of step")]
    nano_run(tmp_path / "early.pt", bias=False, lr_decay_iters=end, steps=2)
    said = [line for line in read_foreign(tmp_path / "early.pt").notes if line.startswith("The lr of step 3 ")]
    here = rate(1e-2, values, 2, 60)
    assert said == [
        f"The lr of step 3 is 0.0075 in the file and {here:.4g} here, in the warm-up of 3, which is counted otherwise here."
    ]


def test_what_is_not_nanogpts_own_network_or_schedule_is_said(tmp_path):
    _, _, content = nano_run(tmp_path / "ckpt.pt", bias=False)
    content["iter_num"] = 8
    torch.save(content, tmp_path / "ckpt.pt")
    read = read_foreign(tmp_path)
    assert read.step == 6
    assert "iter_num is 8 and the optimizer did 6 steps, as half precision skips some: 6 counts." in read.notes
    content["config"]["learning_rate"] = 3e-2
    torch.save(content, tmp_path / "ckpt.pt")
    assert any("by its config" in line for line in read_foreign(tmp_path).notes)
    content["model_args"]["use_rmsnorm"] = False
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(UsageError, match="changed nanoGPT, with use_rmsnorm"):
        read_foreign(tmp_path)
    del content["model_args"]["use_rmsnorm"], content["model_args"]["n_head"]
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(SourceError, match="no n_head in its model_args"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_next_step_after_alphadecays_code_is_its_own(tmp_path, optimizer):
    model, made, schedule = alphadecay_run(tmp_path, optimizer=optimizer)
    assert is_foreign(tmp_path)
    read = read_foreign(tmp_path)
    assert (read.kind, read.optimizer, read.step, read.steps_total) == ("AlphaDecay checkpoint", optimizer, 5, 40)
    assert read.block_size == TIME
    assert read.settings.values == {
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "learning_rate": 1e-2, "weight_decay": 1e-2,
        "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 4, "max_grad_norm": 0.0, "seed": 3,
        "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}, "warmup_steps": 2,
    }  # fmt: skip
    assert "are in the order 'alphadecay'" in read.notes[0]
    assert any("s1=0.666, s2=3.0, every=500" in line and "0.67 to 3 of 0.01" in line for line in read.notes)
    lr = schedule.get_last_lr()[0]
    assert rate(1e-2, read.settings.values, 5, 40) == pytest.approx(lr, rel=1e-9)
    for group in made.param_groups:
        group["weight_decay"] = 0.3
    tokens = batches(1, seed=9)[0]
    ours = one_more_step(read, tmp_path, tokens, lr, clip=0, decay_all=0.3)
    train(made, next_token_loss(model), [tokens], lambda _: lr, clip=0)
    theirs = dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor.detach(), rtol=2e-5, atol=2e-6)


def test_the_newest_of_alphadecays_folders_is_taken(tmp_path):
    for step in (4, 12):
        (tmp_path / f"model_{step}").mkdir()
        alphadecay_run(tmp_path / f"model_{step}", steps=step)
    assert is_foreign(tmp_path)
    assert read_foreign(tmp_path).step == 12


def test_moments_in_half_precision_stay_as_they_are(tmp_path):
    alphadecay_run(tmp_path, dtype=torch.bfloat16)
    read = read_foreign(tmp_path)
    assert {p.dtype for p in read.model.parameters()} == {torch.bfloat16}
    assert read.model.model.rotary_emb.inv_freq.dtype == torch.float32
    trainer = trainer_of(read, tmp_path)
    load_moments(read, trainer.optimizer, read.model)
    assert {state["exp_avg"].dtype for state in trainer.optimizer.state.values()} == {torch.bfloat16}


def test_safetensors_tell_no_order_and_a_square_mlp_makes_it_ambiguous(tmp_path):
    alphadecay_run(tmp_path, safetensors=True)
    read = read_foreign(tmp_path)
    assert "are in the order 'alphadecay:gate-down-up'" in read.notes[0]
    square = tmp_path / "square"
    square.mkdir()
    model, made, _ = alphadecay_run(square, safetensors=True, intermediate_size=64)
    with pytest.raises(UsageError, match=r"fit the model in several orders \(alphadecay, alphadecay:gate-down-up\)"):
        read_foreign(square)
    wrong = read_foreign(square, layout="alphadecay")
    right = read_foreign(square, layout="alphadecay:gate-down-up")
    up, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))
    state = made.state[dict(model.named_parameters())[up]]
    assert torch.equal(right.moments[up]["exp_avg"], state["exp_avg"])
    assert torch.equal(wrong.moments[down]["exp_avg"], state["exp_avg"])


def test_damaged_weights_of_alphadecays_code(tmp_path):
    alphadecay_run(tmp_path, safetensors=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SourceError, match=r"model\.safetensors cannot be read"):
        read_foreign(tmp_path)
    weights.unlink()
    with pytest.raises(SourceError, match=r"has no pytorch_model\.bin and no model\.safetensors"):
        read_foreign(tmp_path)


def test_alphadecays_files_of_different_steps(tmp_path):
    alphadecay_run(tmp_path)
    state = tmp_path / "training_state.json"
    state.write_text('{"update_step": 25, "global_step": 50}')
    read = read_foreign(tmp_path)
    assert read.step == 5
    assert any("counts 25 updates and the optimizer 5, since `--continue_from`" in line for line in read.notes)
    state.write_text('{"update_step": 4, "global_step": 8}')
    with pytest.raises(SourceError, match=r"at step 5 and training_state\.json at 4"):
        read_foreign(tmp_path)
    state.write_text('{"update_step": 5')
    with pytest.raises(SourceError, match=r"training_state\.json cannot be read"):
        read_foreign(tmp_path)


def test_other_frequencies_than_the_configuration_gives_are_refused(tmp_path):
    alphadecay_run(tmp_path)
    weights = torch.load(tmp_path / "pytorch_model.bin")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] *= 3
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match="its rope_theta is another"):
        read_foreign(tmp_path)


@pytest.mark.parametrize("schedule", ["cosine", "constant", "lambda"])
def test_the_next_step_after_lightning_is_its_own(tmp_path, schedule):
    path = tmp_path / "last.ckpt"
    model, optimizer, _ = lightning_run(path, schedule=schedule)
    assert is_foreign(path)
    assert is_foreign(tmp_path)
    with pytest.raises(UsageError, match="does not say which model it is: name it as config="):
        read_foreign(path)
    model.config.save_pretrained(tmp_path / "config")
    read = read_foreign(tmp_path, config=tmp_path / "config")
    assert (read.kind, read.optimizer, read.step) == ("Lightning checkpoint", "adamw", 4)
    assert "Took the prefix 'model.' off the names in last.ckpt." in read.notes
    values = read.settings.values
    assert (values["per_device_train_batch_size"], values["gradient_accumulation_steps"]) == (BATCH, 3)
    assert (values["max_grad_norm"], values["weight_decay"], values["learning_rate"]) == (CLIP, 0.2, 1e-2)
    lr = optimizer.param_groups[0]["lr"]
    if schedule == "cosine":
        assert read.steps_total == 20
        assert rate(1e-2, values, 4, 20) == pytest.approx(lr, rel=1e-6)
    elif schedule == "constant":
        assert values["lr_scheduler_type"] == "constant"
    else:
        assert "lr_scheduler_type" not in values
        assert "not one that can be taken over: the last lr was 0.002." in read.settings.notes[0]
    norms = [line for line in read.notes if line.endswith("decayed there and not by a Trainer.")]
    assert norms == ["model.layers.0.input_layernorm.weight and 4 more: decayed there and not by a Trainer."]
    tokens = batches(1, seed=9)[0]
    ours = one_more_step(read, tmp_path, tokens, lr, decay_all=0.2)
    train(optimizer, next_token_loss(model), [tokens])
    assert_same(ours, model)


@pytest.mark.parametrize("groups", ["flat", "named", "trainer"])
def test_the_next_step_after_a_training_script_is_its_own(tmp_path, groups):
    path = tmp_path / "step4.pt"
    extra = {"best": np.float64(2.5), "rng": torch.get_rng_state()}
    model, optimizer, schedule = script_run(path, named=groups == "named", trainer_groups=groups == "trainer", **extra)
    model.config.save_pretrained(tmp_path)  # beside it
    read = read_foreign(path)
    assert (read.kind, read.step, read.block_size) == ("torch dict", 4, TIME)
    assert ("names the parameters" in read.notes[0]) == (groups == "named")
    values = read.settings.values
    assert (values["seed"], values["max_grad_norm"], values["learning_rate"]) == (5, CLIP, 1e-2)
    assert (values["lr_scheduler_type"], values["warmup_steps"], read.steps_total) == ("cosine", 2, 10)
    for step in range(4, 10):
        assert rate(1e-2, values, step, 10) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the order of steps
            schedule.step()
    tokens = batches(1, seed=9)[0]
    ours = one_more_step(read, tmp_path, tokens, 7e-3, decay_all=None if groups == "trainer" else 0.2)
    train(optimizer, next_token_loss(model), [tokens], lambda _: 7e-3)
    assert_same(ours, model)


def test_moments_that_do_not_fit_an_optimizer_change_nothing(tmp_path):
    nano_run(tmp_path / "ckpt.pt", bias=True)
    read = read_foreign(tmp_path)
    name = "transformer.h.0.mlp.c_fc.weight"
    kept = read.moments[name]
    trainer = trainer_of(read, tmp_path)
    for change, words in (
        (None, f"no moments for {name}"),
        (
            {**kept, "exp_avg": kept["exp_avg"].T},
            r"has shape \(32, 128\), its exp_avg in the nanoGPT checkpoint \(128, 32\)",
        ),
        ({**kept, "step": torch.tensor(3.0)}, "at steps 3 and 6"),
    ):
        if change is None:
            del read.moments[name]
        else:
            read.moments[name] = change
        with pytest.raises(SourceError, match=words):
            load_moments(read, trainer.optimizer, read.model)
        read.moments[name] = kept
        assert not trainer.optimizer.state
    some = [p for p in read.model.parameters() if p.ndim > 1]
    with pytest.raises(SourceError, match="which is not trained here"):
        load_moments(read, torch.optim.AdamW(some), read.model)
    with pytest.raises(SourceError, match="parameters that the model lacks"):
        load_moments(read, torch.optim.AdamW([torch.zeros(2, requires_grad=True)]), read.model)
    load_moments(read, trainer.optimizer, read.model)
    assert not {id(s["exp_avg"]) for s in trainer.optimizer.state.values()} & {
        id(m["exp_avg"]) for m in read.moments.values()
    }
