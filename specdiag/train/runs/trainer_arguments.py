"""Arguments of the Trainer, read from the files of a checkpoint."""

from __future__ import annotations

import dataclasses
import enum
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from specdiag.errors import SourceError, UsageError
from specdiag.files import Table
from specdiag.train.run_files import read_run

ARGUMENTS = "training_args.bin"
DEFAULT_ARGUMENTS: Table = {
    "learning_rate": 5e-5, "lr_scheduler_type": "linear", "weight_decay": 0.1, "per_device_train_batch_size": 8,
    "save_steps": 500, "logging_steps": 10, "seed": 42,
}  # fmt: skip
"""Defaults of a run."""

_IMPORTED = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "weight_decay", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "max_grad_norm", "optim", "optim_args", "adam_beta1", "adam_beta2",
    "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "tf32",
    "seed", "data_seed", "full_determinism", "dataloader_drop_last", "use_cpu", "logging_steps", "logging_first_step",
    "save_steps", "save_total_limit",
)  # fmt: skip
_RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")
"""New and old name of one argument."""
_UNSUPPORTED = ("deepspeed", "fsdp", "parallelism_config")
_NOT_IMPORTED = ("torch_compile", "use_liger_kernel", "auto_find_batch_size")
_TRUSTED = ("transformers.", "accelerate.")
_INERT = ("accelerate.state.PartialState",)


@dataclass(frozen=True)
class TrainerArguments:
    """Arguments of the Trainer and where each comes from.

    Attributes:
        values: values by the Trainer's names, plain enough for TOML.
        origin: source of each value by its name: a file, `given`, `recipe` or `default`.
        notes: sentences about what was left out.
    """

    values: Table
    origin: dict[str, str]
    notes: list[str] = field(default_factory=list[str])


def read_arguments(checkpoint: Path) -> TrainerArguments:
    """Read the arguments of a Trainer's checkpoint. Values of optimizer and scheduler take precedence.

    Args:
        checkpoint: folder of the checkpoint.

    Raises:
        SourceError: a file is missing, damaged, or wants to run code.
        UsageError: the run used a feature that cannot be continued here.
    """
    found = imported_arguments(checkpoint / ARGUMENTS)
    run = read_run(checkpoint)
    for name, source in (("learning_rate", "peak_lr"), ("weight_decay", "weight_decay")):
        value = None if run is None else getattr(run, source)
        if run is not None and value is not None:
            found.values[name], found.origin[name] = value, run.origin[source]
    return found


def imported_arguments(path: Path, *, sharded: bool = False) -> TrainerArguments:
    """Read the arguments that a run takes over.

    Args:
        path: training_args.bin.
        sharded: True if the checkpoint has the whole model although FSDP sharded it.

    Raises:
        SourceError: the file is missing, damaged, or wants to run code.
        UsageError: the run used a feature that cannot be continued here.
    """
    arguments = _load_arguments(path)
    for name in _UNSUPPORTED:
        if getattr(arguments, name, None) and not (sharded and name == "fsdp"):
            raise UsageError(f"the run used {name}, which is not continued here: use AlphaDecayCallback in its script")
    values = {name: _plain(getattr(arguments, name, None)) for name in _IMPORTED}
    ratio = getattr(arguments, "warmup_ratio", None)
    if ratio and not values["warmup_steps"]:
        values["warmup_steps"] = ratio  # transformers 5 takes a warmup_steps below 1 as a fraction
    if any(getattr(arguments, name, None) for name in _RECOMPUTING):
        values[_RECOMPUTING[0]] = True
    values = {name: value for name, value in values.items() if value is not None}
    origin = dict.fromkeys(values, ARGUMENTS)
    notes = [f"{name} of the run is not taken over." for name in _NOT_IMPORTED if getattr(arguments, name, None)]
    return TrainerArguments(values, origin, notes)


def _load_arguments(path: Path) -> Any:
    """Load training_args.bin, a pickle of enumerations and dataclasses of transformers and accelerate."""
    from specdiag.checkpoint.torch_load import load_torch

    if not path.is_file():
        raise SourceError(f"{path} is missing: batch size, schedule and clipping of the run are known from there only")
    try:
        class_names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, OSError, ValueError) as error:
        raise SourceError(f"{path} is damaged ({str(error).partition(chr(10))[0]}): copy it again") from error
    allowed = {name: _harmless(name) for name in class_names}
    foreign = [name for name, kind in allowed.items() if kind is None]
    if foreign:
        raise SourceError(
            f"{path} wants to make {', '.join(foreign)} when it is opened, which is not allowed: continue the run in "
            "its own script, with AlphaDecayCallback or DecayPlanCallback"
        )
    return load_torch(path, str(path), [kind for kind in allowed.values() if kind is not None])


def _harmless(name: str) -> type | None:
    """Return the class of that name, if making an instance runs nothing but its constructor; else None."""
    module, _, class_name = name.rpartition(".")
    if not name.startswith(_TRUSTED):
        return None
    try:
        kind = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError):
        return None
    harmless = isinstance(kind, type) and (
        issubclass(kind, enum.Enum) or dataclasses.is_dataclass(kind) or name in _INERT
    )
    return kind if harmless else None


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()} or None
    return value if isinstance(value, (bool, int, float, str)) else None
