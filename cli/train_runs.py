"""Runs of `specdiag train`: one, two to compare, or a sweep."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from specdiag.errors import ComputationError, UsageError
from specdiag.system import interrupts

from . import output
from . import train_dry_run as dry
from . import train_output as show
from . import train_ranking_output as show_runs
from .train_dry_run import check_compare

if TYPE_CHECKING:
    from torch import nn

    from specdiag.train.recipe import Recipe
    from specdiag.train.runs.request import Request
    from specdiag.train.runs.run import Result, Run


@dataclass(frozen=True)
class After:
    """Options for the steps of a run and for what follows them.

    Attributes:
        sample: beginning of a text that the trained model continues; None for none.
        all_rows: True to print the decay of every Parameter.
        stop_on_nan: True to end the run when the loss is not finite.
        dry_run: True to check the run and try one step, and to write nothing.
    """

    sample: str | None
    all_rows: bool
    stop_on_nan: bool = True
    dry_run: bool = False


def go_on(source: str | None, request: Request, *, compare: str | None, after: After) -> None:
    """Continue a run (`--resume`).

    Args:
        source: checkpoint, run or folder of weights; None for the newest run in the working directory.
        request: options of the run; its source is replaced.
        compare: decay rule of a second run; None for no second run.
        after: options for the steps and for what follows them.

    Raises:
        UsageError: an option is missing, or options contradict each other or the checkpoint.
        SourceError: a checkpoint, plan or data file is missing, damaged or does not fit.
        ComputationError: the loss is not finite, or a checkpoint could not be saved.
    """
    from specdiag.train.runs.resume import prepare
    from specdiag.train.runs.starting_point import newest_run

    _speak_on_one_rank()
    check_compare(compare, request.decay)
    if source is None:
        source = str(newest_run(Path()))
        output.talk(f"taking the newest run here, {source}", "dim")
    continues = after.sample is not None
    if after.sample == "":
        raise UsageError("--sample needs a text to continue")
    request = dataclasses.replace(request, source=Path(source), continues_text=continues)
    if after.dry_run:
        dry.show_dry_run(lambda scratch: prepare(dataclasses.replace(request, scratch=scratch)), compare, after)
        return
    run = prepare(request)
    check_compare(compare, run.config.recipe.decay)
    _train_and_compare(run, compare, after)


def start(
    source: str | None,
    changes: Mapping[str, object],
    *,
    out: Path | None,
    compare: str | None,
    sweep: str | None,
    after: After,
) -> None:
    """Begin a run or a sweep with a recipe.

    Args:
        source: name of a preset, or path of a .toml file.
        changes: values that replace those of the recipe, by name.
        out: folder of the run or of the sweep's runs; None for the recipe's name.
        compare: decay rule of a second run; None for no second run.
        sweep: grid of values, a run for each combination; None for one run.
        after: options for the steps and for what follows them.

    Raises:
        UsageError: the recipe or an option is missing or wrong, or a folder is taken.
        SourceError: data, weights, tokenizer or plan are missing or damaged.
        ComputationError: the loss is not finite, or a checkpoint could not be saved.
    """
    from specdiag.train.recipe import load_recipe, preset_names
    from specdiag.train.runs.begin import begin
    from specdiag.train.runs.changes import changed, settings_of
    from specdiag.train.sampling import check_beginning

    _speak_on_one_rank()
    if source is None:
        raise UsageError(f"name a CONFIG.toml or a preset ({', '.join(preset_names())}), or say --resume")
    if Path(source).is_dir():
        raise UsageError(f"'{source}' is a folder: 'specdiag train {source} --resume' goes on with it")
    recipe = changed(load_recipe(source), changes)
    if after.sample is not None:
        check_beginning(after.sample, recipe.task)
    check_compare(compare, recipe.decay)
    folder = out or Path(Path(source).stem)
    if sweep is not None:
        if compare is not None:
            raise UsageError("--sweep runs every decay that it names: leave --compare out")
        if after.dry_run:
            raise UsageError("--dry-run tries one run: leave --sweep out")
        _sweep(recipe, sweep, folder, after)
        return
    options = settings_of(changes)
    if after.dry_run:
        dry.show_dry_run(lambda scratch: begin(recipe, folder, from_options=options, scratch=scratch), compare, after)
        return
    _train_and_compare(begin(recipe, folder, from_options=options), compare, after)


def _train_and_compare(run: Run, rule: str | None, after: After) -> None:
    from specdiag.train.runs.leaderboard import is_finished, rank
    from specdiag.train.runs.rival import prepare_rival, reserve_rival

    if rule is None:
        _train(run, after, alone=True)
        return
    folder = run.folder.with_name(f"{run.folder.name}-{rule}")
    reserve_rival(run, rule, folder)
    _train(run, after, alone=False)
    if is_finished(folder, run.steps_total):
        output.talk(f"{folder} is finished and taken as it is", "dim")
    else:
        _train(prepare_rival(run, rule, folder), after, alone=False)
    show_runs.ranking(*rank([folder, run.folder]))


def _train(run: Run, after: After, *, alone: bool) -> Result:
    """Train and print the result. A run that diverged is an error if it is alone, else a row of a table."""
    show.ready(run)
    with show.progress(run) as on_log:
        result = run.train(
            lambda decays: show.decays(run, decays, all_rows=after.all_rows), on_log, stop_on_nan=after.stop_on_nan
        )
    show.answer(run, result)
    if result.diverged is not None:
        if alone:
            raise ComputationError(result.diverged)
        output.talk(result.diverged, "yellow")
        return result
    if result.interrupted:
        raise typer.Exit(interrupts.exit_code())
    if after.sample is not None:
        from specdiag.train.sampling import sample

        for line in sample(cast("nn.Module", run.trainer.model), run.tokenizer, after.sample).split("\n"):
            output.console().print(line, soft_wrap=True)
    return result


def _sweep(recipe: Recipe, grid: str, out: Path, after: After) -> None:
    from specdiag.system.folder_lock import FolderLockedError
    from specdiag.train.ranks import refuse_ranks
    from specdiag.train.runs.leaderboard import is_finished, rank
    from specdiag.train.runs.sweep import balance_of, parse_grid, prepared, tabulate

    refuse_ranks("--sweep")
    runs, locked = prepared(recipe, parse_grid(grid), out), list[Path]()
    for number, (folder, prepare) in enumerate(runs.values(), 1):
        name = f"{number}/{len(runs)}: '{folder.name}'"
        if is_finished(folder):
            output.talk(f"{name} is finished", "dim")
            continue
        try:
            run = prepare()
        except FolderLockedError as error:
            output.talk(f"{name} is passed over: {error}", "yellow")
            locked.append(folder)
            continue
        output.talk(name, "bold")
        _train(run, after, alone=False)
    ended = [folder for folder, _ in runs.values() if folder not in locked]
    rows = rank(ended)[0] if ended else []
    ranked = {row.run: row for row in rows}
    balances = {folder: balance_of(folder) for folder in ended}
    results = [(point, ranked.get(folder.name), balances.get(folder)) for point, (folder, _) in runs.items()]
    show_runs.grid(tabulate(results))
    show_runs.locked(locked)
    show_runs.diverged(rows)


def _speak_on_one_rank() -> None:
    """Silence all processes of a run but the first."""
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
        output.configure(quiet=True, verbose=False, debug=output.debugs())
