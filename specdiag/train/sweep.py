"""The grid of a paper's table: one recipe with every combination of a few values, each a run of its own."""

from __future__ import annotations

import itertools
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import msgspec

from specdiag.analysis import analyze
from specdiag.errors import UsageError
from specdiag.records import Record
from specdiag.report import load_report
from specdiag.train.begin import begin, resolved
from specdiag.train.changes import changed, parse_assignments
from specdiag.train.checkpoints import find_complete
from specdiag.train.config import load_config
from specdiag.train.ranking import Ranked
from specdiag.train.recipe import Recipe
from specdiag.train.request import Request
from specdiag.train.resume import prepare
from specdiag.train.run import Run

Point = tuple[tuple[str, str], ...]
"""Names and values of one run, in the order of the grid."""
_WITHOUT_DECAY = ("none",)
BASE = "as in the recipe"
"""The column of a grid that does not vary the base decay."""


def parse_grid(text: str) -> list[Point]:
    """The runs of `decay=uniform,alphadecay weight_decay=0.1,0.01 seed=0,1`.

    Without decay there is no base decay to vary: of such points one remains for each seed.

    Raises:
        UsageError: a part is not NAME=VALUE,VALUE...
    """
    axes: dict[str, list[str]] = {}
    for part in shlex.split(text):
        name, equals, values = part.partition("=")
        held = [value for value in values.split(",") if value]
        if not name or not equals or not held or name in axes:
            raise UsageError(
                f"'{part}' of --sweep is not NAME=VALUE,VALUE...; such as 'decay=uniform,alphadecay seed=0,1'"
            )
        axes[name] = held
    if not axes:
        raise UsageError("--sweep names nothing to vary; such as 'decay=uniform,alphadecay seed=0,1'")
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


def folder_name(point: Point) -> str:
    """Of the run of a point."""
    return "_".join(f"{name}={value}" for name, value in point).replace("/", "-").replace(":", "-")


class Cell(Record, frozen=True, kw_only=True):
    """One method with one base decay, over its seeds."""

    losses: tuple[float, ...]
    balance: float | None
    """Standard deviation of alpha_square over attention and MLP matrices at the end, mean over the seeds."""
    hours: float

    @property
    def mean(self) -> float:
        """Mean loss."""
        return fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return stdev(self.losses) if len(self.losses) > 1 else None


class Grid(Record, frozen=True, kw_only=True):
    """A finished sweep as the papers print theirs: methods down, base decays across."""

    methods: tuple[str, ...]
    decays: tuple[str, ...]
    cells: dict[str, dict[str, Cell]]
    """By method, then by base decay; a method without decay has one cell, under ``."""

    def best(self, method: str) -> tuple[str, Cell]:
        """The base decay with the lowest mean loss, and its cell."""
        return min(self.cells[method].items(), key=lambda item: item[1].mean)


def tabulate(found: Sequence[tuple[Point, Ranked, float | None]]) -> Grid:
    """Sort finished runs into the table.

    Args:
        found: point, outcome and balance of each run.
    """
    held: dict[str, dict[str, list[tuple[Ranked, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for point, ranked, balance in found:
        values = dict(point)
        column = "" if _decay(point) in _WITHOUT_DECAY else values.get("weight_decay", BASE)
        held[_method(values)][column].append((ranked, balance))
    columns = dict.fromkeys(column for row in held.values() for column in row if column)
    return Grid(
        methods=tuple(held),
        decays=tuple(columns),
        cells={method: {c: _cell(members) for c, members in row.items()} for method, row in held.items()},
    )


def _cell(members: Sequence[tuple[Ranked, float | None]]) -> Cell:
    balances = [balance for _, balance in members if balance is not None]
    return Cell(
        losses=tuple(ranked.loss for ranked, _ in members),
        balance=fmean(balances) if balances else None,
        hours=fmean(ranked.hours for ranked, _ in members),
    )


def _method(values: Mapping[str, str]) -> str:
    """What names a row: all that is varied but base decay and seed."""
    kept = {name: value for name, value in values.items() if name not in ("weight_decay", "seed")}
    if set(kept) == {"decay"}:
        return kept["decay"]
    return ", ".join(f"{name} {value}" for name, value in kept.items()) or "all"


def point_run(recipe: Recipe, point: Point, folder: Path) -> Callable[[], Run]:
    """Prepares the run of a point: it begins, or goes on where it was stopped.

    Raises:
        UsageError: the recipe cannot take the values, or the folder holds another run. At once, so that a grid
            fails before its first run.
    """
    try:
        own = changed(recipe, parse_assignments([f"{name}={value}" for name, value in point]))
    except UsageError as error:
        raise UsageError(f"--sweep: {error}") from error
    held = load_config(folder)
    if held is None:
        return lambda: begin(own, folder, cache=folder.parent)
    if held.recipe != msgspec.structs.replace(resolved(own), data=held.recipe.data):
        raise UsageError(f"{folder} holds a run with other settings: name another --out, or move it away")
    return lambda: prepare(Request(source=folder))


def balance_of(run: Path) -> float | None:
    """Standard deviation of alpha_square over attention and MLP matrices of a run's last checkpoint.

    The report is kept in the folder of the run.
    """
    path = run / "final.specdiag.json"
    if not path.exists():
        checkpoint, _ = find_complete(run)
        if checkpoint is None:
            return None
        analyze(checkpoint).save(path)
    return load_report(path).summary.balance_sd


def _decay(point: Point) -> str | None:
    return dict(point).get("decay")
