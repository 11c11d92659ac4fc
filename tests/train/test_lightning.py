"""AlphaDecay in a Lightning Trainer: attached, stepped, saved, resumed."""

import importlib
import json
import sys
import warnings
from pathlib import Path

import lightning
import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from command import call, python
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from live_models import Decoder, alike, train, weights

import specdiag
from specdiag import UsageError
from specdiag.optim import AlphaDecay
from specdiag.train import LightningAlphaDecayCallback

Q = "net.layers.0.self_attn.q_proj.weight"
EPOCH = 3

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning 2.6 asks torch 2.13 in a way that torch is about to give up.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    # As resumed runs do.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    # What Lightning says on machines with more cores, and on those with a GPU.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
]


class Plainly:
    """Trains as live_models.train does: batches and dropout depend on the step number alone."""

    def __init__(self, **options):
        super().__init__()
        self.net = Decoder()
        self.options = {"lr": 1e-2, "weight_decay": 0.1} | options

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)
        return self.net(torch.randint(80, (2, 8))).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), **self.options)


class Module(Plainly, pl.LightningModule):
    pass


class Manual(Module):
    def __init__(self, **taking):
        super().__init__()
        self.automatic_optimization = False
        self.taking = taking

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers(**self.taking)
        self.manual_backward(loss)
        optimizer.step()
        optimizer.zero_grad()


