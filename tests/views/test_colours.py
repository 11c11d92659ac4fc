"""Colours of one figure differ for all readers, colour-blind or not, and have contrast on light and dark pages."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray
from PIL import Image

from specdiag import plot
from specdiag.errors import UsageError
from specdiag.views.figures.palette import DARK, LIGHT, Palette, contrast, palette

Floats = NDArray[np.float64]
PALETTES = {"light": LIGHT, "dark": DARK}
EYES = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
}  # fmt: skip
"""Linear RGB as it is seen: Machado, Oliveira and Fernandes 2009 (IEEE TVCG 15:1291), severity 1.0."""
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
"""sRGB's primaries under D65, IEC 61966-2-1."""


def linear(colour: str) -> Floats:
    c = np.array(to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: Floats) -> Floats:
    """CIELAB of linear RGB (CIE 15)."""
    t = np.clip(rgb, 0, 1) @ XYZ.T / XYZ.sum(axis=1)
    x, y, z = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def difference(one: str, other: str, eyes: str) -> float:
    seen = EYES[eyes]
    return float(np.linalg.norm(lab(seen @ linear(one)) - lab(seen @ linear(other))))


def lightness(colour: str) -> float:
    return float(lab(linear(colour))[0])


def test_the_model_of_vision():
    """Reference values: CIELAB of sRGB red and blue; red and green of equal lightness are one to a deuteranope."""
    assert lab(linear("#ff0000")) == pytest.approx([53.24, 80.09, 67.20], abs=0.02)
    assert lab(linear("#0000ff")) == pytest.approx([32.30, 79.19, -107.86], abs=0.02)
    assert difference("#c04040", "#7d7d00", "normal") > 40
    assert difference("#c04040", "#7d7d00", "deuteranopia") < 20
    for seen in EYES.values():
        assert seen.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)  # greys stay


@pytest.mark.parametrize("look", PALETTES.values(), ids=PALETTES)
@pytest.mark.parametrize("eyes", EYES)
def test_colours_that_meet_differ(eyes: str, look: Palette):
    roles = [role.colour for role in look.roles.values()]
    for colours, least in ((roles, 17), (look.checkpoints, 35), ((*look.checkpoints[:2], look.faint), 30)):
        for one, other in itertools.combinations(colours, 2):
            assert difference(one, other, eyes) > least, (one, other)


@pytest.mark.parametrize("look", PALETTES.values(), ids=PALETTES)
def test_lines_and_texts_are_seen_on_their_page(look: Palette):
    depths = [look.layers(i / 31) for i in range(32)]
    lines = [role.colour for role in look.roles.values()] + [*look.checkpoints, look.null]
    for colour in [*lines, *(to_hex(depth) for depth in depths)]:
        assert contrast(colour, look.paper) >= 3, colour
    for text in (look.ink, look.faint, look.null):
        assert contrast(text, look.paper) >= 4.5, text


@pytest.mark.parametrize("look", PALETTES.values(), ids=PALETTES)
def test_roles_of_a_panel_differ_in_grey(look: Palette):
    for panel in ("qkvo", ("gate", "up", "down", "router")):
        greys = sorted(lightness(look.roles[role].colour) for role in panel)
        assert min(np.diff(greys)) > 9, panel
    assert abs(lightness(look.checkpoints[0]) - lightness(look.checkpoints[1])) > 9
    assert len({role.marker for role in look.roles.values()}) == len(look.roles)


@pytest.mark.parametrize("look", PALETTES.values(), ids=PALETTES)
def test_depth_has_an_order_in_grey(look: Palette):
    greys = np.array([lightness(to_hex(look.layers(i / 31))) for i in range(32)])
    assert (np.diff(greys) > 0).all()


@pytest.mark.parametrize("look", PALETTES.values(), ids=PALETTES)
def test_noise_has_the_colour_of_the_page(look: Palette):
    def seen(share: float) -> str:
        return to_hex(look.around_null(share))

    for eyes in EYES:
        assert difference(seen(0.5), look.paper, "normal") < 10
        away = [
            difference(seen(0.5 + side * share), look.paper, eyes) for side in (-1, 1) for share in (0.2, 0.35, 0.5)
        ]
        assert min(away) > 20
        assert difference(seen(0.15), seen(0.85), eyes) > 40


def test_a_style_ends_with_its_block(small):
    with plot.style("dark"):
        figure = plot.alpha(small)
        assert palette() is DARK
    assert palette() is LIGHT
    assert figure.palette is DARK
    assert plot.alpha(small).palette is LIGHT
    with pytest.raises(UsageError, match="unknown name='sepia'; choose from light, dark"), plot.style("sepia"):
        pass


@pytest.mark.parametrize("name", PALETTES)
@pytest.mark.parametrize("transparent", [False, True])
def test_the_page_of_a_file(name, transparent, small, tmp_path):
    with plot.style(name):
        figure = plot.alpha(small)
    file = plot.save(figure, tmp_path / "a.png", dpi=40, transparent=transparent)
    corner = Image.open(file).convert("RGBA").getpixel((1, 1))
    page = tuple(round(255 * c) for c in to_rgb(PALETTES[name].paper))
    assert corner[3] == (0 if transparent else 255)
    assert transparent or corner[:3] == page
