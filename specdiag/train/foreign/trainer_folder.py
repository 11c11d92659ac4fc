"""Reads what a Trainer keeps beside the chunks of its model and optimizer: step, arguments, random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specdiag.errors import SourceError
from specdiag.train.checkpoints.inspect import STATE, read_state
from specdiag.train.foreign.reported_settings import ReportedSettings
from specdiag.train.runs.trainer_arguments import ARGUMENTS, imported_arguments


@dataclass(frozen=True)
class Progress:
    """Where a Trainer's run stood.

    Attributes:
        steps_total: steps that it was planned for; None if unknown.
        random_states: files of random numbers, one for each process in the order of their ranks.
        notes: sentences on what is unknown.
    """

    steps_total: int | None = None
    random_states: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def read_progress(folder: Path, reported: ReportedSettings, step: int) -> Progress:
    """Read the files of a checkpoint. Arguments are added to those that are known.

    Args:
        folder: of the checkpoint.
        reported: settings so far.
        step: optimizer steps done.

    Raises:
        SourceError: a file is damaged, or of another step.
        UsageError: the run used a feature that cannot be continued here.
    """
    state = read_state(folder)
    if int(state["global_step"]) != step:
        raise SourceError(
            f"'{folder}' has an optimizer that did {step} steps and a {STATE} of step {state['global_step']}: they are "
            "of different saves, or half precision skipped steps; name another checkpoint"
        )
    arguments = next((path for path in (folder / ARGUMENTS, folder.parent / ARGUMENTS) if path.is_file()), None)
    notes: list[str] = []
    if arguments is not None:
        found = imported_arguments(arguments, sharded=True)
        reported.add(ARGUMENTS, **found.values)
        notes += found.notes
    else:
        notes.append(
            f"{folder.name} has no {ARGUMENTS}, so that what is not given is a Trainer's default: give all that the "
            "run's script set, such as gradient_accumulation_steps=, max_grad_norm=, warmup_steps=, bf16= and seed=."
        )
    reported.add(STATE, per_device_train_batch_size=state.get("train_batch_size"), save_steps=state.get("save_steps"),
                 logging_steps=state.get("logging_steps"))  # fmt: skip
    return Progress(int(state["max_steps"]) or None, _random_states(folder), tuple(notes))


def _random_states(folder: Path) -> tuple[Path, ...]:
    found = {path.stem.removeprefix("rng_state").removeprefix("_"): path for path in folder.glob("rng_state*.pth")}
    return tuple(found[rank] for rank in sorted(found, key=lambda rank: int(rank) if rank.isdecimal() else 0))
