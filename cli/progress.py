"""A progress bar on stderr that vanishes: the share of the work that is done, and the time left."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import output
from .streams import legible

if TYPE_CHECKING:
    from specdiag.analysis.run import Progress


@contextmanager
def analysis_bar() -> Generator[Callable[[Progress], None] | None]:
    """Yields the callback for `specdiag.analyze`, None where nobody watches. A second analysis starts the bar anew."""
    if not output.shows_progress():
        yield None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True), TextColumn("left"),
        TextColumn("{task.fields[name]}", markup=False, style="dim"),
    )  # fmt: skip
    with Bar(*columns, console=output.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, name="reading")

        def update(p: Progress) -> None:
            if p.fraction < bar.tasks[0].completed:
                bar.reset(task, total=1.0, name="")
            bar.update(task, completed=p.fraction, name=legible(p.name))

        yield update
