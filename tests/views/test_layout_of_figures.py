"""Layout of figures: titles that answer, captions and legends within the page, names of what is missing or far off."""

import pytest
import torch
from drawn_models import llama, texts

import specdiag
from specdiag import plot
from specdiag.trajectories.records import Trajectory
from specdiag.views.figures.palette import LIGHT
from specdiag.views.figures.style import new_figure, wrapped

LONG = "/srv/models/run-0123456789/moe32: 810 matrices, tail rule hill at 0.5 · drawn: the first 4 of up to 32 " * 3


@pytest.mark.parametrize("dpi", [72, 90, 100, 150])
def test_captions_end_within_the_page(dpi):
    figure = new_figure(8.0, 3.0, LONG, LONG)
    figure.set_dpi(dpi)
    for text, box in texts(figure):
        assert box.x1 <= 8.0 * dpi, text


def test_a_word_wider_than_the_page_is_broken():
    lines = wrapped("a " + "W" * 300, 4.0, 7).split("\n")
    assert len(lines) > 3
    assert "".join(lines) == "a" + "W" * 300


@pytest.mark.parametrize("kind", ["esd", "balance", "decay", "paper"])
def test_the_legend_stands_in_rows_between_title_and_panels(kind, reports):
    report = reports[12]
    plan = specdiag.recommend(report, weight_decay=0.1)
    draw = {"decay": lambda: plot.decay(plan), "paper": lambda: plot.paper(report, plan)}
    figure = draw.get(kind, lambda: getattr(plot, kind)(report))()
    texts(figure)
    (legend,) = figure.legends
    box, title = legend.get_window_extent(), figure.texts[0].get_window_extent()
    assert box.y1 <= title.y0 + 1
    assert all(box.y0 >= axes.get_tightbbox().y1 - 1 for axes in figure.axes)
    assert box.x1 <= figure.bbox.x1


def test_the_title_of_spectra_names_the_extremes(reports):
    report = reports[80]
    valued = sorted((r for r in report if r.square_alpha is not None), key=lambda r: r.square_alpha)
    title = " ".join(plot.esd(report).get_suptitle().split())
    assert title.startswith(f"Heaviest tail: layer {valued[0].layer} {valued[0].role} ")
    assert f"({valued[0].square_alpha:.2f}" in title or f"square_alpha {valued[0].square_alpha:.2f}" in title
    assert title[:-1].endswith("random matrices score 2.1")
    one = next(r for r in report if r.role == "q" and r.layer == 3)
    said = " ".join(plot.esd(report, roles="q", layers=3).get_suptitle().split())
    assert said.startswith("layer 3 q has ")
    assert said.endswith(f"alpha {one.alpha:.2f} against {one.alpha_null:.2f}")


def test_rows_of_spectra_stand_at_equal_distances():
    """A group of one has its panel in the last row, beside the axes of the others."""
    state = {name: w for name, w in llama(12).items() if "embed" not in name}
    state["model.embed_tokens.weight"] = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    figure = plot.esd(specdiag.analyze(state, jobs=1))
    texts(figure)
    rows = sorted({round(axes.get_position().y0, 4) for axes in figure.axes})
    assert len(rows) == 3
    assert rows[1] - rows[0] == pytest.approx(rows[2] - rows[1], abs=0.02)
    (only,) = (axes for axes in figure.axes if "only one of others" in axes.get_title())
    assert round(only.get_position().y0, 4) == rows[0]


def test_ridges_come_down_to_their_layer(reports):
    for axes in plot.esd(reports[2], every=True).axes:
        for line in (line for line in axes.lines if len(line.get_xdata()) > 2):
            assert line.get_ydata()[-1] == max(line.get_ydata())


def test_a_role_without_exponents_says_so():
    report = specdiag.analyze(llama(2, kv=32), jobs=1)
    panels = {axes.get_title(): axes for axes in plot.decay(specdiag.recommend(report, weight_decay=0.1)).axes}
    for role, n in (("q", 0), ("k", 1), ("v", 1), ("up", 0)):
        assert len([t for t in panels[role].texts if "no value for the rule" in t.get_text()]) == n
    caption = " ".join(plot.heatmap(report).get_supxlabel().split())
    assert "crosses: no square_alpha" in caption
    assert "crosses" not in plot.heatmap(report, roles=("q", "o")).get_supxlabel()


def test_a_layer_far_from_its_role_is_named():
    state = llama(20)
    u, v = torch.randn(64, 1), torch.randn(1, 64)
    state["model.layers.13.self_attn.q_proj.weight"] = state["model.layers.13.self_attn.q_proj.weight"] * 0.2 + u @ v
    state["model.layers.13.self_attn.q_proj.weight"] += torch.diag(torch.arange(1.0, 65) ** -1.5) * 20
    attention, mlp = plot.alpha(specdiag.analyze(state, jobs=1)).axes[:2]
    named = [t for t in attention.texts if t.get_text().startswith("layer")]
    assert named[0].get_text() == "layer 13"
    assert named[0].get_color() == LIGHT.roles["q"].colour
    assert len(named) <= 4
    assert [t.get_text() for t in mlp.texts if t.get_text().startswith("layer")] == []


def test_a_value_that_stays_is_a_level_line(tmp_path):
    """Differences of rounding were drawn over the whole height."""
    state = llama(1)
    for step in range(3):
        torch.save({name: w * (1 + step) for name, w in state.items()}, tmp_path / f"step-{step}.pt")
    run: Trajectory = specdiag.trajectory(str(tmp_path / "step-*.pt"), jobs=1)
    figure = plot.trajectory(run, metric="stable_rank")
    texts(figure)
    for axes in figure.axes[:3]:
        low, high = axes.get_ylim()
        assert high - low >= 0.019 * abs(high)
        assert axes.yaxis.get_offset_text().get_text() == ""
    assert "kept its tails" in plot.trajectory(run).get_suptitle().replace("\n", " ")
