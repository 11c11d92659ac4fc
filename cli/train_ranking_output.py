"""Output of `specdiag train` and `specdiag compare` on several runs: their ranking, or the table of a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdiag.text.counts import percent

from . import output, tables

if TYPE_CHECKING:
    from specdiag.train.runs.leaderboard import Ranked
    from specdiag.train.runs.sweep import Grid


def ranking(rows: Sequence[Ranked], notes: Sequence[str]) -> None:
    """Print runs, best first, and what makes them hard to compare.

    Args:
        rows: runs, best first.
        notes: sentences about the comparison.
    """
    head = "kept-apart loss" if any(row.kept_apart for row in rows) else "held-out loss"
    columns: tuple[tables.Column[Ranked], ...] = (
        tables.Column("run", lambda r: r.run, right=False),
        tables.Column("decay", lambda r: r.decay, right=False),
        tables.Column("base", lambda r: tables.number(r.weight_decay, 6).rstrip("0").rstrip(".")),
        tables.Column("seed", lambda r: str(r.seed), 2),
        tables.Column(head, lambda r: f"{r.loss:.4f}"),
        tables.Column("better by", lambda r: f"{r.improvement:+.4f}"),
        tables.Column("figures of merit", lambda r: ", ".join(f"{n} {v:.4f}" for n, v in r.merits.items()) or "·"),
        tables.Column("hours", lambda r: f"{r.hours:.2f}", 3),
        tables.Column("of these ratios", lambda r: percent(r.decay_share, 2), 4),
    )
    console = output.console()
    console.print(tables.draw("Runs, the best first", columns, rows, console.width))
    diverged(rows)
    for sentence in notes:
        console.print(f"Hard to compare: {sentence}", soft_wrap=True)
    if len({row.seed for row in rows}) == 1:
        console.print(
            "One seed: a difference says something only where it is larger than "
            "that between seeds (--sweep 'seed=0,1,2').",
            soft_wrap=True,
        )


def diverged(rows: Sequence[Ranked]) -> None:
    """Print a sentence for each run whose loss is not finite."""
    from specdiag.train.runs.leaderboard import divergences

    for sentence in divergences(rows):
        output.console().print(sentence, soft_wrap=True)


def locked(runs: Sequence[Path]) -> None:
    """Print a sentence for each run of a sweep that another process writes to."""
    for run in runs:
        output.console().print(
            f"'{run.name}' is locked: another process writes to it; the same command takes it up when that has ended.",
            soft_wrap=True,
        )


def ranking_data(rows: Sequence[Ranked], format: str) -> bytes:
    """Encode a ranking; each metric of the task is a column.

    Args:
        rows: runs, best first.
        format: json, csv or md.
    """
    import msgspec

    from specdiag.views.export import export

    flat = [{**msgspec.structs.asdict(row), **row.merits} for row in rows]
    columns = dict.fromkeys(name for row in flat for name in row if name != "merits")
    return export(flat, list(columns), format)


def grid(table: Grid) -> None:
    """Print the table of a sweep: a row for each method, a column for each base decay or task.

    Args:
        table: the finished sweep.
    """

    def cell(method: str, column: str) -> str:
        entry = table.cells[method].get(column)
        if entry is None:
            return "·"
        if not entry.scores:
            return "locked"
        if entry.n_locked:
            return f"{entry.mean:.3f} ({entry.n_locked} of {len(entry.scores) + entry.n_locked} locked)"
        if entry.n_diverged and len(entry.scores) > 1:
            return f"nan ({entry.n_diverged} of {len(entry.scores)} diverged)"
        return f"{entry.mean:.3f}" + ("" if entry.spread is None else f" ± {entry.spread:.3f}")

    columns: list[tables.Column[str]] = [tables.Column(table.measure, str, right=False)]
    columns.extend(tables.Column(c, lambda m, c=c: cell(m, c)) for c in table.columns)
    if table.averages:
        columns.append(tables.Column("average", lambda m: tables.number(table.averages.get(m), 3)))
    columns.append(tables.Column("balance", lambda m: tables.number(table.best(m)[1].balance, 3)))
    columns.append(tables.Column("hours", lambda m: f"{table.best(m)[1].hours:.2f}"))
    console = output.console()
    n = max(len(entry.scores) for row in table.cells.values() for entry in row.values())
    title = f"Held out, mean{' and standard deviation' if n > 1 else ''} of {n} seed{'s' if n > 1 else ''}"
    console.print(tables.draw(title, columns, table.methods, console.width))
    console.print(
        "balance: standard deviation of square_alpha over attention and MLP matrices at the end, in each method's best "
        "column, as the hours.",
        soft_wrap=True,
    )
    base, *others = table.methods
    column, best = table.best(base)
    for method in others:
        other_column, other_best = table.best(method)
        if not best.mean or not math.isfinite(other_best.mean / best.mean):
            continue
        console.print(
            f"Best against best: {method} ({other_column}) {other_best.mean:.3f}, {base} ({column}) {best.mean:.3f}: "
            f"{percent(other_best.mean / best.mean - 1, 1, '+')}.",
            soft_wrap=True,
        )
