"""Models that figures are drawn of, and what stands in a figure."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

Found = list[tuple[str, Bbox]]
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def llama(layers: int, seed: int = 0, d: int = 64, ff: int = 160, kv: int = 64) -> dict[str, torch.Tensor]:
    """Weights of LLaMA whose rows have unequal norms."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d), "gate": (ff, d), "up": (ff, d), "down": (d, ff)}
    state = {"model.embed_tokens.weight": torch.randn(300, d, generator=generator)}
    for layer, (role, shape) in itertools.product(range(layers), shapes.items()):
        scale = torch.exp(0.5 * torch.randn(shape[0], 1, generator=generator))
        place = "self_attn" if role in "qkvo" else "mlp"
        state[f"model.layers.{layer}.{place}.{role}_proj.weight"] = (
            torch.randn(*shape, generator=generator) * scale / d**0.5
        )
    return state


def experts(layers: int, n: int) -> dict[str, torch.Tensor]:
    """Attention, and an MLP of n experts."""
    generator = torch.Generator().manual_seed(0)
    roles = [f"mlp.experts.{e}.{role}_proj" for e in range(n) for role in ("gate", "up", "down")]
    roles += [f"self_attn.{role}_proj" for role in "qkvo"]
    return {
        f"model.layers.{layer}.{role}.weight": torch.randn(64, 64, generator=generator)
        for layer in range(layers)
        for role in roles
    }


def texts(figure: Figure) -> Found:
    """Every text that is drawn, with its box in pixels."""
    figure.canvas.draw()
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    hidden = {text for axis in axes if not axis.get_visible() for text in axis.findobj(Text)}
    for axis in axes:  # ticks beyond the view are kept, but not drawn
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low - 1e-9 <= tick.get_loc() <= high * (1 + 1e-9):
                hidden |= {tick.label1, tick.label2}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


def overlaps(found: Found) -> list[tuple[str, str]]:
    """Pairs of texts that meet."""
    boxes = np.array([box.extents for _, box in found])
    common = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    pairs = np.argwhere(np.triu((common > 1).all(axis=2), 1))
    return [(found[i][0], found[j][0]) for i, j in pairs]


def lines(axes: Axes) -> dict[str, Line2D]:
    """By label."""
    return {str(line.get_label()): line for line in axes.lines}
