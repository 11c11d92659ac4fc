"""Names beside lines, in their colours: nobody has to look them up in a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

_SIZE = 8
_GAP = 1.2 * _SIZE
"""Points from one name to the next."""
_BESIDE = 5
"""Points between a panel and its names."""


def name_lines(figure: Figure, panels: Sequence[Axes]) -> None:
    """Write the label of each line at the right of its panel, at the height at which the line ends.

    Names that would meet are moved apart, and one that several lines share is written once. A vertical line has its
    name along itself. Lines whose label begins with an underscore have none.

    Args:
        figure: with all else drawn, for the heights are those of its layout.
        panels: of the figure.
    """
    names = {axes: _write(axes) for axes in panels}
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    for axes, texts in names.items():
        texts.sort(key=lambda text: text.xy[1])
        wanted = [float(axes.transData.transform((0, text.xy[1]))[1]) * points for text in texts]
        panel = axes.get_window_extent()
        places = apart(wanted, _GAP, panel.y0 * points, panel.y1 * points)
        for text, at, place in zip(texts, wanted, places, strict=True):
            text.xyann = (_BESIDE, place - at)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places as little as needed to have a gap between any two: those that meet share their mean.

    Args:
        wanted: ascending.
        gap: least distance.
        low: lowest place.
        high: highest place, which is passed where there are too many.
    """
    blocks: list[tuple[float, int]] = []
    for i, place in enumerate(wanted):
        mean, n = place - i * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, m = blocks.pop()
            mean, n = (before * m + mean * n) / (m + n), m + n
        blocks.append((mean, n))
    most = max(low, high - (len(wanted) - 1) * gap)
    levels = [min(max(mean, low), most) for mean, n in blocks for _ in range(n)]
    return [level + i * gap for i, level in enumerate(levels)]


def _write(axes: Axes) -> list[Annotation]:
    texts: dict[str, Annotation] = {}
    for line in axes.lines:
        label, height = str(line.get_label()), np.asarray(line.get_ydata(), float)
        if label.startswith("_") or not height.size or label in texts:
            continue
        if line.get_transform() == axes.get_xaxis_transform():
            axes.annotate(f"{label} ", (float(np.asarray(line.get_xdata(), float)[0]), 1), rotation=90, ha="right",
                          va="top", xycoords=line.get_transform(), color=line.get_color(), fontsize=_SIZE)  # fmt: skip
            continue
        texts[label] = axes.annotate(
            label, (1, float(height[-1])), xycoords=axes.get_yaxis_transform(), xytext=(_BESIDE, 0),
            textcoords="offset points", va="center", color=line.get_color(), fontsize=_SIZE, annotation_clip=False,
        )  # fmt: skip
    return list(texts.values())
