"""Sweeps: one run for each combination of values of a recipe, and their results as a table like those of papers."""

from __future__ import annotations

import itertools
import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import msgspec

from specdiag.analysis.analyze import analyze
from specdiag.errors import UsageError
from specdiag.records import Record
from specdiag.report import load_report
from specdiag.train.checkpoints.inspect import find_complete, step_of
from specdiag.train.recipe import Recipe
from specdiag.train.runs.begin import begin, resolved
from specdiag.train.runs.changes import changed, parse_assignments
from specdiag.train.runs.config import load_config
from specdiag.train.runs.leaderboard import Ranked
from specdiag.train.runs.outcome import LOSS, load_outcome
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.run import Run, perplexity
from specdiag.train.tasks.glue import GLUE, glue_average, glue_score
from specdiag.train.tasks.task import kind_of

Point = tuple[tuple[str, str], ...]
"""Names and values of one run, in the order of the grid."""
_WITHOUT_DECAY = ("none",)
"""Decay rules for which a base decay means nothing."""
_ACROSS = ("task", "weight_decay")
"""Names whose values become columns of the table."""
NO_DECAY, BASE = "no decay", "decay of the recipe"
"""Columns for runs without decay, and for a grid that does not vary the base decay."""
PERPLEXITY = "perplexity"


def parse_grid(text: str) -> list[Point]:
    """Parse a grid such as `decay=uniform,alphadecay weight_decay=0.1,0.01 seed=0,1`.

    Runs without decay are listed once for all base decays, because these do not differ.

    Args:
        text: one `NAME=VALUE,VALUE...` for each name that varies.

    Returns:
        One point for each run.

    Raises:
        UsageError: a part is not NAME=VALUE,VALUE...
    """
    axes: dict[str, list[str]] = {}
    for part in _parts(text):
        name, equals, values = part.partition("=")
        choices = [value for value in values.split(",") if value]
        if not name or not equals or not choices or name in axes:
            raise UsageError(
                f"'{part}' of sweep= is not NAME=VALUE,VALUE...; such as 'decay=uniform,alphadecay seed=0,1'"
            )
        axes[name] = choices
    if not axes:
        raise UsageError("sweep= names nothing to vary; such as 'decay=uniform,alphadecay seed=0,1'")
    points: list[Point] = []
    seen: set[Point] = set()
    for values in itertools.product(*axes.values()):
        point = tuple(zip(axes, values, strict=True))
        reduced = (
            tuple(pair for pair in point if pair[0] != "weight_decay") if _decay(point) in _WITHOUT_DECAY else point
        )
        if reduced not in seen:
            seen.add(reduced)
            points.append(point)
    return points


