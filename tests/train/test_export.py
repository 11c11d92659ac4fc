"""A run that went on is written back: nanoGPT's own network and optimizer load it and go on as the run would."""

import numpy as np
import pytest
import torch
import transformers
from command import invoke
from foreign_programs import NanoGPT, nano_run
from recipes import tiny_recipe
from safetensors.torch import load_file

from specdiag import SourceError, UsageError
from specdiag.train.export import export
from specdiag.train.foreign.reading import read_foreign
from specdiag.train.foreign.write_nanogpt import network_of
from specdiag.train.runs.begin import begin
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def tokens(path, n=4000):
    np.random.default_rng(0).integers(0, 256, n).astype(np.uint16).tofile(path)
    return path


@pytest.fixture
def continued(tmp_path):
    """A run that goes on with nanoGPT's checkpoint for some steps."""

    def made(**options):
        folder = tmp_path / "nano"
        folder.mkdir()
        nano_run(folder / "ckpt.pt", dtype=torch.float32, compiled=False, **options)
        run = prepare(
            Request(
                source=folder, data=[tokens(folder / "train.bin")], out=tmp_path / "run", decay="uniform",
                steps_total=options.get("total", 9), settings={"per_device_train_batch_size": 4},
                allow_data_shift=True,
            )
        )  # fmt: skip
        run.train()
        return run

    return made


@pytest.mark.parametrize(("bias", "old"), [(True, False), (False, False), (True, True), (False, True)])
def test_nanogpts_network_and_optimizer_take_it_bit_for_bit(continued, tmp_path, bias, old):
    run = continued(bias=bias, old=old)
    said = export(run.folder, tmp_path / "ckpt.pt")
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    arguments = content["model_args"]
    network = NanoGPT(arguments, old)
    assert list(content["model"]) == list(network.state_dict())
    network.load_state_dict(content["model"])
    optimizer = network.optimizer(content["config"], old)
    optimizer.load_state_dict(content["optimizer"])
    assert content["iter_num"] == 9
    assert content["config"]["lr_decay_iters"] == content["config"]["max_iters"] == 9
    assert content["config"]["device"] == "cpu", "what only the source knew stays"
    assert content["best_val_loss"] == 1e9
    assert any("not evaluated on val.bin" in sentence for sentence in said)
    assert any("before June 2023" in sentence for sentence in said) == old

    ours, back = run.trainer, read_foreign(tmp_path / "ckpt.pt")
    weights = back.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in ours.model.state_dict().items())
    names = {p: name for name, p in ours.model.named_parameters()}
    for parameter, state in ours.optimizer.optimizer.state.items():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(back.moments[names[parameter]][key], state[key]), (names[parameter], key)
    assert back.step == 9
    assert back.settings.values["learning_rate"] == 1e-2
    batch = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 16)))
    ours.model.eval()
    torch.testing.assert_close(network(batch), ours.model(batch).logits)
    group, (rate,) = optimizer.param_groups[0], set(ours.lr_scheduler.get_last_lr())
    assert (group["lr"], group["weight_decay"]) == (rate, 0.1)


def test_the_best_loss_on_val_bin_goes_with_it(tmp_path):
    folder, source = tmp_path / "data", tmp_path / "nano"
    folder.mkdir()
    source.mkdir()
    tokens(folder / "train.bin")
    np.random.default_rng(2).integers(0, 256, 1000).astype(np.uint16).tofile(folder / "val.bin")
    nano_run(source / "ckpt.pt", bias=True, dtype=torch.float32)
    request = Request(source=source, data=[folder], out=tmp_path / "run", decay="uniform", steps_total=9)
    result = prepare(request).train()
    export(tmp_path / "run", tmp_path / "new.pt")
    best = torch.load(tmp_path / "new.pt", weights_only=True)["best_val_loss"]
    assert float(best) == pytest.approx(min(result.held_out_before["loss"], result.held_out_after["loss"]))


def test_the_weights_alone_are_those_of_the_checkpoint(text, tmp_path):
    begin(tiny_recipe(text), tmp_path / "run").train()
    result = invoke("export", tmp_path / "run", tmp_path / "weights.safetensors")
    assert result.exit_code == 0, result.output
    assert "checkpoint-4" in result.stderr
    saved, ours = (
        load_file(p) for p in (tmp_path / "weights.safetensors", tmp_path / "run/checkpoint-4/model.safetensors")
    )
    assert saved.keys() == ours.keys()
    assert all(torch.equal(saved[name], ours[name]) for name in ours)
    export(tmp_path / "run" / "checkpoint-2", tmp_path / "earlier.safetensors")
    assert not torch.equal(load_file(tmp_path / "earlier.safetensors")["lm_head.weight"], ours["lm_head.weight"])


def test_what_nanogpt_cannot_hold_is_refused_and_nothing_is_written(text, tmp_path):
    begin(tiny_recipe(text), tmp_path / "run").train()
    before = sorted(tmp_path.rglob("*"))
    for source, out, words in (
        ("run", "ckpt.pt", "this is a LlamaForCausalLM: name a file that ends in .safetensors"),
        ("run", "weights.bin", "ends in neither .pt nor .safetensors"),
        ("run", "run/specdiag_train.toml.pt/x.pt", "there is no folder"),
    ):
        with pytest.raises(UsageError, match=words):
            export(tmp_path / source, tmp_path / out)
    with pytest.raises(SourceError, match="holds no checkpoint-N and no weights"):
        export(tmp_path, tmp_path / "ckpt.pt")
    (tmp_path / "there.pt").touch()
    with pytest.raises(UsageError, match=r"there\.pt exists: name a new file"):
        export(tmp_path / "run", tmp_path / "there.pt")
    (tmp_path / "there.pt").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_gpt2_of_another_shape_is_refused(tmp_path):
    for option, words in (({"n_inner": 50}, "n_inner"), ({"activation_function": "relu"}, "activation_function"),
                          ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"), ({"embd_pdrop": 0.3}, "embd_pdrop")):  # fmt: skip
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=8, **option)
        with pytest.raises(UsageError, match=words):
            network_of(transformers.GPT2LMHeadModel(config))


def test_a_run_by_a_recipe_is_written_and_says_where_decays_differ(text, tmp_path):
    model = {"model_type": "nanogpt", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 256}
    run = begin(tiny_recipe(text, model=model), tmp_path / "run")
    run.train()
    said = export(tmp_path / "run", tmp_path / "ckpt.pt")
    back = read_foreign(tmp_path / "ckpt.pt")
    assert back.step == 4
    assert all(torch.equal(back.model.state_dict()[n], t) for n, t in run.trainer.model.state_dict().items())
    own = {name for group in run.trainer.optimizer.param_groups if group["weight_decay"] for p in group["params"]
           for name, q in run.trainer.model.named_parameters() if p is q}  # fmt: skip
    matrices = {name for name, p in run.trainer.model.named_parameters() if p.ndim > 1}
    assert any("which nanoGPT's optimizer does." in sentence for sentence in said) == bool(matrices - own)
