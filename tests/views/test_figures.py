"""Figures show the numbers of the report, nothing overlaps, files are what they say, and pyplot knows nothing of it."""

import dataclasses
import functools
import io
import re
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest
import torch
from drawn_models import ROLES, lines, llama, overlaps, texts
from helpers import esd as naive_esd
from matplotlib.colors import to_hex
from PIL import Image

import specdiag
from specdiag import plot
from specdiag.errors import UsageError
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.axes import layer_ticks, log_ticks
from specdiag.views.figures.direct import apart
from specdiag.views.figures.palette import LIGHT
from specdiag.views.figures.style import plain, render


def plan_of(report, base=0.1):
    return specdiag.recommend(report, weight_decay=base)


DRAW = {
    "alpha": lambda a, b: plot.alpha(a, basis="alpha"),
    "square_alpha": lambda a, b: plot.alpha(a),
    "esd": lambda a, b: plot.esd(a),
    "esd_role": lambda a, b: plot.esd(a, roles="v"),
    "esd_one": lambda a, b: plot.esd(a, roles="q", layers=1),
    "esd_two": lambda a, b: plot.esd(a, b),
    "esd_every": lambda a, b: plot.esd(a, every=True),
    "balance": lambda a, b: plot.balance(a),
    "balance_two": lambda a, b: plot.balance(a, b, basis="alpha"),
    "heatmap": lambda a, b: plot.heatmap(a),
    "heatmap_rank": lambda a, b: plot.heatmap(a, metric="stable_rank"),
    "decay": lambda a, b: plot.decay(plan_of(a)),
    "scree": lambda a, b: plot.scree(a),
    "paper": lambda a, b: plot.paper(a, plan_of(a), b),
}


@pytest.fixture(scope="module")
def drawn(reports):
    """Each figure once."""
    return functools.cache(lambda kind, layers: DRAW[kind](reports[layers], reports[f"{layers}B"]))


