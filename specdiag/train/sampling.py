"""Text that a language model writes after a prompt beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from specdiag.errors import ComputationError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEMPERATURE = 0.8


def check_beginning(text: str, task: str) -> None:
    """Raise UsageError for an empty text, or a task whose models do not continue texts."""
    if not text:
        raise UsageError("sample= needs a text to continue")
    check_task(task)


def check_task(task: str) -> None:
    """Raise UsageError for a task whose models do not continue texts."""
    if task != "causal-lm":
        raise UsageError(f"a model of the task {task} does not continue texts: leave out sample=")


def sample(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, text: str, *, tokens: int = 100, seed: int = 0
) -> str:
    """Continue a text, with temperature 0.8.

    Args:
        model: a causal language model of transformers.
        tokenizer: None where bytes are tokens.
        text: the beginning.
        tokens: how many to add at most.
        seed: of the draws.

    Raises:
        UsageError: the text is empty.
        ComputationError: the model gives no probabilities.
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
    new = cast("list[int]", out[0, len(ids) :].tolist())
    return text + (_text(new) if tokenizer is None else cast("str", tokenizer.decode(new)))


def _text(tokens: list[int]) -> str:
    """Bytes as text; a vocabulary may have room for more than they are."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")
