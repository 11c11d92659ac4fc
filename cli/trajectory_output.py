"""Output of `specdiag trajectory`: tables, step lines and data."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from specdiag.errors import UsageError
from specdiag.text.counts import counted
from specdiag.text.words import words

from . import answer_output, output, tables

if TYPE_CHECKING:
    from specdiag.records import Form
    from specdiag.trajectories.alerts import Alert
    from specdiag.trajectories.records import DroppedStep, StepResult, Trajectory
    from specdiag.trajectories.watching import Observation

_MOST = 20
_PICTURES = {"trajectory": "the tails as a picture", "norms": "the norms"}
_OVERVIEW = ("alpha", "square_alpha", "frobenius_norm", "spectral_norm", "stable_rank")


def check_metric(metric: str | None, known: Sequence[str]) -> None:
    """Refuse a metric that is not followed, before the work."""
    if metric is not None and metric not in known:
        raise UsageError(f"unknown metric '{metric}'; choose from {', '.join(known)}")


def step_line(found: StepResult | DroppedStep) -> None:
    """Print one line for a step that is finished or dropped."""
    from specdiag.trajectories.records import DroppedStep

    if isinstance(found, DroppedStep):
        output.talk(f"{found}: left out, {found.reason}", "yellow")
        return
    kept = " (finished before)" if found.resumed else ""
    bad = found.statuses.get("nonfinite", 0)
    trouble = f", {bad} with NaN or infinite values" if bad else ""
    output.talk(
        f"step {found.step}: {counted(found.n_matrices, 'matrix', 'matrices')}{trouble}{kept}", "red" if bad else "dim"
    )


def save(found: Trajectory, file: Path | None) -> None:
    """Save a trajectory in a file of its own, where one was named."""
    from specdiag.files import write_atomically

    if file is not None:
        write_atomically(file, found.to_json())


def answer(found: Trajectory, format: str, metric: str | None, *, all_rows: bool, file: Path | None) -> None:
    """Print the tables, or data for a pipeline; everything is in the output folder already. JSON goes to the file."""
    from specdiag.views.export import export

    save(found, file)
    if format == "table":
        _print(found, metric or default_metric(found), all_rows=all_rows)
    elif format == "json":
        if file is None:
            output.write(found.to_json())
    elif format == "csv":
        rows = [{"step": r.step, "module": r.module, "metric": r.metric, "value": r.value} for r in found.rows]
        output.write(export(rows, ("step", "module", "metric", "value"), "csv"))
    else:
        wide = _rows(found, metric or default_metric(found))
        output.write(export(wide, list(wide[0]), "md"))
    output.talk(f"log and reports: {found.out}{'' if file is None else f'; trajectory: {file}'}", "green")
    if format == "table":
        saved = shlex.quote(_source(found))
        answer_output.show_next({f"specdiag plot {kind} {saved}": what for kind, what in _PICTURES.items()})


def _source(found: Trajectory) -> str:
    """The run as it was given, where its own folder has the log; else the folder with the log."""
    from specdiag.trajectories.records import OUT_NAME

    inside = (Path(found.run) / OUT_NAME).resolve() == Path(found.out).resolve()
    return found.run if inside else str(found.out)


def watched(found: Trajectory, alerts: Sequence[Alert]) -> None:
    """Print the answer of a run that was looked at once: its alerts, and its course."""
    from specdiag.trajectories.wording import headline, watch_headline

    console = output.console()
    console.print(watch_headline(found, alerts), style="bold red" if alerts else "bold green", soft_wrap=True)
    if found.steps:
        console.print(headline(found), soft_wrap=True)


def default_metric(found: Trajectory) -> str:
    """The default metric: the first of these that has values."""
    metrics = ("square_alpha", "alpha", "frobenius_norm")
    return next((m for m in metrics if any(r.metric == m for r in found.rows)), "alpha")


@contextmanager
def sinks(names: Sequence[str], run: str, out: Path | None) -> Generator[Callable[[Observation], None]]:
    """Opens other trackers, yields what sends them an observation, and closes them."""
    from specdiag.trajectories.records import OUT_NAME, StepResult
    from specdiag.trajectories.sinks import open_sink, tagged

    path = Path(run)
    folder = out or (path if path.is_dir() else path.parent if path.is_file() else Path()) / OUT_NAME
    opened = [open_sink(name, run, folder) for name in names]

    def send(seen: Observation) -> None:
        if opened and isinstance(seen.result, StepResult):
            values = tagged(seen.trajectory, seen.result.step) | {"run/alerts": float(len(seen.alerts))}
            for sink in opened:
                sink.log(seen.result.step, values)

    try:
        yield send
    finally:
        for sink in opened:
            sink.close()


def metric_table(found: Trajectory, metric: str, width: int, steps: Sequence[int] | None = None) -> Group:
    """A metric by step and role, with the loss and the balance beside it."""
    rows = [row for row in _rows(found, metric) if steps is None or row["step"] in steps]
    heads = list(_rows(found, metric)[0])
    digits = {"loss": 4, "eval_loss": 4, "balance": 3}
    columns: list[tables.Column[dict[str, Any]]] = [
        tables.Column(head, lambda row, h=head: tables.number(row[h], digits.get(h, 3)), 0 if i < 9 else i)
        for i, head in enumerate(heads)
    ]
    return tables.draw(f"{words(metric)} by step (medians per role)", columns, rows, width)


def _print(found: Trajectory, metric: str, *, all_rows: bool) -> None:
    from specdiag.trajectories.wording import headline

    console = output.console()
    console.print(headline(found), style="bold", soft_wrap=True)
    console.print()
    steps = [s.step for s in found.steps]
    if len(steps) > _MOST and not all_rows:
        steps = sorted({steps[round(i * (len(steps) - 1) / (_MOST - 1))] for i in range(_MOST)})
    console.print(metric_table(found, metric, console.width, steps))
    if len(steps) < len(found.steps):
        console.print(f"{len(steps)} of {len(found.steps)} steps (--all: every one)")
    console.print()
    if len(found.steps) > 1:
        console.print(_overview(found, console.width))
        console.print()
    for dropped in found.dropped:
        name = dropped.location if dropped.step is None else f"Step {dropped.step}"
        console.print(f"{name} left out: {dropped.reason}", soft_wrap=True)
    for note in found.notes:
        console.print(note, soft_wrap=True)


def _rows(found: Trajectory, metric: str) -> list[dict[str, Any]]:
    """Rows, one for each step: losses and balance where there are any, then each role."""
    from specdiag.trajectories.records import RUN_METRICS

    series = {"loss": found.series("loss"), "eval_loss": found.series("eval_loss")}
    if metric == "square_alpha":
        series["balance"] = found.series("balance_sd")
    if metric in RUN_METRICS:
        series[metric] = found.series(metric)
    else:
        series |= {label: found.series(metric, role, family=f, form=form) for label, form, f, role in _labelled(found)}
    rows: dict[int, dict[str, Any]] = {s.step: {"step": s.step} for s in found.steps}
    for name, values in series.items():
        known = dict(values)
        for step, row in rows.items() if known else ():
            row[name] = known.get(step)
    return list(rows.values())


def _labelled(found: Trajectory) -> list[tuple[str, Form, str, str]]:
    """Each role with its form, its family and a head of its own; those of the function that stored ones have marked."""
    stored, function = found.roles(), found.roles("function")
    names = [role for _, role in stored]
    heads: list[tuple[str, Form, str, str]] = [
        (role if names.count(role) == 1 else f"{family} {role}", "stored", family, role) for family, role in stored
    ]
    return heads + [(f"{role} (function)" if role in names else role, "function", f, role) for f, role in function]


def _overview(found: Trajectory, width: int) -> Group:
    """Each metric of each role at the first and at the last step."""
    rows = [
        (label, {m: found.series(m, role, family=f, form=form) for m in _OVERVIEW})
        for label, form, f, role in _labelled(found)
    ]

    def column(metric: str) -> tables.Column[tuple[str, dict[str, list[tuple[int, float]]]]]:
        digits = 1 if metric == "stable_rank" else 3
        return tables.Column(words(metric), lambda row: _ends(row[1][metric], digits), _OVERVIEW.index(metric))

    shown = [m for m in _OVERVIEW if any(row[1][m] for row in rows)]
    first, last = found.steps[0].step, found.steps[-1].step
    title = f"Step {first} → step {last} (medians per role)"
    return tables.draw(title, [tables.Column("role", lambda r: r[0], right=False), *map(column, shown)], rows, width)


def _ends(values: Sequence[tuple[int, float]], digits: int) -> str:
    return "·" if not values else f"{values[0][1]:.{digits}f} → {values[-1][1]:.{digits}f}"
