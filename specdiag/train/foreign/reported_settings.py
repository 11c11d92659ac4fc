"""Reads settings in files of other programs, under the names of transformers' TrainingArguments."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, cast

from specdiag.errors import UsageError
from specdiag.train.foreign.load import SavedOptimizer
from specdiag.train.foreign.opening import SavedDict
from specdiag.train.runs.trainer_arguments import TrainerArguments

_HOLDERS = ("config", "args", "hparams", "hyper_parameters", "datamodule_hyper_parameters", "hyperparameters")
_KNOWN = {
    "per_device_train_batch_size": ("per_device_train_batch_size", "micro_batch_size", "batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps"),
    "max_grad_norm": ("max_grad_norm", "grad_clip", "gradient_clip_val", "grad_clipping", "clip_grad_norm"),
    "seed": ("seed",),
    "steps_total": ("max_steps", "max_iters", "num_training_steps", "total_steps"),
    "block_size": ("block_size", "max_seq_len", "seq_len", "max_length", "context_length"),
}
_WHOLE = {"per_device_train_batch_size", "gradient_accumulation_steps", "seed", "steps_total", "block_size"}


class ReportedSettings:
    """Settings of a run. The first file that contains a setting decides it.

    Attributes:
        settings: arguments of the Trainer.
        steps_total: steps that the run was planned for.
        block_size: tokens of a sequence.
    """

    def __init__(self) -> None:
        self.settings = TrainerArguments({}, {}, [])
        self.steps_total: int | None = None
        self.block_size: int | None = None

    def add(self, origin: str, **values: object) -> None:
        """Add settings that are not None and not yet known.

        Args:
            origin: source of the settings, such as a file.
            **values: settings by the Trainer's names.
        """
        for name, value in values.items():
            if value is not None and name not in self.settings.values:
                self.settings.values[name] = value
                self.settings.origin[name] = origin

    def optimizer(self, saved: SavedOptimizer, origin: str) -> None:
        """Add the settings of parameter groups.

        Args:
            saved: the saved optimizer.
            origin: its file.

        Raises:
            UsageError: groups have different decays.
        """
        decays = saved.decays
        if len(decays) > 1:
            listed = ", ".join(f"{decay:g}" for decay in sorted(decays)[:4])
            raise UsageError(
                f"{saved.label} has groups of different weight decay ({listed}), and a Trainer has one: go on in its "
                "own script, with DecayPlan.apply"
            )
        self.add(origin, weight_decay=max(decays, default=0.0))
        self.rates(saved, origin)

    def rates(self, saved: SavedOptimizer, origin: str) -> None:
        """Add betas, eps, and the lr before the schedule's factor if it is known.

        Args:
            saved: the saved optimizer.
            origin: its file.

        Raises:
            UsageError: groups differ in one of these.
        """
        betas, eps = cast("tuple[float, float] | None", saved.common("betas")), saved.common("eps")
        if betas is not None:
            self.add(origin, adam_beta1=float(betas[0]), adam_beta2=float(betas[1]))
        self.add(origin, adam_epsilon=eps, learning_rate=saved.common("initial_lr"))

    def hyperparameters(self, content: SavedDict, label: str) -> None:
        """Add numbers under common names from the dictionaries in which training scripts usually save them.

        Args:
            content: content of the file.
            label: name of the file.
        """
        for holder in _HOLDERS:
            self.numbers(plain(content.get(holder)), f"{holder} in {label}")

    def numbers(self, content: SavedDict, origin: str) -> None:
        """Add numbers under common names from one dictionary.

        Args:
            content: the dictionary.
            origin: its source.
        """
        for name, aliases in _KNOWN.items():
            value = next((content[alias] for alias in aliases if _is_number(content.get(alias), name in _WHOLE)), None)
            if name == "steps_total":
                self.steps_total = self.steps_total or value or None
            elif name == "block_size":
                self.block_size = self.block_size or value or None
            else:
                self.add(origin, **{name: value})


def plain(settings: object) -> SavedDict:
    """Return settings as a dictionary, also those of an argparse.Namespace; an empty one for anything else."""
    if isinstance(settings, argparse.Namespace):
        settings = vars(settings)
    return cast("SavedDict", settings) if isinstance(settings, Mapping) else {}


def first_of(content: SavedDict, names: Sequence[str]) -> object:
    """Return the first value that exists and is not empty; None if there is none.

    Args:
        content: values by name.
        names: names in the order of preference.
    """
    return next((content[name] for name in names if content.get(name)), None)


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) and value >= 0 if whole else isinstance(value, (int, float)) and value >= 0