@pytest.mark.parametrize("layers", [2, 12, 80, "experts"])
@pytest.mark.parametrize("kind", DRAW)
def test_nothing_overlaps_and_all_is_inside(kind, layers, drawn):
    figure = drawn(kind, layers)
    found = texts(figure)
    assert overlaps(found) == []
    width, height = figure.canvas.get_width_height()
    outside = [text for text, b in found if min(b.x0, b.y0) < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    assert outside == []
    for legend in figure.legends:
        box = legend.get_window_extent()
        panels = [axes.get_window_extent() for axes in figure.axes]
        assert all(box.x0 >= panel.x1 - 1 or box.y0 >= panel.y1 - 1 for panel in panels), "the legend covers a panel"


@pytest.mark.parametrize("kind", DRAW)
def test_caption_and_pyplot(kind, drawn, reports):
    figure = drawn(kind, 12)
    caption = figure.get_supxlabel().replace("\n", " ")
    assert str(reports[12].source) in caption.replace(" ", "")
    assert "hill" in caption
    if kind == "decay":
        assert "linear rule on alpha" in caption
        assert "base 0.1 (given)" in caption
    else:
        assert "78 matrices" in caption
        assert f"specdiag {specdiag.__version__}" in caption
    assert plt.get_fignums() == []


def test_a_notebook_shows_the_figure(drawn):
    assert drawn("alpha", 2)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(("basis", "name"), [("alpha", "alpha"), ("square", "square_alpha")])
def test_alpha_shows_the_records(basis, name, reports):
    report = reports[12]
    figure = plot.alpha(report, basis=basis)
    attention, mlp, spread = figure.axes
    for axes, roles in ((attention, "qkvo"), (mlp, ("up", "down"))):
        for role in roles:
            line = lines(axes)[role]
            expected = [(r.layer, getattr(r, name)) for r in report if r.role == role and r.layer is not None]
            assert sorted(zip(*line.get_data(), strict=True)) == sorted(expected)
            assert line.get_color() == LIGHT.roles[role].colour
    record = next(r for r in report if r.role == "up")
    null = record.alpha_null if basis == "alpha" else 1 + (record.square_alpha - 1) / record.square_rho
    drawn = next(line for label, line in lines(mlp).items() if label.startswith("random"))
    assert drawn.get_label() == f"random {null:.2f}" + (": up down" if basis == "alpha" else "")
    assert drawn.get_ydata() == pytest.approx([null] * len(drawn.get_ydata()), abs=0.005)
    summary = next(r for r in report.summary.roles if r.role == "q")
    assert list(spread.lines[0].get_ydata()) == [getattr(summary, f"{name}_min"), getattr(summary, f"{name}_max")]
    assert list(spread.lines[1].get_ydata()) == [pytest.approx(getattr(summary, name))]


def test_each_shape_has_its_own_null():
    report = specdiag.analyze(llama(2, kv=50, d=100), jobs=2)
    labels = [label for label in lines(plot.alpha(report, basis="alpha").axes[0]) if label.startswith("random")]
    assert [label.split(": ")[1] for label in labels] == ["q o", "k v"]
    k = next(r for r in report if r.role == "k")
    assert labels[1].startswith(f"random {k.alpha_null:.2f}")


def test_experts_are_a_band(reports):
    axes = next(axes for axes in plot.alpha(reports["experts"]).axes if axes.get_title() == "MLP")
    values = {
        layer: [r.square_alpha for r in reports["experts"] if (r.role, r.layer) == ("gate", layer)] for layer in (0, 1)
    }
    assert list(lines(axes)["gate"].get_ydata()) == [np.median(v) for v in values.values()]
    band = axes.collections[0].get_datalim(axes.transData)
    low, high = np.quantile(list(values.values()), (0.25, 0.75), axis=1)
    assert (band.y0, band.y1) == (pytest.approx(low.min()), pytest.approx(high.max()))


def test_lines_over_many_layers_are_running_medians(reports):
    figure = plot.alpha(reports[80], roles="q")
    axes = figure.axes[0]
    values = np.array(
        [r.square_alpha for r in sorted((r for r in reports[80] if r.role == "q"), key=lambda r: r.layer)]
    )
    assert list(lines(axes)["_layers"].get_ydata()) == values.tolist()
    line = lines(axes)["q"].get_ydata()
    assert line[40] == np.median(values[34:47])
    assert line[0] == np.median(values[:7])
    assert "running medians of 13 layers" in figure.get_supxlabel().replace("\n", " ")


def test_names_stand_where_lines_end_and_apart(reports):
    figure = plot.alpha(reports[12])
    axes = figure.axes[0]
    ends = {label: line.get_ydata()[-1] for label, line in lines(axes).items() if not label.startswith("_")}
    assert {text.get_text(): text.xy[1] for text in axes.texts} == ends
    heights = sorted(text.get_window_extent().y0 for text in axes.texts)
    assert min(np.diff(heights)) * 72 / figure.dpi > 9.5


def test_names_move_as_little_as_needed():
    assert apart([1, 20, 40], 10, 0, 100) == [1, 20, 40]
    assert apart([20, 22], 10, 0, 100) == [16, 26]
    assert apart([20, 22, 24, 80], 10, 0, 100) == [12, 22, 32, 80]
    assert apart([98, 99], 10, 0, 100) == [90, 100]
    assert apart([1, 2], 10, 0, 100) == [0, 10]


def test_balance_states_the_score(reports):
    a, b = reports[12], reports["12B"]
    figure = plot.balance(a, b)
    stated = "\n".join(t.get_text() for t in figure.legends[0].get_texts())
    for report in (a, b):
        assert f"sd {report.summary.balance_sd:.3f}, range {report.summary.balance_range:.3f}" in stated
    strips, means = figure.axes[:2]
    shown = [line.get_xdata()[0] for line in strips.lines if line.get_label().startswith("bert")]
    medians = [s.square_alpha for r in (a, b) for s in r.summary.roles if s.family in ("attention", "mlp")]
    assert shown == pytest.approx(medians)
    values = [r.square_alpha for r in a if r.role in ("q", "k")]
    band = means.containers[0].patches[0]
    assert (band.get_y(), band.get_height()) == pytest.approx((min(values), np.ptp(values)))
    assert means.lines[0].get_ydata()[0] == pytest.approx(np.mean(values))


def test_balance_holds_the_spread_of_noise():
    """Noise has the score, and lies within the bands, that are drawn for it."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(w.shape, generator=generator) for name, w in llama(24).items()}
    report = specdiag.analyze(state, jobs=2)
    figure = plot.balance(report)
    words = " ".join(figure.get_suptitle().split())
    assert "square_alpha spreads 1." in words or "square_alpha spreads 0.9" in words
    stated, drawn = (float(word) for word in re.findall(r"0\.\d{3}", words))
    assert stated == pytest.approx(report.summary.balance_sd, abs=5e-4)
    assert drawn == pytest.approx(stated, rel=0.25)
    bands = [p for p in figure.axes[0].patches if "2 standard" in p.get_label()]
    inside = [
        band.get_x() < r.square_alpha < band.get_x() + band.get_width()
        for role, band in zip(ROLES, bands, strict=True)
        for r in report
        if r.role == role
    ]
    assert 0.85 < np.mean(inside) < 1


def test_heatmap_shows_any_metric(small):
    figure = plot.heatmap(small, metric="stable_rank", roles=ROLES)
    mesh = figure.axes[0].collections[0]
    expected = [
        [next(r.stable_rank for r in small if (r.role, r.layer) == (role, layer)) for layer in (0, 1)] for role in ROLES
    ]
    assert np.asarray(mesh.get_array()).reshape(7, 2) == pytest.approx(np.array(expected))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(ROLES)
    with pytest.raises(UsageError, match=r"unknown metric='loss'; choose from .*stable_rank"):
        plot.heatmap(small, metric="loss")
    with pytest.raises(UsageError, match="unknown metric='name'"):
        plot.heatmap(small, metric="name")


@pytest.mark.parametrize("base", [None, 0.1])
def test_decay_draws_the_plan(base, small):
    plan = plan_of(small, base)
    figure = plot.decay(plan)
    unit = base or 1.0
    for axes, role in zip(figure.axes, ROLES, strict=True):
        entries = [e for e in plan.entries if e.role == role]
        bars = axes.containers[0].patches
        assert sorted(unit + p.get_height() for p in bars) == pytest.approx(sorted(e.ratio * unit for e in entries))
        assert {to_hex(p.get_facecolor()) for p in bars} == {LIGHT.roles[role].colour}
        segments = next(c.get_segments() for c in axes.collections if "random" in c.get_label())
        assert sorted(s[0][1] for s in segments) == pytest.approx(sorted(e.random_ratio * unit for e in entries))
    with pytest.raises(UsageError, match="the plan is of another model"):
        plot.decay(plan, specdiag.analyze(llama(1), jobs=1))


def test_scree_and_paper_show_singular_values(small):
    record = next(r for r in small if r.role == "gate")
    sigma = np.sqrt(small.eigenvalues(record.key)[::-1])
    axes = next(a for a in plot.scree(small).axes if a.get_title() == "gate")
    x, y = lines(axes)[record.key].get_data()
    assert y == pytest.approx((sigma / sigma[0])[x - 1])
    assert [line.get_label() for line in axes.lines if line.get_linewidth() > 1.5] == ["_noise"]
    assert len(axes.lines) == 3  # two layers and noise
    figure = plot.paper(small, plan_of(small), small)
    decays = sorted(p.get_height() for c in figure.axes[1].containers for p in c.patches if p.get_height())
    assert decays == pytest.approx(sorted(e.weight_decay for e in plan_of(small).entries))


def test_no_line_of_the_paper_runs_from_role_to_role(reports):
    for name, labels, n_lines in ((80, list(ROLES), 7), ("experts", list(ROLES), 7), (2, ["0", "1"], 0)):
        report = reports[name]
        figure = plot.paper(report, plan_of(report))
        bars, values = figure.axes[1:3]
        if values.get_ylabel() != "alpha":
            values = next(axes for axes in figure.axes if axes.get_ylabel() == "alpha")
        assert [t.get_text() for t in bars.get_xticklabels()] == labels
        solid = [line for line in values.lines if line.get_linestyle() == "-"]
        assert len(solid) == n_lines
        for at, line in enumerate(solid):
            assert abs(line.get_xdata() - at).max() < 0.5


def test_experts_of_a_plan_are_a_median_and_a_range(reports):
    plan = plan_of(reports["experts"])
    axes = next(axes for axes in plot.decay(plan).axes if axes.get_title() == "up")
    ratios = {layer: [e.ratio for e in plan.entries if (e.role, e.layer) == ("up", layer)] for layer in (0, 1)}
    heights = [0.1 + p.get_height() for p in axes.containers[0].patches]
    assert heights == pytest.approx([0.1 * np.median(v) for v in ratios.values()])
    ranges = next(c.get_segments() for c in axes.collections if "range" in c.get_label())
    ends = [end for layer in ratios.values() for end in (0.1 * min(layer), 0.1 * max(layer))]
    assert [y for segment in ranges for _, y in segment] == pytest.approx(ends)


def test_choices_that_are_not_there(reports):
    report = reports[12]
    for choice, said in (
        ({"roles": "gate"}, "has no role gate; it has q, k, v, o, up, down"),
        ({"layers": 12}, r"has no layer 12; it has 0, 1, .*, 11"),
        (
            {"include": "*nonsense*"},
            r"include='\*nonsense\*' matches none of 78 matrices of .*; their names look like 'bert",
        ),
        ({"roles": "q", "include": "*word_embeddings*"}, "leave out a name, layer or role"),
    ):
        for draw in (plot.esd, plot.alpha, plot.heatmap, plot.scree):
            with pytest.raises(UsageError, match=said):
                draw(report, **choice)
    with pytest.raises(UsageError, match="unknown basis='beta'; choose from alpha, square"):
        plot.alpha(report, basis="beta")


def test_without_eigenvalues(tmp_path, small):
    report = specdiag.load_report(small.save(tmp_path / "bare.json", spectra=False))
    for draw in (plot.esd, plot.scree, lambda r: plot.paper(r, plan_of(r))):
        with pytest.raises(UsageError, match="carries no eigenvalues"):
            draw(report)
    assert len(plot.balance(report).axes) == 2
    assert "without eigenvalues" in plot.balance(report).get_supxlabel()
    plot.alpha(report)


def test_without_square_alpha(minilm):
    report = specdiag.analyze(minilm, tail="ks", roles=("q", "up"), jobs=2)
    bare = tuple(msgspec.structs.replace(r, square_alpha=None, square_rho=None) for r in report)
    report = dataclasses.replace(report, records=bare)
    assert plot.heatmap(report).get_suptitle().startswith("alpha by")
    assert not any(label.startswith("random") for axes in plot.alpha(report).axes for label in lines(axes))
    with pytest.raises(UsageError, match="no matrix of this report has a value of square_alpha"):
        plot.balance(report)
    plot.balance(report, basis="alpha")


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files(suffix, tmp_path, small):
    path = plot.save(plot.alpha(small), tmp_path / f"a.{suffix}", dpi=90)
    data = path.read_bytes()
    if suffix == "png":
        image = Image.open(io.BytesIO(data))
        image.verify()
        assert image.width == round(90 * plot.alpha(small).get_figwidth())
    elif suffix == "svg":
        assert ET.fromstring(data).tag.endswith("}svg")
    else:
        assert data.startswith(b"%PDF-")
    assert data == render(plot.alpha(small), suffix, 90)


def test_unwritable_targets(tmp_path, small):
    figure = plot.alpha(small)
    for name, said in (("a.gif", "saved as .png, .svg or .pdf, not 'a.gif'"), ("no/a.png", "does not exist")):
        with pytest.raises(UsageError, match=said):
            plot.save(figure, tmp_path / name)


@pytest.mark.parametrize("kind", ["esd", "esd_every", "scree", "paper"])
def test_svg_of_80_layers_is_small(kind, drawn):
    assert len(render(drawn(kind, 80), "svg")) < 2e6


def test_names_are_hostile():
    name = "$x_{\\alpha$\n日本" * 9
    report = specdiag.analyze({f"{name}.weight": torch.randn(64, 64), f"{name}2.weight": torch.randn(64, 64)}, jobs=1)
    for figure in (plot.esd(report), plot.alpha(report), plot.scree(report)):
        assert overlaps(texts(figure)) == []
    assert plain("a\n$b$ 日") == r"a \$b\$ ?"


def test_the_readers_style_is_left_alone(small):
    before = dict(plt.rcParams)
    with plt.rc_context({"text.color": "white", "font.size": 30, "axes.facecolor": "black"}):
        dark = render(plot.alpha(small), "png", 50)
    assert dark == render(plot.alpha(small), "png", 50)
    assert dict(plt.rcParams) == before


def test_ticks():
    assert log_ticks(1e-4, 1e4, 3) == [1e-4, 1e-1, 1e2]
    assert log_ticks(2, 60, 5) == [3.0, 10.0, 30.0]
    assert len(log_ticks(3.1, 3.9, 4)) >= 2
    assert layer_ticks(range(80), 8) == [0, 10, 20, 30, 40, 50, 60, 70] or layer_ticks(range(80), 8)[1] in (10.0, 20.0)
    assert layer_ticks([7], 8) == [7.0]


@pytest.mark.parametrize("shape", [(100, 100), (100, 260), (400, 100)])
def test_mp_density(shape):
    n, m = sorted(shape)
    variance = 0.3
    low, high = variance * (m**0.5 - n**0.5) ** 2, variance * (m**0.5 + n**0.5) ** 2
    x = low + (high - low) * np.linspace(0, 1, 100_001) ** 4  # dense where the law of a square matrix diverges
    density = mp_density(x, shape, variance)
    assert np.trapezoid(density, x) == pytest.approx(1.0, abs=2e-3)
    assert not mp_density(np.array([low - 1e-9, high + 1e-9, -1.0]), shape, variance).any()
    rng = np.random.default_rng(0)
    drawn = np.concatenate([naive_esd(rng.standard_normal(shape) * variance**0.5) for _ in range(4)])
    counts, edges = np.histogram(drawn, np.linspace(max(low, high / 20), high, 16))
    for count, a, b in zip(counts, edges, edges[1:], strict=False):
        inside = np.linspace(a, b, 200)
        assert count / len(drawn) == pytest.approx(np.trapezoid(mp_density(inside, shape, variance), inside), abs=0.02)
