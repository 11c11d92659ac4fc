"""Whole runs that learn hidden tokens, then labels, and go on after an interruption."""

import os
import signal

import numpy as np
import pytest
import transformers
from msgspec.structs import replace
from task_data import BLOCK, VOCABULARY, comments

from specdiag import UsageError
from specdiag.train.recipe import Recipe
from specdiag.train.runs.begin import begin
from specdiag.train.runs.config import load_config
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.tasks.loading import block_size

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def kept_tokenizer(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(task, data, kept_tokenizer, **options):
    settings = {"learning_rate": 5e-3, "per_device_train_batch_size": 8, "save_steps": 2, "logging_steps": 1, "seed": 3}
    model = {
        "model_type": "roberta", "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "intermediate_size": 96, "max_position_embeddings": BLOCK + 2, "pad_token_id": 1,
    }  # fmt: skip
    given = {"tokenizer": kept_tokenizer, "model": model, "steps_total": 4, "decay": "alphadecay"} | options
    return Recipe(
        title="Tiny", source="this test", task=task, data=(str(data),), settings=settings | {"use_cpu": True}, **given
    )


def test_a_masked_model_begins_and_learns_to_classify_and_both_go_on_as_if_never_stopped(
    tmp_path, text, kept_tokenizer
):
    def cut_off_and_whole(made, name):
        begin(made, tmp_path / f"{name}-whole").train()
        cut = begin(made, tmp_path / name)
        cut.train(on_log=lambda step, _: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None)
        result = prepare(Request(source=tmp_path / name)).train()
        files = [tmp_path / folder / "checkpoint-4" / "model.safetensors" for folder in (name, f"{name}-whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
        return result.held_out_after

    masked_loss = cut_off_and_whole(recipe("masked-lm", text, kept_tokenizer), "masked")  # the longest block that fits
    assert masked_loss["loss"] < np.log(VOCABULARY) + 0.5
    assert load_config(tmp_path / "masked").fingerprint.block_size == BLOCK
    start = {"start": str(tmp_path / "masked" / "checkpoint-4"), "model": {}}
    lines = recipe("classification", comments(tmp_path), kept_tokenizer, block_size=BLOCK, **start)
    found = cut_off_and_whole(lines, "lines")
    assert {"loss", "accuracy", "matthews"} <= set(found)
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "lines" / "checkpoint-4")
    assert saved.id2label == {0: "code", 1: "comment"}


def test_positions_of_roberta_begin_after_the_padding(text, kept_tokenizer):
    config = transformers.RobertaConfig(max_position_embeddings=514)
    made = recipe("masked-lm", text, kept_tokenizer)
    assert block_size(made, config) == 512
    assert block_size(made, transformers.BertConfig(max_position_embeddings=514)) == 514
    with pytest.raises(UsageError, match="block_size=513 must be 2 to 512"):
        block_size(replace(made, block_size=513), config)