def _parts(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        reason = str(error).lower()
        raise UsageError(f"sweep={text!r:.80} cannot be read ({reason}): close the quotation") from error


def folder_name(point: Point) -> str:
    """Return the name of the folder of a point's run."""
    return "_".join(f"{name}={value}" for name, value in point).replace("/", "-").replace(":", "-")


class Cell(Record, frozen=True, kw_only=True):
    """Cell of the table: the runs of a method in a column, which differ in their seeds."""

    scores: tuple[float, ...]
    """Score of each run that has ended; NaN if it diverged."""
    merits: dict[str, float]
    """Metrics of the task, means over the seeds."""
    balance: float | None
    """Standard deviation of square_alpha over attention and MLP matrices at the end, mean over the seeds."""
    hours: float
    """Hours of training, mean over the seeds."""
    n_locked: int = 0
    """Runs that another process was writing to."""

    @property
    def mean(self) -> float:
        """Mean score; NaN if a run diverged, or none has ended."""
        return _mean(self.scores) if self.scores else math.nan

    @property
    def n_diverged(self) -> int:
        """Runs without a score."""
        return sum(math.isnan(score) for score in self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds; None for one seed, NaN if a score is not finite."""
        if len(self.scores) < 2:
            return None
        return stdev(self.scores) if all(map(math.isfinite, self.scores)) else math.nan


class Grid(Record, frozen=True, kw_only=True):
    """Table of a finished sweep: a row for each method, a column for each base decay or task."""

    measure: str
    """`perplexity` (lower is better), or `accuracy` or GLUE's `score` (higher is better)."""
    methods: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    """By method, then by column."""
    averages: dict[str, float]
    """By method, means over the eight tasks of GLUE; empty if these are not the columns."""

    def best(self, method: str) -> tuple[str, Cell]:
        """Return the column with the best mean of a method, and its cell.

        Columns without a finite mean come last.

        Args:
            method: one of `methods`.
        """
        sign = 1 if self.measure == PERPLEXITY else -1
        return min(self.cells[method].items(), key=lambda item: _worse_last(sign * item[1].mean))


def tabulate(results: Sequence[tuple[Point, Ranked | None, float | None]]) -> Grid:
    """Arrange runs as a table.

    Args:
        results: point, ranking row and balance of each run. All tasks must have the same measure. The row is None for a
            run that another process writes to; the balance is None if it is unknown.

    Raises:
        UsageError: no run has ended.
    """
    tasks = [ranked.task for _, ranked, _ in results if ranked is not None]
    if not tasks:
        raise UsageError("every run of the grid is written to by another process: wait for their end")
    table: dict[str, dict[str, list[tuple[Ranked | None, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for point, ranked, balance in results:
        table[_method(dict(point))][_column(point)].append((ranked, balance))
    columns = dict.fromkeys(sorted((c for row in table.values() for c in row), key=lambda c: c != NO_DECAY))
    cells = {method: {c: _cell(members) for c, members in row.items()} for method, row in table.items()}
    by_task = {m: {c.removeprefix("glue/"): cell.merits for c, cell in row.items()} for m, row in cells.items()}
    return Grid(
        measure=measure_of(tasks[0]),
        methods=tuple(table),
        columns=tuple(columns),
        cells=cells,
        averages={method: glue_average(row) for method, row in by_task.items() if set(row) == set(GLUE)},
    )


def _worse_last(score: float) -> tuple[bool, float]:
    return not math.isfinite(score), score


def _mean(values: Iterable[float]) -> float:
    """Return the mean, which may be infinite or NaN; fmean would refuse infinities of both signs."""
    numbers = list(values)
    return fmean(numbers) if all(map(math.isfinite, numbers)) else sum(numbers) / len(numbers)


def measure_of(task: str) -> str:
    """Return the name of the measure that compares runs of a task."""
    return {"glue": "score", "classification": "accuracy", "images": "accuracy"}.get(kind_of(task), PERPLEXITY)


def _score(ranked: Ranked) -> float:
    measure = measure_of(ranked.task)
    if measure == PERPLEXITY:
        return perplexity(ranked.loss)
    if measure == "score":
        return glue_score(ranked.task.removeprefix("glue/"), ranked.merits)
    return ranked.merits.get(measure, math.nan)


def _cell(members: Sequence[tuple[Ranked | None, float | None]]) -> Cell:
    balances = [balance for _, balance in members if balance is not None]
    ended = [ranked for ranked, _ in members if ranked is not None]
    names = dict.fromkeys(name for ranked in ended for name in ranked.merits)
    return Cell(
        scores=tuple(_score(ranked) for ranked in ended),
        merits={name: _mean(ranked.merits.get(name, math.nan) for ranked in ended) for name in names},
        balance=fmean(balances) if balances else None,
        hours=fmean(ranked.hours for ranked in ended) if ended else math.nan,
        n_locked=len(members) - len(ended),
    )


def _method(values: Mapping[str, str]) -> str:
    """Return the name of a row: every varied value but base decay, task and seed."""
    varied = {name: value for name, value in values.items() if name not in (*_ACROSS, "seed")}
    if set(varied) == {"decay"}:
        return varied["decay"]
    return ", ".join(f"{name} {value}" for name, value in varied.items()) or "all"


def _column(point: Point) -> str:
    values = dict(point)
    if "task" in values:
        return " ".join(values[name] for name in _ACROSS if name in values)
    if _decay(point) in _WITHOUT_DECAY:
        return NO_DECAY
    return f"decay {values['weight_decay']}" if "weight_decay" in values else BASE


def prepared(recipe: Recipe, points: Sequence[Point], out: Path) -> dict[Point, tuple[Path, Callable[[], Run]]]:
    """Check all runs of a grid at once, so that a mistake shows before the first of them is trained.

    Args:
        recipe: recipe that the points change.
        points: values of each run.
        out: folder in which each run gets a folder.

    Returns:
        For each point its folder, and a function that prepares the run: to begin, or to continue where it was stopped.

    Raises:
        UsageError: the recipe cannot take the values, the tasks have no common measure, or a folder holds another run.
        SourceError: the configuration of an existing run is damaged.
    """
    recipes = {point: _recipe(recipe, point) for point in points}
    measures = {measure_of(each.task) for each in recipes.values()}
    if len(measures) > 1:
        raise UsageError(f"sweep=: tasks judged by {' and by '.join(sorted(measures))} have no table in common")
    folders = {point: out / folder_name(point) for point in points}
    if twice := next((f.name for f, n in Counter(folders.values()).items() if n > 1), None):
        raise UsageError(f"sweep=: two runs would be written to the folder {twice}: rename one of the values")
    return {point: (folders[point], _preparing(recipes[point], folders[point])) for point in points}


def _recipe(recipe: Recipe, point: Point) -> Recipe:
    try:
        return changed(recipe, parse_assignments([f"{name}={value}" for name, value in point]))
    except UsageError as error:
        raise UsageError(f"sweep=: {error}") from error


def _preparing(recipe: Recipe, folder: Path) -> Callable[[], Run]:
    existing = load_config(folder)
    if existing is None:
        return lambda: begin(recipe, folder, cache=folder.parent)
    kept = existing.recipe
    if kept != msgspec.structs.replace(resolved(recipe), data=kept.data, eval_data=kept.eval_data):
        raise UsageError(f"{folder} holds a run with other settings: name another out=, or move it away")
    return lambda: prepare(Request(source=folder))


def balance_of(run: Path) -> float | None:
    """Standard deviation of square_alpha over attention and MLP matrices of a run's last checkpoint.

    The report is saved in the folder of the run under the checkpoint's step, because the run may continue later.

    Args:
        run: folder of the run.

    Returns:
        None for a run without a complete checkpoint, and for one that diverged, whose last checkpoint is not its end.
    """
    outcome = load_outcome(run)
    if outcome is not None and not math.isfinite((outcome.after or {}).get(LOSS, 0.0)):
        return None
    checkpoint, _ = find_complete(run)
    if checkpoint is None:
        return None
    path = run / f"final-{step_of(checkpoint)}.specdiag.json"
    if not path.exists():
        analyze(checkpoint).save(path)
    return load_report(path).summary.balance_sd


def _decay(point: Point) -> str | None:
    return dict(point).get("decay")
