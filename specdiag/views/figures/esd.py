"""Densities of eigenvalues, log-log, with the fit, its threshold, and what noise would show: a panel a matrix."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from specdiag.errors import UsageError
from specdiag.records import ModuleRecord, stored_role
from specdiag.report import SpectralReport
from specdiag.text import checks
from specdiag.views.cells import role_label
from specdiag.views.figures.axes import hide_inner, panels
from specdiag.views.figures.density import Curve, curve, draw, finish, span_of, spectra
from specdiag.views.figures.examples import Example, examples
from specdiag.views.figures.palette import palette
from specdiag.views.figures.ridges import ridges
from specdiag.views.figures.selection import by_place, check_report, choose, common_null, value
from specdiag.views.figures.style import (
    ReportFigure,
    legend,
    new_figure,
    plain,
    report_caption,
    report_names,
    shortened,
    styled,
)

_PANELS = 12
"""Largest number of panels: of more matrices the extremes and the medians are drawn."""
_DETAILS_UP_TO = 2
"""Number of curves in a panel beyond which fits and nulls would hide the spectra."""
_ALIKE = 0.02
"""Exponents that differ by less are those of one law, for the eye."""
_HEADROOM = 0.12
"""Share of the height that is left free for the exponents."""
_EXPERT = re.compile(r"experts?[.=](\d+)")
_LINES = ("-", "--", "-.", ":")


@styled
def esd(
    report: SpectralReport,
    *others: SpectralReport,
    include: str | Sequence[str] = (),
    layers: int | Sequence[int] = (),
    roles: str | Sequence[str] = (),
    every: bool = False,
) -> ReportFigure:
    """Draw densities of eigenvalues, log-log, a panel a matrix, with alpha and what noise of that shape scores.

    More than 12 matrices are reduced to the heaviest-tailed, the median and the lightest-tailed of each group. Panels
    of one or two curves show the fitted power law above its threshold lambda_min, the Marchenko-Pastur law of that
    shape up to `mp_edge`, and the density of the matrix with its entries permuted where it was computed, its largest
    eigenvalue as a line.

    Args:
        report: from `analyze` or `load_report`, with its eigenvalues.
        others: reports of other checkpoints with modules of the same names.
        include: globs on names; only these.
        layers: only these.
        roles: only these.
        every: draw all matrices of one report instead, as ridges by layer.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: nothing of the kind is in a report, or it was saved without eigenvalues.
    """
    chosen = choose(report, include, layers, roles)
    for other in others:
        check_report(other)
    if checks.flag("every", every):
        if others:
            raise UsageError("every=True draws the matrices of one report: leave out the others")
        return ridges(report, chosen)
    reports = (report, *others)
    grid_of = examples(_with_counterparts(reports, [r for r in chosen if r.spectral_norm]), _PANELS)
    cells = [cell for row in grid_of for cell in row]
    shown = [None if cell is None else _curves(reports, cell.record) for cell in cells]
    curves = [c for held in shown if held is not None for c in held]
    if not curves:
        raise UsageError(f"{report.source}: no matrix that was asked for has a spectrum")
    detailed = len(reports) <= _DETAILS_UP_TO
    groups = len(grid_of[0]) if len(grid_of) > 1 else None
    columns, width, height, most = _sizes(len(cells), groups)
    spans = _spans(shown, groups, details=detailed)
    notes = _notes(cells, len(chosen), list(zip(shown, spans, strict=True)), detailed=detailed)
    title = _headline(reports, [cell.record for cell in cells if cell is not None])
    figure = new_figure(width, height, title, report_caption(*reports, notes=notes))
    grid = panels(figure, len(cells), columns, [i for i, held in enumerate(shown) if held is None])
    hide_inner(grid)
    heights: list[float] = []
    filled = [
        (cell, held, span)
        for cell, held, span in zip(cells, shown, spans, strict=True)
        if cell is not None and held is not None
    ]
    names = Counter(map(_name, report))
    room = int((width - 0.6) / columns * 12)
    for panel, (cell, held, span) in zip(grid, filled, strict=True):
        heights += draw(panel.axes, held, span, details=detailed)
        panel.axes.set_title(_title(cell, names, room, alone=len(filled) == 1), fontsize=8.5)
        _state(panel.axes, held)
    finish(
        grid,
        [span for _, _, span in filled],
        [*heights, max(heights) * (max(heights) / min(heights)) ** _HEADROOM],
        most,
    )
    legend(figure)
    return figure


def _spans(shown: Sequence[Sequence[Curve] | None], groups: int | None, *, details: bool) -> list[tuple[float, float]]:
    """Find the axis of each panel: one for all, or one for each group, which has a column of its own."""
    n = groups or 1
    columns = [[c for held in shown[i::n] if held is not None for c in held] for i in range(n)]
    spans = [span_of(held, details=details) if held else (1.0, 10.0) for held in columns]
    return [spans[i % n] for i in range(len(shown))]


def exponents(record: ModuleRecord) -> str:
    """Write alpha with that of noise, or the status where there is no alpha."""
    if record.alpha is None:
        return record.status
    return f"alpha {record.alpha:.2f}" + ("" if record.alpha_null is None else f", random {record.alpha_null:.2f}")


def _with_counterparts(reports: Sequence[SpectralReport], records: Sequence[ModuleRecord]) -> list[ModuleRecord]:
    """Keep the records that every report has."""
    if len(reports) == 1:
        return list(records)
    places = {r.key: place for place, r in by_place(reports[0]).items()}
    kept = list(records)
    for report in reports[1:]:
        there = by_place(report)
        common = [r for r in kept if places[r.key] in there]
        if kept and not common:
            wanted = ", ".join(_name(r) for r in kept[:3])
            raise UsageError(f"{report.source} has no counterpart of {wanted}, nor of any other that was asked for")
        kept = common
    return kept


def _curves(reports: Sequence[SpectralReport], record: ModuleRecord) -> list[Curve]:
    """Prepare the spectrum of a matrix in each report that has one."""
    if len(reports) == 1:
        only = curve(reports[0], record, palette().roles[stored_role(record.role)].colour, "eigenvalues")
        return [] if only is None else [only]
    place = next(place for place, r in by_place(reports[0]).items() if r is record)
    looks = zip(
        reports, report_names(reports), palette().checkpoints * len(reports), _LINES * len(reports), strict=False
    )
    held = [curve(report, by_place(report)[place], colour, name, line) for report, name, colour, line in looks]
    return [c for c in held if c is not None]


def _state(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write the exponents into the empty upper right of a panel."""
    for i, c in enumerate(curves):
        colour = palette().ink if len(curves) == 1 else c.colour
        axes.text(
            0.98, 0.97 - 0.1 * i, exponents(c.record), ha="right", va="top", fontsize=8, color=colour,
            transform=axes.transAxes, bbox={"facecolor": palette().paper, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip


def _headline(reports: Sequence[SpectralReport], records: Sequence[ModuleRecord]) -> str:
    """Name the heaviest and the lightest tail, or compare the only one with noise."""
    metric = "square_alpha" if any(r.square_alpha is not None for r in records) else "alpha"
    valued = sorted(((v, _name(r)) for r in records if (v := value(r, metric)) is not None), key=lambda pair: pair[0])
    if len(reports) > 1 or not valued:
        return "Density of eigenvalues beside random matrices"
    if len(records) == 1:
        alpha, random = records[0].alpha, records[0].alpha_null
        if alpha is None or random is None:
            return f"Density of the eigenvalues of {valued[0][1]}"
        tail = (
            "the tail of"
            if abs(alpha - random) < _ALIKE
            else f"a {'heavier' if alpha < random else 'lighter'} tail than"
        )
        return f"{valued[0][1]} has {tail} a random matrix: alpha {alpha:.2f} against {random:.2f}"
    (low, heaviest), (high, lightest) = valued[0], valued[-1]
    ends = f"Heaviest tail: {heaviest} ({metric} {low:.2f}); lightest: {lightest} ({high:.2f})"
    noise = common_null(records, metric)
    return ends if noise is None else f"{ends}; random matrices score {noise:.2f}"


def _title(cell: Example, names: Mapping[str, int], room: int, *, alone: bool) -> str:
    name = _name(cell.record)
    title = cell.record.key.removesuffix(".weight") if alone or names[name] > 1 else name
    return plain(shortened(title, room)) + (f"\n{cell.reason}" if cell.reason else "")


def _name(r: ModuleRecord) -> str:
    if r.layer is None:
        return r.key.removesuffix(".weight")
    part, expert = "" if r.component is None else f"{r.component} ", _EXPERT.search(r.key)
    return f"{part}layer {r.layer} {role_label(r)}" + (f", expert {expert[1]}" if expert else "")


def _notes(
    cells: Sequence[Example | None],
    n_chosen: int,
    shown: Sequence[tuple[Sequence[Curve] | None, tuple[float, float]]],
    *,
    detailed: bool,
) -> tuple[str, ...]:
    n_drawn = sum(cell is not None for cell in cells)
    notes = [] if n_drawn == n_chosen else [f"{n_drawn} of {n_chosen} matrices"]
    if not detailed:
        notes.append(f"fits and nulls are drawn for up to {_DETAILS_UP_TO} curves a panel")
    if any(values[0] < low for held, (low, _) in shown for values in spectra(held or (), details=detailed)):
        notes.append("axis clipped: smallest eigenvalues not shown")
    return tuple(notes)


def _sizes(n: int, columns: int | None) -> tuple[int, float, float, int]:
    """Compute columns, width and height in inches, and how many ticks an axis has room for."""
    if n == 1:
        return 1, 6.4, 4.4, 6
    columns = columns or (n if n <= 3 else 3 if n in (5, 6, 9) else 4)
    width, height = (3.4, 2.6) if n <= 4 else (2.6, 2.1)
    return columns, width * columns + 0.8, height * -(-n // columns) + 1.0, 5 if n <= 4 else 4
