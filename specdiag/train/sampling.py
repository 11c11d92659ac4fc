"""Lets a language model continue a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from specdiag.errors import ComputationError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPERATURE = 0.8


def check_beginning(text: str, task: str) -> None:
    """Check that a text can be continued.

    Args:
        text: beginning of the text.
        task: task of the model, as in a recipe.

    Raises:
        UsageError: the text is empty, or models of the task do not continue texts.
    """
    if not text:
        raise UsageError("sample= needs a text to continue")
    check_task(task)


def check_task(task: str) -> None:
    """Raise UsageError if models of a task do not continue texts."""
    if task != "causal-lm":
        raise UsageError(f"a model of the task {task} does not continue texts: leave out sample=")


def sample(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, text: str, *, tokens: int = 100, seed: int = 0
) -> str:
    """Continue a text with a language model, at temperature 0.8.

    Args:
        model: a causal language model of transformers.
        tokenizer: tokenizer of the model; None if bytes are tokens.
        text: beginning of the text.
        tokens: largest number of tokens to add.
        seed: seed of the random draws.

    Returns:
        The text with its continuation.

    Raises:
        UsageError: the text is empty.
        ComputationError: the model's scores are not finite.
    """
    ids = list(text.encode()) if tokenizer is None else tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError("sample= needs a text to continue")
    network = cast("Any", model)
    longest = int(getattr(network.config, "max_position_embeddings", len(ids) + tokens))
    ids = ids[-max(1, longest - tokens) :]
    prompt = torch.tensor([ids], device=network.device)
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        if not bool(network(prompt).logits[:, -1].isfinite().all()):
            raise ComputationError("the text cannot be continued: the model's scores of the next token are not finite")
        out = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(tokens, longest - len(ids)),
            do_sample=True,
            temperature=_TEMPERATURE,
            pad_token_id=0,
        )
    model.train(was_training)
    added = cast("list[int]", out[0, len(ids) :].tolist())
    return text + (_text(added) if tokenizer is None else cast("str", tokenizer.decode(added)))


def _text(tokens: list[int]) -> str:
    """Decode bytes; tokens from 256 on, which a vocabulary may have, are left out."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")
