"""Hidden tokens, which stay the same when a run goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from task_data import BLOCK, VOCABULARY, resumed_is_whole, small, trainer

from specdiag import UsageError
from specdiag.train.data.tokens import load_data
from specdiag.train.tasks.masked import load_masked

pytestmark = pytest.mark.usefixtures("one_thread")


def masked(text, tokens, cache, **options):
    known = {"tokenizer": tokens, "vocabulary": VOCABULARY, "block_size": BLOCK, "seed": 7, "cache": cache}
    return load_masked([text], **known | options)


def test_an_interrupted_run_hides_the_tokens_that_the_whole_one_did(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    epoch = -(-len(data.train) // 8)

    def make(folder):
        return trainer(folder, small("MaskedLM"), data, steps=epoch + 4, save_steps=epoch + 2)

    assert resumed_is_whole(tmp_path, make, steps=epoch + 4, at=epoch + 2)  # in the second epoch


def test_with_the_generator_of_torch_it_would_not(tmp_path, text, tokenizer):
    """Why the collator of transformers is not taken as it is."""
    ours = masked(text, tokenizer, tmp_path)
    data = replace(ours, collate=transformers.DataCollatorForLanguageModeling(tokenizer))

    def make(folder):
        return trainer(folder, small("MaskedLM"), data, steps=4, save_steps=2)

    assert not resumed_is_whole(tmp_path, make, steps=4, at=2)


def test_training_masks_follow_from_the_batch_and_the_seed(tmp_path, text, tokenizer):
    data, other = masked(text, tokenizer, tmp_path), masked(text, tokenizer, tmp_path, seed=8)
    examples = [data.train[i] for i in range(8)]
    assert set(examples[0]) == {"input_ids"}
    first, again = data.collate(examples), data.collate(examples)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(data.collate(examples[::-1])["labels"].flip(0), first["labels"])
    assert not torch.equal(other.collate(examples)["labels"], first["labels"])
    assert data.fingerprint.differences(other.fingerprint) == ["seed 7 became 8"]


def test_what_is_hidden_is_distributed_as_by_transformers(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    plain = load_data([text], tokenizer=tokenizer, vocabulary=VOCABULARY, block_size=BLOCK, seed=0, cache=tmp_path)
    torch.manual_seed(0)
    theirs = transformers.DataCollatorForLanguageModeling(tokenizer)

    def shares(collate, train):
        parts = []
        for start in range(0, len(train) - 8, 8):
            batch = collate([{"input_ids": train[i]["input_ids"]} for i in range(start, start + 8)])
            original = torch.stack([train[i]["input_ids"] for i in range(start, start + 8)])
            hidden = batch["labels"] != -100
            assert torch.equal(batch["labels"][hidden], original[hidden])
            assert torch.equal(batch["input_ids"][~hidden], original[~hidden])
            as_mask = batch["input_ids"][hidden] == tokenizer.mask_token_id
            kept = batch["input_ids"][hidden] == original[hidden]
            parts.append((hidden.float().mean(), as_mask.float().mean(), kept.float().mean()))
        return np.mean(parts, axis=0)

    np.testing.assert_allclose(shares(data.collate, data.train), [0.15, 0.8, 0.1], atol=0.02)
    np.testing.assert_allclose(shares(theirs, plain.train), [0.15, 0.8, 0.1], atol=0.02)


def test_held_out_masks_are_fixed_and_of_one_number(tmp_path, text, tokenizer):
    data = masked(text, tokenizer, tmp_path)
    other = masked(text, tokenizer, tmp_path, seed=8)
    for i in range(len(data.held_out)):
        block, again, elsewhere = data.held_out[i], data.held_out[i], other.held_out[i]
        for same in (again, elsewhere):
            assert all(torch.equal(block[name], same[name]) for name in block)
        assert int((block["labels"] != -100).sum()) == round(0.15 * BLOCK)
    collated = data.collate([data.held_out[0], data.held_out[1]])
    assert torch.equal(collated["labels"][1], data.held_out[1]["labels"])


def test_special_tokens_are_hidden_last(tmp_path, tokenizer):
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": ""}\n{"text": "x"}\n' * 200)  # two of three tokens are ends
    data = masked(path, tokenizer, tmp_path, block_size=9)
    for i in range(len(data.held_out)):
        labels = data.held_out[i]["labels"]
        assert not torch.isin(labels, torch.tensor(tokenizer.all_special_ids)).any()
        assert int((labels != -100).sum()) == 1
    path.write_text('{"text": ""}\n' * 100)
    nothing_else = masked(path, tokenizer, tmp_path, block_size=9).held_out[0]
    assert int((nothing_else["labels"] != -100).sum()) == 1


def test_the_held_out_loss_is_a_mean_over_hidden_tokens(tmp_path, text, tokenizer):
    """In batches of three, the last of which is smaller."""
    data = masked(text, tokenizer, tmp_path)
    assert len(data.held_out) % 3
    model = small("MaskedLM")
    made = trainer(tmp_path / "run", model, data, steps=1, save_steps=9, per_device_eval_batch_size=3)
    found = made.evaluate()["eval_loss"]
    assert made.evaluate()["eval_loss"] == found
    losses = []
    with torch.no_grad():
        for i in range(len(data.held_out)):
            block = data.held_out[i]
            logits = model.eval()(block["input_ids"][None]).logits[0].double()
            hidden = block["labels"] != -100
            losses += torch.nn.functional.cross_entropy(logits[hidden], block["labels"][hidden], reduction="none")
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_masked_refusals(tmp_path, text, tokenizer, words):
    for options, said in (
        ({"tokenizer": None}, "needs a tokenizer with a mask token, and there is no tokenizer"),
        ({"tokenizer": words}, "needs a tokenizer with a mask token, and .* has no mask token"),
        ({"vocabulary": 300}, "the tokenizer has 400 tokens and the model 300: it is another model's"),
        ({"probability": 1.0}, "with a probability between 0 and 1, not 1.0"),
    ):
        with pytest.raises(UsageError, match=said):
            masked(text, tokenizer, tmp_path, **options)
    assert masked(text, tokenizer, tmp_path, probability=0.3).fingerprint.differences(
        masked(text, tokenizer, tmp_path).fingerprint
    ) == ["task masked 0.3 became masked 0.15"]
    plain = load_data([text], tokenizer=tokenizer, vocabulary=VOCABULARY, block_size=BLOCK, seed=7, cache=tmp_path)
    assert plain.fingerprint.differences(masked(text, tokenizer, tmp_path).fingerprint) == [
        "task none became masked 0.15"
    ]
    assert len(list(tmp_path.glob("tokens-*.cache"))) == 1
