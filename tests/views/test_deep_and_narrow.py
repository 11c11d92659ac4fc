"""Figures that stay readable: an axis for each group, lines below the text, few ridges, pale cells near noise."""

import pytest
import torch

import specdiag
from specdiag.views.figures.cell_colours import cell_colours
from specdiag.views.figures.density import _BELOW_TEXT
from specdiag.views.figures.ridges import _MOST_RIDGES


def decoder(layers, scale=1.0):
    torch.manual_seed(0)
    return {
        f"model.layers.{layer}.{name}.weight": torch.randn(64, 64) * (scale if name.startswith("mlp") else 1.0)
        for layer in range(layers)
        for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    }


def panels(figure):
    return [axes for axes in figure.axes if axes.get_xscale() == "log"]


def test_groups_of_other_scale_have_axes_of_their_own():
    report = specdiag.analyze(decoder(4, scale=1000.0), device="cpu", cache=None)
    drawn = panels(specdiag.plot.esd(report))
    limits = {tuple(round(v, 6) for v in axes.get_xlim()) for axes in drawn}
    assert len(limits) == 3
    assert all(high / low < 1e6 for low, high in limits)
    lines = [line for axes in drawn for line in axes.lines if line.get_label() == "lambda_min of the fit"]
    assert len(lines) == len(drawn)
    assert {max(line.get_ydata()) for line in lines} == {_BELOW_TEXT}


@pytest.mark.parametrize(("layers", "ridges"), [(30, 30), (80, 27)])
def test_ridges_of_deep_models_are_means(layers, ridges):
    report = specdiag.analyze(decoder(layers), device="cpu", cache=None)
    figure = specdiag.plot.esd(report, every=True)
    assert {len(axes.collections) for axes in panels(figure)} == {ridges}
    assert ridges <= _MOST_RIDGES
    captions = " ".join(text.get_text() for text in figure.texts)
    assert ("a ridge is the mean of 3 layers" in captions) == (layers > _MOST_RIDGES)


def test_cells_near_noise_are_pale():
    near, far = cell_colours([2.08, 2.16], 2.12), cell_colours([1.6, 2.16], 2.12)
    assert near.background(2.08) != near.background(2.12)
    assert (near.low, near.high) == pytest.approx((1.82, 2.42))
    assert far.low == pytest.approx(1.6)
