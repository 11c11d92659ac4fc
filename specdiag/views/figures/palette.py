"""Colours and markers: one set for light pages, one for dark ones.

All were chosen by search: lines have a contrast of at least 3:1 to the page, and any two that meet in a picture differ
in CIELAB also to eyes without red or green cones (`tests/views/test_colours.py` measures both). Within attention and
within the MLP the lightness differs too, and each role has its own marker, so that print without colour can be read.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, get_args

from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_rgb

from specdiag.records import ROLES, Role
from specdiag.text import checks

StyleName = Literal["light", "dark"]
_INKS = ("#222222", "#ffffff")
_MARKERS = "osDhP^v>Xp*Hd."


class RoleStyle(NamedTuple):
    """The look of one role in every figure."""

    colour: str
    marker: str


class Palette(NamedTuple):
    """The colours of a figure."""

    paper: str
    ink: str
    faint: str
    """Colour of axes, captions and lines of reference."""
    null: str
    """Colour of the score of noise."""
    roles: dict[Role, RoleStyle]
    checkpoints: tuple[str, ...]
    """Colours of the first, second, ... checkpoint or setting where several are compared."""
    layers: Colormap
    """From the first layer to the last, as lines."""
    around_null: Colormap
    """Around the value of noise, as cells: purple below, the colour of the page at it, orange above."""


def _roles(*colours: str) -> dict[Role, RoleStyle]:
    looks = map(RoleStyle, colours, _MARKERS)
    return dict(zip(ROLES, looks, strict=True))


def _map(name: str, *stops: str) -> Colormap:
    return LinearSegmentedColormap.from_list(name, stops)


VALUES = colormaps["cividis"]
"""From low to high, as cells. Its lightness rises with the value, also without colour."""

LIGHT = Palette(
    paper="#ffffff", ink="#222222", faint="#707070", null="#555555",
    roles=_roles(
        "#1149bd", "#218250", "#3ca0af", "#099be1", "#15336b", "#591e45", "#e47518", "#6f471c", "#7762a6", "#67696e",
        "#4b4637", "#b58c49", "#905a04", "#909589",
    ),
    checkpoints=("#112691", "#af6100", "#30a587", "#5f1c09", "#4f98da", "#2c3952"),
    layers=_map("depth", "#00224e", "#3d4c6e", "#7a6a55", "#b08018"),
    around_null=colormaps["PuOr_r"],
)  # fmt: skip
DARK = Palette(
    paper="#14171a", ink="#e6e6e6", faint="#9aa0a6", null="#b4b8bd",
    roles=_roles(
        "#178dfe", "#b7f4b2", "#057d6a", "#417195", "#acc2fb", "#d01a60", "#fd916f", "#fed64d", "#9084d2", "#e5e5f7",
        "#989eaf", "#89672b", "#ebec86", "#b9c0af",
    ),
    checkpoints=("#c0b9ff", "#ffe348", "#c33a22", "#9afbc0", "#746876", "#625cd3"),
    layers=_map("depth", "#5f7fc4", "#8b93a0", "#b3a98a", "#d2c060", "#fee838"),
    around_null=_map("around", "#d8ccff", "#9a86d8", "#544c78", "#262a2f", "#75502a", "#d68a35", "#ffd199"),
)  # fmt: skip
_STYLES: dict[str, Palette] = {"light": LIGHT, "dark": DARK}
_current: ContextVar[Palette] = ContextVar("palette", default=LIGHT)


def palette() -> Palette:
    """Give the colours that figures are drawn in now."""
    return _current.get()


@contextmanager
def style(name: StyleName) -> Generator[None]:
    """Draw the figures that are made inside in the colours for light or for dark pages.

    Args:
        name: `light`, which is the default elsewhere, or `dark`.

    Raises:
        UsageError: there is no such style.

    Example:
        >>> with specdiag.plot.style("dark"):
        ...     figure = specdiag.plot.alpha(report)
    """
    checks.one_of("name", name, get_args(StyleName))
    before = _current.set(_STYLES[name])
    try:
        yield
    finally:
        _current.reset(before)


def ink_on(colour: str) -> str:
    """Give the colour of text on a background: dark or white, whichever has the larger contrast."""
    return max(_INKS, key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """Compute the contrast of two colours, from 1 to 21, as WCAG 2 defines it.

    Args:
        one: as `#rrggbb`.
        other: likewise.
    """
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
