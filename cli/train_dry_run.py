"""`specdiag train --dry-run`: a run that is decided, checked and tried, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.errors import UsageError

from . import output
from . import train_output as show

if TYPE_CHECKING:
    from specdiag.train.runs.dry_run import DryRun
    from specdiag.train.runs.run import Run

    from .train_runs import After


def show_dry_run(prepare: Callable[[Path], Run], compare: str | None, after: After) -> None:
    """Prepare a run, try one step, and print what it is and needs.

    Args:
        prepare: prepares the run; takes a folder for its files, which is deleted afterwards.
        compare: decay rule of a second run; None for no second run.
        after: options for the steps of the run.

    Raises:
        UsageError: as for the run itself, or there are several processes.
        SourceError: as for the run itself.
        ComputationError: the loss is not finite, or a checkpoint would not fit on the disk.
    """
    from specdiag.train.ranks import refuse_ranks
    from specdiag.train.runs.dry_run import try_run
    from specdiag.train.runs.folders import new_folder
    from specdiag.train.runs.rival import existing_rival

    refuse_ranks("--dry-run")
    with tempfile.TemporaryDirectory(prefix="specdiag-dry-run-") as scratch:
        run = prepare(Path(scratch))
        if compare is not None:
            check_compare(compare, run.config.recipe.decay)
            folder = run.folder.with_name(f"{run.folder.name}-{compare}")
            if existing_rival(run, compare, folder) is None:
                new_folder(folder)
        show.ready(run)
        tried = try_run(run)
        show.decays(run, tried.decays, all_rows=after.all_rows)
    _needs(run, tried, n_runs=1 if compare is None else 2)


def check_compare(rule: str | None, own_rule: str | None) -> None:
    """Check the rule of --compare before hours of training, not after them."""
    from specdiag.train.callbacks.registry import OPTIONS

    if rule is None:
        return
    if rule not in OPTIONS:
        raise UsageError(f"unknown --compare '{rule}'; choose {', '.join(OPTIONS)}")
    if rule == own_rule:
        raise UsageError(f"the run itself has decay '{rule}': --compare names another")


def _needs(run: Run, tried: DryRun, n_runs: int) -> None:
    from specdiag.resources import format_size

    say = output.console().print
    unit, each = ("tokens", tried.tokens_per_step) if tried.tokens_per_step else ("examples", tried.examples_per_step)
    passes = tried.steps * tried.examples_per_step / len(run.data.train)
    say(f"To do: {tried.steps} steps of {each} {unit}, {tried.steps * each} in all: {passes:.2g} passes over the data.")
    sizes = [(tried.weight_bytes, "weights"), (tried.gradient_bytes, "gradients"), (tried.optimizer_bytes, "optimizer")]
    parts = ", ".join(f"{name} {format_size(size)}" for size, name in sizes)
    total = sum(size for size, _ in sizes)
    say(f"Memory: {format_size(total)} ({parts}); activations are not counted.", soft_wrap=True)
    say(f"Disk: {format_size(tried.checkpoint_bytes)} for each checkpoint.")
    how = "one example, multiplied" if tried.from_one_example else "one batch and one step of the optimizer, tried here"
    runs = " for both runs" if n_runs > 1 else ""
    say(
        f"Time: about {_time(n_runs * tried.seconds)}{runs}: {_time(tried.step_seconds)} a step (by {how}) and "
        f"{_time(tried.eval_seconds)} for each of {tried.evaluations} evaluations. Saving, reading of data and "
        "measuring of exponents come on top.",
        soft_wrap=True,
    )
    output.talk("dry run: nothing was written", "green")


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
