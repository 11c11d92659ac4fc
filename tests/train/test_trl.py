"""AlphaDecay in TRL's SFTTrainer: a transformers Trainer with its own defaults, collator and checkpoints."""

import shutil
import sysconfig
from pathlib import Path

import msgspec
import pytest
import torch
from datasets import Dataset
from live_models import alike, decays_of_a_step, weights
from test_callback import state_of
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

import specdiag
from specdiag.train import AlphaDecayCallback, DecayPlanCallback

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # TRL 1.16 turns it on by the name that it had before transformers 5.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def text():
    """Lines of Python's own library."""
    lines = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text().splitlines()
    return Dataset.from_dict({"text": [line for line in lines if len(line) > 40][:64]})


def of_bytes():
    """A tokenizer of 256 bytes."""
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": 258, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, attention_dropout=0.1, **sizes, **tokens)).to(dtype)


def a_trainer(folder, text, *callbacks, model=None, **options):
    arguments = SFTConfig(
        str(folder),
        save_steps=3,
        logging_steps=1,
        max_length=32,
        report_to=[],
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        per_device_train_batch_size=2,
        lr_scheduler_type="constant",
        **{"learning_rate": 1e-3, "weight_decay": 0.1, "max_steps": 6} | options,
    )
    return SFTTrainer(
        model or llama(), arguments, train_dataset=text, processing_class=of_bytes(), callbacks=list(callbacks)
    )


def test_interrupted_equals_uninterrupted(tmp_path, text):
    whole = a_trainer(tmp_path / "a", text, AlphaDecayCallback(every=4))
    whole.train()
    shutil.copytree(tmp_path / "a" / "checkpoint-3", tmp_path / "b" / "checkpoint-3")
    callback = AlphaDecayCallback(every=4)
    resumed = a_trainer(tmp_path / "b", text, callback)
    resumed.train(resume_from_checkpoint=True)
    assert alike(weights(whole.model), weights(resumed.model))
    states = [state_of(tmp_path / run, 6)["stateful_callbacks"]["AlphaDecayCallback"] for run in "ab"]
    assert states[0] == states[1]
    assert states[0]["attributes"]["saved"]["step"] == 5
    assert max(callback.decay.ratios.values()) == 3.0
    assert len(callback.decay.ratios) == 14


def test_a_plan_acts_in_it_and_again_when_it_resumes(tmp_path, text):
    class Reading(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append(decays_of_a_step(kwargs["optimizer"].optimizer, kwargs["model"]))

    seen = []
    plan = specdiag.recommend(llama(), roles="q")
    plan = msgspec.structs.replace(plan, entries=tuple(msgspec.structs.replace(e, ratio=2.0) for e in plan.entries))
    path = plan.save(tmp_path / "plan.json")
    a_trainer(tmp_path, text, DecayPlanCallback(path), Reading(), max_steps=3).train()
    a_trainer(tmp_path, text, DecayPlanCallback(path), Reading()).train(resume_from_checkpoint=True)
    for decays in seen:
        assert {name for name, decay in decays.items() if decay == pytest.approx(0.2)} == set(plan.ratios)
        assert {decay for name, decay in decays.items() if name not in plan.ratios} == {0.0, 0.1}
    assert len(seen) == len(plan.ratios) == 2


def test_decay_that_rounding_undoes_is_said(tmp_path, text):
    callback = AlphaDecayCallback(measure_first=True)
    with pytest.warns(UserWarning, match=r"Weights are bfloat16 .* rounding undoes it, or part of it"):
        a_trainer(tmp_path, text, callback, model=llama(torch.bfloat16), learning_rate=2e-5, max_steps=1).train()
    assert max(callback.decay.ratios.values()) == 3.0
