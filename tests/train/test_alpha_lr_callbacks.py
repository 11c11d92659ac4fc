"""AlphaLR in the Trainers of transformers and Lightning: attached, beside AlphaDecay, saved, resumed."""

import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from live_models import Decoder, Q, alike, weights
from plain_run import decoder_trainer
from safetensors.torch import load_file

from specdiag.live.attaching import decays_in_force, rates_in_force
from specdiag.train import AlphaDecayCallback, AlphaLRCallback, LightningAlphaLRCallback

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
]


def final(folder):
    return load_file(folder / "checkpoint-6" / "model.safetensors")


def test_in_a_trainer_a_resumed_run_is_the_whole_one(tmp_path):
    def callbacks():
        return AlphaLRCallback(every=4, blend=3), AlphaDecayCallback(every=4, measure_first=True)

    whole = callbacks()
    decoder_trainer(tmp_path / "a", *whole).train()
    assert whole[0].decay.ratios[Q] != 1
    assert whole[0].decay.ratios["lm_head.weight"] == 5
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed = callbacks()
    decoder_trainer(tmp_path / "b", *resumed).train(resume_from_checkpoint=True)
    assert alike(final(tmp_path / "a"), final(tmp_path / "b"))
    state = json.loads((tmp_path / "b" / "checkpoint-6" / "trainer_state.json").read_text())["stateful_callbacks"]
    assert state["AlphaLRCallback"]["attributes"]["saved"]["settings"]["blend"] == 3
    assert resumed[0].decay.ratios == whole[0].decay.ratios


def test_the_trainers_schedule_is_untouched(tmp_path):
    plain, ours = decoder_trainer(tmp_path / "a"), decoder_trainer(tmp_path / "b", AlphaLRCallback(blend=1))
    for trainer in (plain, ours):
        trainer.train()
    rates = [[row["learning_rate"] for row in t.state.log_history if "learning_rate" in row] for t in (plain, ours)]
    assert rates[0] == rates[1]
    assert not alike(weights(plain.model), weights(ours.model))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Decoder()

    def training_step(self, batch, batch_idx):
        torch.manual_seed(self.trainer.global_step)
        return self.net(torch.randint(80, (2, 8))).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def lightning_run(folder, steps, path=None):
    callback, module = LightningAlphaLRCallback(every=2, blend=2), Module()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[callback, ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)],
    )  # fmt: skip
    seen = []
    rates = dict.fromkeys(module.parameters())
    module.on_before_optimizer_step = lambda optimizer: seen.append(rates_in_force(optimizer))
    trainer.fit(module, torch.utils.data.DataLoader([0] * 3), ckpt_path=path, weights_only=False)
    assert len(rates) == len(seen[0])
    assert set(decays_in_force(trainer.optimizers[0]).values()) == {0.1}
    return callback, module


def test_in_lightning_a_resumed_run_is_the_whole_one(tmp_path):
    whole, module = lightning_run(tmp_path / "a", 6)
    assert whole.decay.ratios["net." + Q] != 1
    resumed, other = lightning_run(tmp_path / "a", 6, tmp_path / "a" / "step=3.ckpt")
    assert resumed.decay.ratios == whole.decay.ratios
    assert alike(weights(module), weights(other))
