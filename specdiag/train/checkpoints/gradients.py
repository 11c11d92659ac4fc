"""Gradients of a few batches, with which an optimizer's moments are compared."""

from __future__ import annotations

from typing import Any, cast

import torch

from specdiag.live.parameters import live_parameters, untied
from specdiag.train.checkpoints.trainer import CrashSafeTrainer
from specdiag.train.data.tokens import Data

_BATCHES = 8


def sample_gradients(trainer: CrashSafeTrainer, data: Data) -> dict[str, torch.Tensor]:
    """Compute gradients of a few held-out batches. Draws no random numbers, and leaves no gradients in the model.

    Args:
        trainer: Trainer with the model and the collator.
        data: data with held-out examples.

    Returns:
        Summed gradients by parameter name.
    """
    model: Any = trainer.model
    size = trainer.args.per_device_train_batch_size
    was_training = model.training
    model.eval()
    for first in range(0, min(len(data.held_out), _BATCHES * size), size):
        examples = [data.held_out[i] for i in range(first, min(first + size, len(data.held_out)))]
        batch = trainer.data_collator(cast("Any", examples))
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
    parameters = untied(live_parameters(model))
    gradients = {name: p.grad.detach() for name, p in parameters.items() if p.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    model.train(was_training)
    return gradients