class TwoOptimizers(Module):
    """Muon and AdamW, with what the callback's refusal says to do."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        muon = torch.optim.Muon([p for p in self.net.layers.parameters() if p.ndim == 2], weight_decay=0.1)
        taken = set(muon.param_groups[0]["params"])
        return muon, torch.optim.AdamW([p for p in self.parameters() if p not in taken])

    def on_train_start(self):
        self.decay = AlphaDecay(self, self.optimizers(), measure_first=True)

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        self.decay.step()
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def a_trainer(folder, *callbacks, steps=6, package=pl, **options):
    return package.Trainer(
        default_root_dir=folder,
        callbacks=list(callbacks),
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **options,
    )


def fit(module, folder, *callbacks, ckpt_path=None, **options):
    """The Trainer, after it has trained."""
    trainer = a_trainer(folder, *callbacks, **options)
    trainer.fit(module, torch.utils.data.DataLoader(range(EPOCH)), ckpt_path=ckpt_path)
    return trainer


def each_epoch(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_top_k=-1)


def test_it_is_the_plain_loop_with_alpha_decay(tmp_path):
    """Lightning computes the gradients within `optimizer.step`: ratios that came a step late would show."""
    module, callback = Module(), LightningAlphaDecayCallback(every=2)
    trainer = fit(module, tmp_path, callback)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    decay = AlphaDecay(model, optimizer, every=2)
    train(model, optimizer, 6, decay=decay)
    assert callback.decay.ratios == {f"net.{name}": ratio for name, ratio in decay.ratios.items()}
    assert max(decay.ratios.values()) == 3.0
    assert alike(weights(module.net), weights(model))
    torch.testing.assert_close(trainer.optimizers[0].state_dict(), optimizer.state_dict(), rtol=0, atol=0)


def test_with_all_ratios_1_it_changes_no_bit(tmp_path):
    plain, ours = Module(), Module()
    trainers = [
        fit(plain, tmp_path),
        fit(ours, tmp_path, LightningAlphaDecayCallback(s1=1.0, s2=1.0, every=2)),
    ]
    assert alike(weights(plain), weights(ours))
    states = [trainer.optimizers[0].state_dict() for trainer in trainers]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_ratios_change_their_parameters_by_the_predicted_decay_and_no_other(tmp_path):
    plain, ours = Module().double(), Module().double()
    before = weights(plain)
    callback = LightningAlphaDecayCallback(measure_first=True)
    fit(plain, tmp_path, steps=1)
    fit(ours, tmp_path, callback, steps=1)
    plain, ours, ratios = weights(plain), weights(ours), callback.decay.ratios
    assert len(ratios) == 12
    for name in before:
        expected = plain[name] - 1e-2 * 0.1 * (ratios.get(name, 1.0) - 1) * before[name]
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=1e-15 if name in ratios else 0)


def test_interrupted_equals_uninterrupted(tmp_path):
    whole, resumed = Module(), Module()
    callbacks = [LightningAlphaDecayCallback(every=4) for _ in range(2)]
    trainers = [fit(whole, tmp_path, callbacks[0], each_epoch(tmp_path))]
    saved = [(tmp_path / "step=6.ckpt").rename(tmp_path / "whole.ckpt")]
    with torch.no_grad():
        resumed.net.lm_head.weight.zero_()
    trainers.append(fit(resumed, tmp_path, callbacks[1], each_epoch(tmp_path), ckpt_path=tmp_path / "step=3.ckpt"))
    saved.append(tmp_path / "step=6.ckpt")
    assert callbacks[0].decay.ratios == callbacks[1].decay.ratios
    assert max(callbacks[0].decay.ratios.values()) == 3.0
    assert alike(weights(whole), weights(resumed))
    states = [trainer.optimizers[0].state_dict() for trainer in trainers]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    held = [torch.load(file, weights_only=True)["callbacks"]["LightningAlphaDecayCallback"] for file in saved]
    assert held[0] == held[1] == json.loads(json.dumps(held[0]))
    assert held[0]["step"] == 5


def test_a_plain_run_goes_on_with_it_and_then_without(tmp_path):
    fit(Module(), tmp_path, each_epoch(tmp_path), steps=3)
    callback = LightningAlphaDecayCallback()
    fit(Module(), tmp_path, callback, each_epoch(tmp_path), ckpt_path=tmp_path / "step=3.ckpt")
    assert max(callback.decay.ratios.values()) == 3.0  # all were measured before the first step
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint need to be provided"):
        trainer = fit(Module(), tmp_path, each_epoch(tmp_path), steps=9, ckpt_path=tmp_path / "step=6.ckpt")
    assert trainer.global_step == 9


def test_what_a_validation_loads_is_not_for_a_new_run(tmp_path):
    class Validating(Module):
        def validation_step(self, batch, batch_idx):
            pass

    fit(Module(), tmp_path, LightningAlphaDecayCallback(measure_first=True), each_epoch(tmp_path), steps=3)
    callback = LightningAlphaDecayCallback()
    trainer = a_trainer(tmp_path, callback, each_epoch(tmp_path), steps=1)
    loader = torch.utils.data.DataLoader(range(EPOCH))
    trainer.validate(Validating(), loader, ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    assert callback.state_dict()["step"] == 2
    trainer.fit(Module(), loader)
    assert callback.state_dict()["step"] == 0
    assert set(callback.decay.ratios.values()) == {1.0}


def test_accumulated_gradients_are_one_step(tmp_path):
    callback = LightningAlphaDecayCallback(every=2)
    trainer = fit(Module(), tmp_path, callback, accumulate_grad_batches=EPOCH, steps=2)
    assert trainer.fit_loop.total_batch_idx == 2 * EPOCH - 1
    assert callback.decay.state_dict()["step"] == 1
    assert max(callback.decay.ratios.values()) == 3.0


def test_manual_optimization(tmp_path):
    automatic, manual = Module(), Manual()
    for module in (automatic, manual):
        fit(module, tmp_path, LightningAlphaDecayCallback(every=2))
    assert alike(weights(automatic), weights(manual))
    with pytest.raises(UsageError, match=r"stepped past Lightning.*without use_pl_optimizer=False"):
        fit(Manual(use_pl_optimizer=False), tmp_path, LightningAlphaDecayCallback())


def test_several_optimizers_are_refused_and_the_advice_works(tmp_path):
    with pytest.raises(UsageError, match=r"TwoOptimizers has 2 optimizers, and this callback serves one: .*AlphaDecay"):
        fit(TwoOptimizers(), tmp_path, LightningAlphaDecayCallback())
    module = TwoOptimizers()
    fit(module, tmp_path, steps=6)
    assert max(module.decay.ratios.values()) == 3.0
    assert module.decay.state_dict()["step"] == 2


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LightningAlphaDecayCallback`"):
        fit(Module(), tmp_path, LightningAlphaDecayCallback(), LightningAlphaDecayCallback())


def test_an_exception_leaves_the_optimizer_as_it_was(tmp_path):
    class Failed(Exception):
        pass

    class Failing(Module):
        def training_step(self, batch, batch_idx):
            if self.trainer.global_step == 2:
                raise Failed
            return super().training_step(batch, batch_idx)

    module, callback = Failing(), LightningAlphaDecayCallback(measure_first=True)
    with pytest.raises(Failed):
        fit(module, tmp_path, callback)
    optimizer = module.optimizers().optimizer
    assert len(optimizer.param_groups) == 1
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert callback.state_dict()["step"] == 1
    assert max(callback.decay.ratios.values()) == 3.0


def test_steps_that_a_gradient_scaler_skips(tmp_path):
    class Recording(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.seen.append(pl_module.net.layers[0].self_attn.q_proj.weight.detach().clone())

    module, callback, recording = Module(), LightningAlphaDecayCallback(measure_first=True, every=4), Recording()
    before = weights(module)[Q]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34, backoff_factor=2.0**-24)
    fit(module, tmp_path, callback, recording, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)])
    moved = [not torch.equal(a, b) for a, b in zip([before, *recording.seen], recording.seen, strict=False)]
    assert moved == [False, True, True, True, True, True]
    assert callback.decay.state_dict()["step"] == 5
    assert max(callback.decay.ratios.values()) == 3.0


def test_decay_that_rounding_undoes_is_said(tmp_path):
    callback = LightningAlphaDecayCallback(measure_first=True)
    with pytest.warns(UserWarning, match=r"Weights are bfloat16 .* rounding undoes it"):
        fit(Module(lr=1e-4), tmp_path, callback, precision="bf16-true", steps=1)
    assert max(callback.decay.ratios.values()) == 3.0


def test_weights_in_float32_round_nothing_away(tmp_path):
    callback = LightningAlphaDecayCallback(measure_first=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(Module(lr=1e-4), tmp_path, callback, precision="bf16-mixed", steps=1)
    assert not [str(warning.message) for warning in seen if "rounding undoes it" in str(warning.message)]
    assert max(callback.decay.ratios.values()) == 3.0


def test_the_other_package_of_lightning(tmp_path, monkeypatch):
    class Other(Plainly, pytorch_lightning.LightningModule):
        pass

    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    monkeypatch.delitem(sys.modules, "specdiag.train.callbacks.lightning")
    alone = importlib.import_module("specdiag.train.callbacks.lightning").LightningAlphaDecayCallback
    assert not issubclass(alone, pl.Callback)
    assert issubclass(LightningAlphaDecayCallback, pl.Callback)
    for kind in (alone, LightningAlphaDecayCallback):
        callback = kind(measure_first=True)
        assert isinstance(callback, pytorch_lightning.Callback)
        fit(Other(), tmp_path, callback, package=pytorch_lightning, steps=1)
        assert max(callback.decay.ratios.values()) == 3.0


def test_a_fixed_plan_needs_no_callback(tmp_path):
    plan = specdiag.recommend(Decoder(), weight_decay=0.1)

    class Planned(Module):
        def configure_optimizers(self):
            return torch.optim.AdamW(plan.param_groups(self), lr=1e-3)

    module = Planned()
    (optimizer,) = fit(module, tmp_path, steps=1).optimizers
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(module.net.named_parameters())
    assert {name: decays[named[name]] for name in plan.ratios} == {n: 0.1 * r for n, r in plan.ratios.items()}


def test_fabric_needs_no_callback():
    model = Decoder()
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    around, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1))
    with AlphaDecay(around, optimizer, measure_first=True) as decay:
        train(around, optimizer, 2, decay=decay)
    assert set(decay.ratios) <= set(weights(model))
    assert max(decay.ratios.values()) == 3.0


WORKER = """
import json, sys
import torch
import lightning
import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, {tests!r})
from live_models import Decoder
from specdiag.optim.rules import replicas
from specdiag.train import LightningAlphaDecayCallback

