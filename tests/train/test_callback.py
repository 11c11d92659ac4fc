"""AlphaDecay in a transformers Trainer: attached, stepped, saved, resumed."""

import json
import shutil

import msgspec
import pytest
import torch
import transformers
from command import python
from live_models import ForTrainer, Q, alike, decays_of_a_step
from plain_run import decoder_trainer

import specdiag
from specdiag import UsageError
from specdiag.train import AlphaDecayCallback, DecayPlanCallback

pytestmark = pytest.mark.usefixtures("one_thread")


def final(folder):
    from safetensors.torch import load_file

    return load_file(folder / "checkpoint-6" / "model.safetensors")


def state_of(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())


def test_one_line_and_a_plain_trainer_can_go_on_from_it(tmp_path):
    seen = {}

    class Reading(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.update(live=decays_of_a_step(kwargs["optimizer"].optimizer, trainer.model))

    callback = AlphaDecayCallback(every=2)
    trainer = decoder_trainer(tmp_path, callback, Reading())
    trainer.train()
    seen = seen["live"]
    assert callback.decay.ratios[Q] != 1.0
    assert seen[Q] == pytest.approx(0.1 * callback.decay.ratios[Q])
    assert seen["norm.weight"] == 0.0
    assert len(trainer.optimizer.param_groups) == 2
    saved = torch.load(tmp_path / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert [len(group["params"]) for group in saved["param_groups"]] == [14, 4]
    decoder_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("mode", ["round-robin", "background"])
def test_interrupted_equals_uninterrupted(tmp_path, mode):
    decoder_trainer(tmp_path / "a", AlphaDecayCallback(every=4, mode=mode)).train()
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    resumed = AlphaDecayCallback(every=4, mode=mode)
    decoder_trainer(tmp_path / "b", resumed).train(resume_from_checkpoint=True)
    assert alike(final(tmp_path / "a"), final(tmp_path / "b"))
    states = [state_of(tmp_path / run, 6)["stateful_callbacks"]["AlphaDecayCallback"] for run in "ab"]
    assert states[0] == states[1]
    assert states[0]["attributes"]["saved"]["step"] == 5
    assert 0 < resumed.seconds < 60


def test_with_all_ratios_1_it_changes_no_bit(tmp_path):
    decoder_trainer(tmp_path / "plain").train()
    decoder_trainer(tmp_path / "ours", AlphaDecayCallback(s1=1.0, s2=1.0, every=2)).train()
    assert alike(final(tmp_path / "plain"), final(tmp_path / "ours"))
    optimizers = [torch.load(tmp_path / run / "checkpoint-6" / "optimizer.pt") for run in ("plain", "ours")]
    torch.testing.assert_close(optimizers[0], optimizers[1], rtol=0, atol=0)


def test_a_plain_run_goes_on_with_it_from_a_first_sweep(tmp_path):
    decoder_trainer(tmp_path, steps=3).train()
    assert "AlphaDecayCallback" not in state_of(tmp_path, 3)["stateful_callbacks"]
    callback = AlphaDecayCallback(every=500)
    trainer = decoder_trainer(tmp_path, callback)
    trainer.create_optimizer()
    trainer.train(resume_from_checkpoint=True)
    assert max(callback.decay.ratios.values()) == 3.0
    assert "AlphaDecayCallback" in state_of(tmp_path, 6)["stateful_callbacks"]


def test_restoring_callbacks_from_the_checkpoint_brings_their_settings(tmp_path):
    decoder_trainer(tmp_path, AlphaDecayCallback(every=2, s2=5.0), steps=3).train()
    trainer = decoder_trainer(tmp_path, AlphaDecayCallback(), restore_callback_states_from_checkpoint=True)
    trainer.train(resume_from_checkpoint=True)
    (callback,) = [c for c in trainer.callback_handler.callbacks if isinstance(c, AlphaDecayCallback)]
    assert callback.decay.state_dict()["settings"]["every"] == 2
    assert max(callback.decay.ratios.values()) == 5.0


def test_what_the_trainer_drops_without_a_word_is_said(tmp_path, caplog):
    decoder_trainer(tmp_path, steps=3).train()
    (tmp_path / "checkpoint-3" / "scheduler.pt").unlink()
    decoder_trainer(tmp_path, AlphaDecayCallback()).train(resume_from_checkpoint=True)
    assert "momentum starts from zero" in caplog.text


def test_another_weight_decay_on_resuming_is_said(tmp_path, caplog):
    decoder_trainer(tmp_path, steps=3).train()
    decoder_trainer(tmp_path, AlphaDecayCallback(), weight_decay=0.3).train(resume_from_checkpoint=True)
    assert "weight_decay=0.3 is not used: the resumed optimizer brings its own, 0 and 0.1" in caplog.text


def test_the_default_decay_of_the_trainer_is_none_at_all(tmp_path):
    with pytest.warns(UserWarning, match="all 12 matrices is 0"):
        decoder_trainer(tmp_path, AlphaDecayCallback(), weight_decay=0.0, steps=1).train()


def test_decay_that_rounding_undoes_is_said(tmp_path):
    callback = AlphaDecayCallback(measure_first=True)
    trainer = decoder_trainer(tmp_path, callback, steps=1, learning_rate=1e-4)
    trainer.model.to(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"Weights are bfloat16 .* rounding undoes it, or part of it"):
        trainer.train()
    assert max(callback.decay.ratios.values()) == 3.0
    decoder_trainer(tmp_path, AlphaDecayCallback(), steps=1, learning_rate=1e-4, bf16=True).train()


def test_two_of_them_are_refused(tmp_path):
    with pytest.raises(UsageError, match="several AlphaDecayCallbacks"):
        decoder_trainer(tmp_path, AlphaDecayCallback(), AlphaDecayCallback(), steps=1).train()


def test_without_transformers_the_extra_is_named():
    code = """
import sys
sys.modules["transformers"] = None
import specdiag
try:
    import specdiag.train
    specdiag.train.AlphaDecayCallback
except specdiag.MissingExtraError as error:
    assert "pip install transformers accelerate" in str(error), error
else:
    raise SystemExit("no error")
"""
    python(code)


def test_a_fixed_plan_acts_in_the_trainer(tmp_path):
    model = ForTrainer()
    plan = specdiag.recommend(model, roles="q")
    plan = msgspec.structs.replace(plan, entries=tuple(msgspec.structs.replace(e, ratio=2.0) for e in plan.entries))
    path = plan.save(tmp_path / "plan.json")
    trainer = decoder_trainer(tmp_path / "run", DecayPlanCallback(path))
    seen = []
    trainer.add_callback(Watch(lambda: seen.append(decays_of_a_step(trainer.optimizer.optimizer, trainer.model))))
    trainer.train()
    assert {n for n, decay in seen[0].items() if decay == pytest.approx(0.2)} == {e.name for e in plan.entries}
    assert {decay for n, decay in seen[0].items() if n not in plan.ratios} <= {0.0, 0.1}
    groups = torch.load(tmp_path / "run" / "checkpoint-6" / "optimizer.pt", weights_only=True)["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


class Watch(transformers.TrainerCallback):
    """Calls once, before the first step."""

    def __init__(self, call):
        self.call = call

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.call()
