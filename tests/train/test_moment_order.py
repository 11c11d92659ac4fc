"""The moments of a checkpoint belong to the parameters that they are given to."""

import re

import pytest
import torch
from foreign_programs import (
    batches,
    llama,
    next_token_loss,
    train,
)
from plain_run import library_text, plain_trainer

from specdiag.train.checkpoints.moment_order import check_order

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


@pytest.fixture(scope="module")
def trained():
    """A small run, the moments by name, and the gradients of other batches."""
    model = llama(num_hidden_layers=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(optimizer, next_token_loss(model), batches(60))
    moments = {name: optimizer.state[p] for name, p in model.named_parameters()}
    for batch in batches(8, seed=1):
        next_token_loss(model)(batch).backward()
    return model, moments, {name: p.grad for name, p in model.named_parameters()}


def exchanged(moments, one, other):
    names = {name: name.replace(one, other) for name in moments if one in name}
    names |= {after: before for before, after in names.items()}
    return {name: moments[names.get(name, name)] for name in moments}


def test_moments_at_their_own_parameters_pass(trained):
    model, moments, gradients = trained
    assert check_order(model, moments, gradients) is None
    assert check_order(model, {}, gradients) is None


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            "self_attn.q_proj",
            "self_attn.o_proj",
            r"q_proj\.weight and model\.layers\.#\.self_attn\.o_proj\.weight|o_proj.*q_proj",
        ),
        ("layers.0.", "layers.2.", "layers 0 and 2 change places"),
        ("layers.0.", "layers.1.", "layers 0 and 1 change places"),
    ],
)
def test_an_exchange_of_one_shape_is_flagged(trained, one, other, words):
    model, moments, gradients = trained
    said = check_order(model, exchanged(moments, one, other), gradients)
    assert said is not None
    assert said.startswith("The second moments may lie at the wrong parameters")
    assert re.search(words, said), said


def test_shuffled_moments_are_flagged(trained):
    model, moments, gradients = trained
    names = [name for name in moments if "self_attn" in name]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = moments | {name: moments[names[i]] for name, i in zip(names, order, strict=True)}
    assert check_order(model, mixed, gradients) is not None


def test_a_trainers_own_checkpoint_passes(tmp_path):
    text = library_text(tmp_path)
    trainer = plain_trainer(tmp_path / "run", text, tmp_path, steps=20)
    trainer.train()
    model, state = trainer.model, trainer.optimizer.state
    moments = {name: state[p] for name, p in model.named_parameters()}
    model.zero_grad()
    for i in range(8):
        block = torch.as_tensor(trainer.train_dataset[i]["input_ids"])[None]
        model(input_ids=block, labels=block).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert check_order(model, moments, gradients) is None
    swapped = exchanged(moments, "self_attn.q_proj", "self_attn.o_proj")
    assert "change places" in (check_order(model, swapped, gradients) or "")
