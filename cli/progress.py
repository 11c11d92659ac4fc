"""A progress bar on stderr that vanishes: matrices, bytes, time left."""

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
    """Yields the callback for `specdiag.analyze`, None where nobody watches. The fraction shown is that of the work."""
    if not output.shows_progress():
        yield None
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.fields[count]}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[size]}"), TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[name]}", markup=False, style="dim"),
    )  # fmt: skip
    with Bar(*columns, console=output.console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, count="reading", size="", name="")

        def update(p: Progress) -> None:
            size = f"{p.nbytes / 2**20:.0f}/{p.n_bytes / 2**20:.0f} MiB"
            bar.update(
                task, completed=p.fraction, count=f"{p.matrices}/{p.n_matrices}", size=size, name=legible(p.name)
            )

        yield update
