"""Tries a prepared run without writing anything of it: its memory, time and decays."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerControl

from specdiag.errors import ComputationError
from specdiag.train.callbacks.run_log import Decays, RunLogCallback
from specdiag.train.checkpoints.trainer import CrashSafeTrainer, n_bytes, state_tensors
from specdiag.train.runs.run import Run

_PATIENCE = 30.0
"""Seconds that trying a batch may take; else the time of one example is multiplied."""


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Needs of a run that was tried. Bytes are those of this process, without activations and buffers of libraries."""

    decays: Decays
    """Weight decay by Parameter, as the optimizer reads it in its first step."""
    steps: int
    """Steps to do."""
    tokens_per_step: int
    """Tokens of a step; 0 if examples are no blocks of tokens."""
    examples_per_step: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    checkpoint_bytes: int
    """Bytes of a checkpoint, about."""
    step_seconds: float
    """Seconds of a step."""
    from_one_example: bool
    """True if these are those of one example, multiplied by the examples of a step."""
    evaluations: int
    eval_seconds: float
    """Seconds of one evaluation."""
    loss: float
    """Loss of the first batch in training mode."""

    @property
    def seconds(self) -> float:
        """Seconds of all steps and evaluations, without saving, loading of data and measuring of exponents."""
        return self.steps * self.step_seconds + self.evaluations * self.eval_seconds


def try_run(run: Run) -> DryRun:
    """Try one batch and one step of the optimizer. The model in memory is changed by it; nothing is saved.

    Args:
        run: run that was prepared with a scratch folder.

    Raises:
        ComputationError: the loss is not finite, or a checkpoint would not fit on the disk.
    """
    trainer, model = run.trainer, cast("torch.nn.Module", run.trainer.model)
    optimizer = trainer.optimizer
    model.train()
    batch = _first_batch(trainer)
    size = len(next(iter(batch.values())))
    one = {name: value[:1] for name, value in batch.items()}
    _timed(lambda: _backward(trainer, one))  # the first pass takes longer
    example_seconds = _timed(lambda: _backward(trainer, one))
    scaled = example_seconds * size > _PATIENCE
    tried, factor = (one, size) if scaled else (batch, 1)
    model.zero_grad()
    loss, seconds = math.nan, 0.0

    def backward() -> None:
        nonlocal loss
        loss = _backward(trainer, tried)

    seconds = _timed(backward)
    if not math.isfinite(loss):
        raise ComputationError(f"'{run.folder.name}' would diverge: the loss of step {run.step + 1} is {loss}")
    decays: Decays = {}

    def keep(found: Decays) -> None:
        nonlocal decays
        decays = found

    optimizer_seconds = _timed(lambda: _step(run, optimizer, keep))
    accumulated = int(trainer.args.gradient_accumulation_steps)
    eval_seconds = _timed(lambda: _forward(trainer, tried)) * factor * len(run.data.held_out) / size
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps, every = run.steps_total - run.step, run.config.recipe.eval_every or run.steps_total
    between = (run.steps_total - 1) // every - run.step // every
    first_saved = min((run.step // _saves_every(trainer) + 1) * _saves_every(trainer), run.steps_total)
    above = next(path for path in (run.folder, *run.folder.parents) if path.exists())
    return DryRun(
        decays=decays,
        steps=steps,
        tokens_per_step=accumulated * batch["input_ids"].numel() if run.data.n_tokens else 0,
        examples_per_step=accumulated * size,
        weight_bytes=n_bytes([*model.parameters(), *model.buffers()]),
        gradient_bytes=n_bytes(parameters),
        optimizer_bytes=n_bytes(state_tensors(optimizer)),
        checkpoint_bytes=trainer.check_space(run.folder, first_saved, above),
        step_seconds=seconds * factor * accumulated + optimizer_seconds,
        from_one_example=scaled,
        evaluations=2 + between,
        eval_seconds=eval_seconds,
        loss=loss,
    )


def _saves_every(trainer: CrashSafeTrainer) -> int:
    every = float(trainer.args.save_steps)
    return max(1, int(every if every >= 1 else math.ceil(every * trainer.args.max_steps)))


def _first_batch(trainer: CrashSafeTrainer) -> dict[str, torch.Tensor]:
    loader: Any = trainer.get_train_dataloader()
    return cast("Any", trainer)._prepare_inputs(next(iter(loader)))


def _timed(work: Callable[[], object]) -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    started = time.perf_counter()
    work()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def _backward(trainer: CrashSafeTrainer, batch: dict[str, torch.Tensor]) -> float:
    model = cast("torch.nn.Module", trainer.model)
    with trainer.compute_loss_context_manager():
        loss = cast("torch.Tensor", trainer.compute_loss(model, dict(batch)))
    loss.mean().backward()
    return float(loss.detach().mean())


def _forward(trainer: CrashSafeTrainer, batch: dict[str, torch.Tensor]) -> None:
    model = cast("torch.nn.Module", trainer.model)
    model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        trainer.compute_loss(model, dict(batch))


def _step(run: Run, optimizer: torch.optim.Optimizer, keep: Callable[[Decays], None]) -> None:
    """Make a step under the decay rule, and pass on the decays in force."""
    trainer, control = run.trainer, TrainerControl()
    failed: list[Exception] = []
    log = RunLogCallback(Path(str(trainer.args.output_dir)), run.rule, keep, lambda *_: None, failed.append)
    callbacks = [log] if run.rule is None else [run.rule, log]
    for callback in callbacks:
        callback.on_train_begin(trainer.args, trainer.state, control, model=trainer.model, optimizer=optimizer)
    for callback in callbacks:
        callback.on_pre_optimizer_step(trainer.args, trainer.state, control)
    optimizer.step()
    if failed:
        raise failed[0]
    optimizer.zero_grad()
