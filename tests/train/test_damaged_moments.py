"""A saved Adam with values that no optimizer writes is refused in a sentence, in each form that programs save it in."""

import math
import warnings
from copy import deepcopy

import pytest
import torch
from distributed_files import change_metadata, save_one
from foreign_programs import batches, llama, next_token_loss, train
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from specdiag import SourceError
from specdiag.train.foreign.reading import read_foreign

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

NAME = "lm_head.weight"


@pytest.fixture(scope="module")
def trained():
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(optimizer, next_token_loss(model), batches(2))
    return model, optimizer


def saved(folder, model, optimizer, change=lambda state: None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = deepcopy(get_optimizer_state_dict(model, optimizer))
    change(state)
    model.config.save_pretrained(folder)
    save_one(folder, {"model": model.state_dict(), "optimizer": state})


def refused(trained, folder, change):
    saved(folder, *trained, change)
    with pytest.raises(SourceError) as caught:
        read_foreign(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (torch.tensor(math.nan), "has nan for step"),
        (torch.tensor(2.5), "has 2.5 for step"),
        (torch.tensor(-3.0), "has -3 for step"),
        (torch.ones(3), "has a tensor of shape (3,) for step"),
        ("three", "has 'three' for step"),
        (None, "has moments without a step"),
    ],
    ids=str,
)
def test_a_step_that_is_no_count(trained, tmp_path, step, said):
    def change(state):
        for own in state["state"].values():
            if step is None:
                del own["step"]
            else:
                own["step"] = step

    assert said in refused(trained, tmp_path, change)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("exp_avg", lambda m: m.int(), "stores exp_avg of lm_head.weight as int32"),
        ("exp_avg_sq", lambda m: m > 0, "stores exp_avg_sq of lm_head.weight as bool"),
        ("exp_avg", lambda m: m * math.nan, "has NaN or infinite values in exp_avg of lm_head.weight"),
        ("exp_avg_sq", lambda m: m + math.inf, "has NaN or infinite values in exp_avg_sq of lm_head.weight"),
        ("exp_avg_sq", lambda m: m - 1, "in exp_avg_sq of lm_head.weight, a mean of squares"),
    ],
)
def test_moments_that_are_none(trained, tmp_path, key, change, said):
    def changed(state):
        state["state"][NAME] = {**state["state"][NAME], key: change(state["state"][NAME][key])}

    assert said in refused(trained, tmp_path, changed)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("lr", "fast", "has 'fast' for lr, which is a number from 0 on"),
        ("lr", math.nan, "has nan for lr"),
        ("eps", "tiny", "has 'tiny' for eps"),
        ("weight_decay", None, "has None for weight_decay"),
        ("weight_decay", -0.5, "has -0.5 for weight_decay"),
        ("betas", 0.9, "has 0.9 for betas, which is two numbers from 0 to below 1"),
        ("betas", (0.9, 1.5), "for betas"),
        ("decoupled_weight_decay", "no", "has 'no' for decoupled_weight_decay, which is true or false"),
    ],
)
def test_options_that_no_adam_has(trained, tmp_path, option, value, said):
    assert said in refused(trained, tmp_path, lambda state: state["param_groups"][0].update({option: value}))


def test_lists_that_hold_each_other_take_no_time(trained, tmp_path):
    saved(tmp_path, *trained)
    value: list[object] = [0]
    for _ in range(60):
        value = [value, value]
    torch.save(value, tmp_path / "lists")

    def change(metadata):
        (index,) = (i for i in metadata.storage_data if i.fqn == "optimizer.param_groups.0.eps")
        metadata.storage_data[index].relative_path = "lists"
        metadata.storage_data[index].offset = 0
        metadata.storage_data[index].length = (tmp_path / "lists").stat().st_size

    change_metadata(tmp_path, change)
    with pytest.raises(SourceError, match="has a list for eps"):
        read_foreign(tmp_path)


def test_two_names_of_one_weight(trained, tmp_path):
    model = llama(tie_word_embeddings=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(optimizer, next_token_loss(model), batches(2))

    def change(state):
        state["state"][NAME] = state["state"]["model.embed_tokens.weight"]
        state["param_groups"][0]["params"].append(NAME)

    said = refused((model, optimizer), tmp_path, change)
    assert "has moments of model.embed_tokens.weight under two of its names" in said