torch.set_num_threads(1)
measured = []
exponents = replicas.exponents
replicas.exponents = lambda stacks, basis: measured.extend(stacks) or exponents(stacks, basis)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Decoder()

    def training_step(self, batch, batch_idx):
        torch.manual_seed(2 * self.trainer.global_step + self.trainer.global_rank)
        return self.net(torch.randint(80, (2, 8))).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


class Sharded(Module):
    def configure_model(self):
        for layer in self.net.layers:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


found = {{}}
sharding = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
for name, module, strategy in (("ddp", Module(), "ddp"), ("fsdp", Sharded(), sharding)):
    callback = LightningAlphaDecayCallback(every=3, measure_first=True)
    options = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_steps=4, callbacks=[callback], **options)
    trainer.fit(module, torch.utils.data.DataLoader(range(8)))
    found[name] = {{"measured": len(measured), "ratios": callback.decay.ratios}}
    measured.clear()
open(sys.argv[1] + f"/{{trainer.global_rank}}.json", "w").write(json.dumps(found))
"""


def test_ranks_share_the_work_and_have_the_same_bits(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    done = call([sys.executable, str(script), str(tmp_path)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for found in first.values():
        assert found["measured"] == 6 + 6  # of 12 modules, all at first and then all within three steps
        assert max(found["ratios"].values()) == 3.0


def test_without_lightning_the_extra_is_named():
    code = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import specdiag
try:
    import specdiag.train
    specdiag.train.LightningAlphaDecayCallback
except specdiag.MissingExtraError as error:
    assert "pip install lightning" in str(error), error
else:
    raise SystemExit("no error")
"""
    python(code)
