"""A table of a run on stderr that grows with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from . import output
from . import trajectory_output as show
from .streams import legible

if TYPE_CHECKING:
    from specdiag.trajectories.watching import Observation

_STEPS, _ALERTS = 15, 8


@contextmanager
def live_table(metric: str | None) -> Generator[Callable[[Observation], None]]:
    """Yields what takes each observation: into a table where a person watches, else a line each."""
    if not output.shows_progress():
        yield _lines
        return
    from rich.live import Live

    console = output.console(stderr=True)
    said: list[str] = []
    with Live(Text("waiting for a checkpoint", style="dim"), console=console, auto_refresh=False) as live:

        def update(seen: Observation) -> None:
            said.extend(alert.message for alert in seen.alerts)
            found = seen.trajectory
            parts: list[object] = []
            if found.steps:
                steps = [s.step for s in found.steps][-_STEPS:]
                parts.append(show.metric_table(found, metric or show.default_metric(found), console.width, steps))
            parts += [Text(legible(f"{d}: left out, {d.reason}"), style="yellow") for d in found.dropped]
            parts += [Text(legible(f"ALERT: {message}"), style="bold red") for message in said[-_ALERTS:]]
            live.update(Group(*parts), refresh=True)  # pyright: ignore[reportArgumentType]

        yield update


def _lines(seen: Observation) -> None:
    show.step_line(seen.result)
    for alert in seen.alerts:
        output.fault(f"step {alert.step}: {alert.message}", "ALERT: ")
