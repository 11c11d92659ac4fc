"""How every figure looks beside its colours: the fonts, the title, the caption with source and settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, ParamSpec

from matplotlib import font_manager, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path

from specdiag.decay.plan import DecayPlan
from specdiag.records import Family
from specdiag.report import SpectralReport
from specdiag.spectra.farms import described
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.text.counts import counted
from specdiag.text.printable import printable
from specdiag.views.figures.palette import LIGHT, Palette, palette

P = ParamSpec("P")

_CAPTION_SIZE, _TITLE_SIZE = 7, 11
_FONTS: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "figure.titlesize": _TITLE_SIZE,
    "savefig.facecolor": "auto",
    "text.usetex": False,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    "svg.hashsalt": "specdiag",
}
_MARGIN = 0.1
"""Inches left of title, legend and caption, and right of them."""
_HINTED = 0.9
"""Share of a line that letters may take by their outlines: on the grid of 90 dots an inch they become wider."""
_ROW = 0.2
"""Inches of a row of the legend."""


FAMILY_TITLES: dict[Family, str] = {
    "attention": "attention", "mlp": "MLP", "embedding": "embeddings", "other": "other",
}  # fmt: skip


class ReportFigure(Figure):
    """A matplotlib figure that pyplot does not keep open, and that a notebook shows nevertheless."""

    palette: Palette = LIGHT
    """Its colours, in which ticks and texts that are made as late as in a rendering are drawn too."""

    def _repr_png_(self) -> bytes:
        return render(self, "png", 100)


def styled(draw: Callable[P, ReportFigure]) -> Callable[P, ReportFigure]:
    """Make a function draw in the style of this module. The reader's own settings are neither used nor changed.

    Args:
        draw: makes a figure.
    """

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> ReportFigure:
        with rc_context(_settings(palette())):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float, title: str, caption: str) -> ReportFigure:
    """Make an empty figure with its title, and its caption below everything else.

    Args:
        width: in inches.
        height: in inches.
        title: above all panels.
        caption: source and settings.
    """
    figure = ReportFigure(figsize=(width, height), layout="constrained")
    figure.palette = palette()
    FigureCanvasAgg(figure)
    at: dict[str, Any] = {"x": _MARGIN / width, "ha": "left"}
    room = width - 2 * _MARGIN
    figure.suptitle(wrapped(title, room, _TITLE_SIZE, bold=True), **at, fontweight="bold")
    figure.supxlabel(wrapped(caption, room, _CAPTION_SIZE), **at, fontsize=_CAPTION_SIZE, color=palette().faint)
    return figure


def legend(figure: Figure) -> None:
    """Draw one legend for all panels, in rows below the title, for which the figure grows.

    It shows the first of several lines with one label.

    Args:
        figure: with its panels drawn.
    """
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(" ".join(label.split()), handle)
    if not handles:
        return
    width, height = figure.get_size_inches()
    title = figure.texts[0].get_window_extent().height / figure.dpi if figure.texts else 0.0
    labels, columns = list(handles), len(handles)
    while True:
        strip = _ROW * -(-len(labels) // columns) + 0.05
        order = [labels[i] for i in _row_by_row(len(labels), columns)]
        box = figure.legend(
            [handles[label] for label in order], order, ncols=columns, loc="upper left", borderpad=0, borderaxespad=0,
            columnspacing=1.6, handlelength=1.8,
            bbox_to_anchor=(_MARGIN / width, 1 - (title + _MARGIN) / (height + strip)),
        )  # fmt: skip
        if columns == 1 or box.get_window_extent().width / figure.dpi <= width - 2 * _MARGIN:
            break
        box.remove()
        columns -= 1
    figure.set_size_inches(width, height + strip)
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(rect=(0, 0, 1, 1 - strip / (height + strip)))


def report_caption(*reports: SpectralReport, notes: tuple[str, ...] = ()) -> str:
    """Describe source and settings of reports.

    Args:
        reports: those of a figure.
        notes: what the figure adds.
    """
    return " · ".join([*(_described(report) for report in reports), *notes])


def report_names(reports: Sequence[SpectralReport]) -> list[str]:
    """Make short names of checkpoints for a legend, each different from the others."""
    own = [
        r.source.location.rstrip("/").rsplit("/", 1)[-1] if r.source.kind in ("dir", "file") else "" for r in reports
    ]
    names = [
        plain(shortened(n if own.count(n) == 1 and n else str(r.source), 30)) for n, r in zip(own, reports, strict=True)
    ]
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


def plan_caption(plan: DecayPlan) -> str:
    """Describe source and settings of a plan."""
    base = (
        "no base decay" if plan.base_weight_decay is None else f"base {plan.base_weight_decay:g} ({plan.base_origin})"
    )
    clip = "" if plan.clip is None else f", clipped to percentiles {plan.clip[0]:g}-{plan.clip[1]:g}"
    mean = ", mean kept at 1" if plan.preserve_mean else ""
    return (
        f"{plan.source}: {plan.rule} rule on {plan.basis} (tail {plan.tail}), s1 {plan.s1:g}, s2 {plan.s2:g}"
        f"{clip}{mean}; {base}; report {plan.report_digest[:12]}"
    )


def plain(text: str) -> str:
    """Make text that matplotlib draws as it is: one line, no mathematics, no characters that the font lacks.

    Args:
        text: an untrusted name, or a sentence with some.
    """
    drawable = _characters()
    text = "".join(c if ord(c) in drawable else "?" for c in printable(" ".join(text.split())))
    return text.replace("$", r"\$")


def shortened(text: str, most: int) -> str:
    """Shorten a name in its middle, which says least.

    Args:
        text: the name.
        most: the largest number of characters.
    """
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"


def render(figure: Figure, format: str, dpi: float = 150, *, transparent: bool = False) -> bytes:
    """Render a figure. The same figure gives the same bytes.

    Args:
        figure: any figure.
        format: `png`, `svg` or `pdf`.
        dpi: dots an inch, of a png.
        transparent: leave out the background.

    Returns:
        The content of the file.
    """
    out = BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context(_settings(figure.palette if isinstance(figure, ReportFigure) else palette())):
        figure.savefig(out, format=format, dpi=dpi, transparent=transparent, metadata=undated.get(format))
    return out.getvalue()


def _settings(look: Palette) -> dict[Any, Any]:
    pages = dict.fromkeys(("figure.facecolor", "axes.facecolor"), look.paper)
    inks = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), look.ink)
    return {**_FONTS, **pages, **inks, "axes.edgecolor": look.faint}


def _described(report: SpectralReport) -> str:
    s = report.settings
    fraction = f" at {s.tail_fraction:g}" if TAIL_RULES[s.tail].uses_fraction else ""
    fraction += f", {described(s)}" if s.tail == "farms" else ""
    version = report.provenance.versions.get("specdiag")
    made = "" if version is None else f", specdiag {version}"
    text = f"{report.source}: {counted(len(report), 'matrix', 'matrices')}, tail rule {s.tail}{fraction}{made}"
    return text if report.complete else f"{text}, INCOMPLETE"


def _row_by_row(n: int, columns: int) -> list[int]:
    """Order entries so that a legend, which fills its columns one by one, reads row by row."""
    return [i for column in range(columns) for i in range(column, n, columns)]


def wrapped(text: str, inches: float, size: float, *, bold: bool = False) -> str:
    """Break text into lines that are drawn no wider than some room; a word that is wider is broken too.

    Args:
        text: may hold untrusted names.
        inches: the room.
        size: of the font, in points.
        bold: its weight.
    """
    font = FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(plain(line), font, ismath=False)[0] <= inches * 72 * _HINTED

    lines = [""]
    for word in text.split():
        if fits(f"{lines[-1]} {word}"):
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for character in word:
            if not fits(lines[-1] + character) and lines[-1]:
                lines.append("")
            lines[-1] += character
    return "\n".join(plain(line) for line in lines if line)


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
