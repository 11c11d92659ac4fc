"""A Trainer of transformers whose checkpoints stay whole if the process is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from specdiag.checkpoint.torch_load import load_torch
from specdiag.errors import ComputationError, MissingExtraError
from specdiag.train.callbacks.divergence import Divergence
from specdiag.train.checkpoints.inspect import OPTIMIZER, SCHEDULER
from specdiag.train.checkpoints.optimizer_state import read_optimizer
from specdiag.train.checkpoints.publish import STAGING, publish, rotate
from specdiag.train.ranks import together
from specdiag.train.sharding import reshard, shard, sharded_state, whole_state, whole_weights

try:
    from safetensors import SafetensorError
    from transformers import Trainer
except ImportError as error:
    raise MissingExtraError("training needs transformers: pip install transformers accelerate") from error

_UNSAVED = (OSError, RuntimeError, MemoryError, SafetensorError, ComputationError)
"""Errors of saving. torch raises RuntimeError on a full disk."""
_SLACK = 1 << 20
"""Approximate bytes of a checkpoint besides its tensors."""


class CrashSafeTrainer(Trainer):
    """Saves a checkpoint in a staging folder, syncs it, renames it, and only then deletes older ones.

    Checkpoints of a sharded model are those of one process: its weights and optimizer are gathered on the first one.

    Attributes:
        is_sharded: True if FSDP2 shards the model over the processes.
        tokens: number of tokens in the training steps of this process.
        companions: files that are copied into every checkpoint. A tokenizer among them is not given to the Trainer,
            which would write its special tokens into the model's configuration.
        make_optimizer: makes the optimizer for the model; None for the Trainer's own.
        random_states: files of random numbers, by rank, that checkpoints get in the place of this process's own.
        divergence: checks losses and weights; None for no checks.
    """

    tokens = 0
    companions: Sequence[Path] = ()
    make_optimizer: Callable[[nn.Module], Optimizer] | None = None
    random_states: Sequence[Path] = ()
    divergence: Divergence | None = None
    is_sharded = False

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, which shards the model if accelerate launch asked for that."""
        super().create_accelerator_and_postprocess()
        self.is_sharded = self.is_fsdp_enabled = shard(self.accelerator)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer by `make_optimizer`, else the Trainer's own."""
        if cast("Optimizer | None", self.optimizer) is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer(cast("nn.Module", self.model))
        return super().create_optimizer(model)

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: object, **kwargs: object
    ) -> torch.Tensor:
        """Run a forward and backward pass and count its tokens."""
        self.tokens += inputs["input_ids"].numel() if "input_ids" in inputs else 0
        step = cast("Callable[..., torch.Tensor]", super().training_step)
        loss = step(model, inputs, *args, **kwargs)
        if self.divergence is not None:
            self.divergence.observe(loss)
        return loss

    def evaluate(self, *args: object, **kwargs: object) -> dict[str, float]:
        """Evaluate, and free the whole weights that a sharded model keeps after a forward pass."""
        figures = cast("Callable[..., dict[str, float]]", super().evaluate)(*args, **kwargs)
        reshard(cast("nn.Module", self.model))
        return figures

    def save_now(self) -> None:
        """Save a checkpoint of the current state, as between two steps."""
        self._save_checkpoint(cast("nn.Module", self.model), None)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        for path in self.companions if output_dir is not None and self.args.should_save else ():
            shutil.copyfile(path, Path(cast("str", output_dir)) / path.name)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; a sharded one as if it were whole."""
        if not self.is_sharded:
            super().save_model(output_dir, _internal_call=_internal_call)
            return
        weights = whole_weights(cast("nn.Module", self.model))
        with together():
            self._save(output_dir, weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole_state(cast("Any", self.optimizer))
        with together():
            if self.args.should_save:
                torch.save(state, Path(output_dir) / OPTIMIZER)
                torch.save(cast("Any", self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.random_states:
            rank, alone = int(self.args.process_index), int(self.args.world_size) == 1
            shutil.copyfile(
                self.random_states[rank], Path(output_dir) / ("rng_state.pth" if alone else f"rng_state_{rank}.pth")
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.is_sharded:  # else the model was made of these weights and sharded since
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        optimizer, folder = cast("Any", self.optimizer), Path(checkpoint)
        groups, state = read_optimizer(folder / OPTIMIZER)
        optimizer.load_state_dict(sharded_state(groups, state, optimizer))
        cast("Any", self.lr_scheduler).load_state_dict(load_torch(folder / SCHEDULER, SCHEDULER))

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(super()._get_output_dir(trial)) / STAGING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run, step = Path(str(self.args.output_dir)), self.state.global_step
        own, divergence = cast("nn.Module", self.model), self.divergence
        optimizer = cast("Any", self.optimizer)
        if divergence is not None and not divergence.allows_saving(own, optimizer, step, self.control):
            return
        with together():
            self.check_space(run, step)
        try:
            with together():  # a sharded model is saved in meetings of its own, in which all fail together
                super()._save_checkpoint(model, trial)
            with together():
                if self.is_world_process_zero():
                    publish(run, step)
        except _UNSAVED as error:
            if self.is_world_process_zero():  # not where it was killed: the next start says so
                shutil.rmtree(run / STAGING, ignore_errors=True)
            reason = str(error).partition("\n")[0]
            raise ComputationError(
                f"checkpoint-{step} could not be saved ({reason}); the checkpoints before it, if any, are whole: free "
                f"space and go on with resume={str(run)!r}"
            ) from error
        with together():
            if self.is_world_process_zero():
                rotate(run, self.args.save_total_limit)

    def check_space(self, run: Path, step: int, above: Path | None = None) -> int:
        """Check that a checkpoint fits on the disk, and return its bytes.

        Args:
            run: folder of the run.
            step: step of the checkpoint, for the message.
            above: a folder on the same disk that exists; None for the run's.

        Raises:
            ComputationError: too little is free.
        """
        own = cast("nn.Module", self.model)
        needed = n_bytes([*own.parameters(), *own.buffers(), *state_tensors(cast("Any", self.optimizer))]) + _SLACK
        free = shutil.disk_usage(above or run).free
        if needed > free:
            raise ComputationError(
                f"checkpoint-{step} takes {needed / 2**20:.0f} MiB and {free / 2**20:.0f} are free in {run}: free "
                f"space and go on with resume={str(run)!r}"
            )
        return needed


def state_tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    """List the tensors of an optimizer's state."""
    states = cast("Iterable[Mapping[str, object]]", optimizer.state.values())
    return [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]


def n_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of all values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
