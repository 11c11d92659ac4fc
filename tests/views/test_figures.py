"""Figures show the numbers of the report, nothing overlaps, files are what they say, and pyplot knows nothing of it."""

import dataclasses
import functools
import io
import itertools
import xml.etree.ElementTree as ET

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import pytest
import torch
from command import execute, invoke, python
from helpers import esd as naive_esd
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.text import Text
from models import write_checkpoint
from PIL import Image

import specdiag
from specdiag import plot
from specdiag.errors import UsageError
from specdiag.spectra.marchenko_pastur import mp_density
from specdiag.views.figures.axes import layer_ticks, log_ticks
from specdiag.views.figures.style import REPORT_COLOURS, ROLE_STYLES, plain, render

ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def llama(layers, seed=0, d=64, ff=160, kv=64):
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


@pytest.fixture(scope="module")
def reports(rxnfp, tmp_path_factory):
    """By number of layers, saved and read back; and their counterparts B."""
    made = {
        2: specdiag.analyze(llama(2), randomize=True, jobs=2),
        80: specdiag.analyze(llama(80), jobs=2),
        12: specdiag.analyze(rxnfp / "bert_pretrained", jobs=2),
        "2B": specdiag.analyze(llama(2, seed=1), jobs=2),
        "12B": specdiag.analyze(rxnfp / "bert_ft", jobs=2),
    }
    folder = tmp_path_factory.mktemp("reports")
    read = {n: specdiag.load_report(report.save(folder / f"{n}.json")) for n, report in made.items()}
    return read | {"80B": read[80]}


@pytest.fixture(scope="module")
def small(reports):
    return reports[2]


def plan_of(report, base=0.1):
    return specdiag.recommend(report, weight_decay=base)


DRAW = {
    "alpha": lambda a, b: plot.alpha(a, basis="alpha"),
    "square_alpha": lambda a, b: plot.alpha(a),
    "esd": lambda a, b: plot.esd(a),
    "esd_role": lambda a, b: plot.esd(a, roles="v"),
    "esd_one": lambda a, b: plot.esd(a, roles="q", layers=1),
    "esd_two": lambda a, b: plot.esd(a, b),
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


def texts(figure):
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


def overlaps(found):
    boxes = np.array([box.extents for _, box in found])
    common = np.minimum(boxes[:, None, 2:], boxes[:, 2:]) - np.maximum(boxes[:, None, :2], boxes[:, :2])
    pairs = np.argwhere(np.triu((common > 1).all(axis=2), 1))
    return [(found[i][0], found[j][0]) for i, j in pairs]


@pytest.mark.parametrize("layers", [2, 12, 80])
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


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


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
            assert line.get_color() == ROLE_STYLES[role].colour
    record = next(r for r in report if r.role == "up")
    null = record.alpha_null if basis == "alpha" else 1 + (record.square_alpha - 1) / record.square_rho
    drawn = next(line for label, line in lines(mlp).items() if label.startswith("null"))
    assert drawn.get_label() == f"null {null:.2f}: up down"
    assert drawn.get_ydata() == pytest.approx([null] * 14)
    summary = next(r for r in report.summary.roles if r.role == "q")
    assert list(spread.lines[0].get_ydata()) == [getattr(summary, f"{name}_min"), getattr(summary, f"{name}_max")]
    assert list(spread.lines[1].get_ydata()) == [pytest.approx(getattr(summary, name))]


def test_each_shape_has_its_own_null():
    report = specdiag.analyze(llama(2, kv=50, d=100), jobs=2)
    labels = [label for label in lines(plot.alpha(report, basis="alpha").axes[0]) if label.startswith("null")]
    assert [label.split(": ")[1] for label in labels] == ["q o", "k v"]
    k = next(r for r in report if r.role == "k")
    assert labels[1].startswith(f"null {k.alpha_null:.2f}")


def test_experts_are_a_band():
    state = {
        f"model.layers.{layer}.mlp.experts.{e}.up_proj.weight": torch.randn(64, 64)
        for layer in (0, 1)
        for e in range(5)
    }
    report = specdiag.analyze(state, jobs=1)
    axes = plot.alpha(report, basis="alpha").axes[0]
    band = axes.collections[0].get_datalim(axes.transData)
    values = [r.alpha for r in report]
    assert (band.y0, band.y1) == (pytest.approx(min(values)), pytest.approx(max(values)))
    assert lines(axes)["up"].get_ydata()[0] == sorted(r.alpha for r in report if r.layer == 0)[2]
    figure = plot.esd(report)
    assert [len(panel.lines) for panel in figure.axes] == [4, 4]
    assert "of up to 5 matrices of a role in a layer the first 4 are drawn" in figure.get_supxlabel().replace("\n", " ")
    assert len(plot.esd(report, include="*layers.0*").axes[0].lines) == 5


def test_esd_of_one_module(small):
    record = next(r for r in small if r.role == "up" and r.layer == 1)
    figure = plot.esd(small, include=record.key)
    (axes,) = figure.axes
    density, edges, _ = axes.patches[0].get_data()
    eigenvalues = small.eigenvalues(record.key)
    assert (density * np.diff(edges)).sum() == pytest.approx(
        ((eigenvalues >= edges[0]) & (eigenvalues <= edges[-1])).mean()
    )
    drawn = lines(axes)
    fit = drawn["fitted power law"]
    x, y = fit.get_data()
    assert np.diff(np.log(y)) / np.diff(np.log(x)) == pytest.approx(-record.alpha)
    assert np.trapezoid(y, x) == pytest.approx(
        record.k / len(eigenvalues) * (1 - (x[-1] / x[0]) ** (1 - record.alpha)), rel=1e-2
    )
    assert drawn["lambda_min of the fit"].get_xdata()[0] == record.xmin
    assert drawn["largest eigenvalue,\nentries permuted"].get_xdata()[0] == record.rand_spectral_norm**2
    outline = axes.patches[1]
    density, edges, _ = outline.get_data()
    assert outline.get_label() == "entries permuted"
    assert not outline.get_fill()
    permuted = small.eigenvalues(record.key, randomized=True)
    assert edges.tolist() == axes.patches[0].get_data().edges.tolist()
    assert (density * np.diff(edges)).sum() == pytest.approx((permuted >= edges[0]).mean())
    low, high = axes.get_ylim()
    assert low < density[density > 0].min() < density.max() < high
    assert drawn["Marchenko-Pastur bulk"].get_xdata()[-1] == pytest.approx(record.mp_edge, rel=1e-3)
    assert to_hex(axes.patches[0].get_facecolor()) == ROLE_STYLES["up"].colour.lower()


def test_esd_holds_a_permuted_spectrum_that_is_wider():
    """An orthogonal matrix has one eigenvalue, its permuted entries a whole bulk."""
    state = {"a.q_proj.weight": torch.linalg.qr(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)))[0]}
    report = specdiag.analyze(state, randomize=True)
    (axes,) = plot.esd(report).axes
    low, high = axes.get_xlim()
    permuted = report.eigenvalues("a.q_proj.weight", randomized=True)
    assert low < permuted[0] < 0.1 < 2 < permuted[-1] < high
    assert low < lines(axes)["largest eigenvalue,\nentries permuted"].get_xdata()[0] < high


def test_esd_without_permuted_eigenvalues(small, reports, monkeypatch):
    """Not computed, saved when only the largest was kept, or too many curves for details."""
    key = next(r.key for r in small)
    assert [p.get_label() for p in plot.esd(small, include=key).axes[0].patches][1:] == ["entries permuted"]
    assert len(plot.esd(reports["2B"], include=key).axes[0].patches) == 1
    assert not plot.esd(small).axes[0].patches
    real = specdiag.SpectralReport.eigenvalues

    def old(self, name, part=None, *, randomized=False):
        if randomized:
            raise UsageError("the report was saved before these were kept")
        return real(self, name, part)

    monkeypatch.setattr(specdiag.SpectralReport, "eigenvalues", old)
    (axes,) = plot.esd(small, include=key).axes
    assert len(axes.patches) == 1
    assert "largest eigenvalue,\nentries permuted" in lines(axes)


def test_esd_of_two_shows_each_permuted(small, reports):
    second = specdiag.analyze(llama(2, seed=1), randomize=True, jobs=2)
    (axes,) = plot.esd(small, second, roles="q", layers=1).axes
    assert [to_hex(p.get_edgecolor()) for p in axes.patches] == [c.lower() for c in REPORT_COLOURS[:2]]


def test_esd_has_a_panel_a_layer(drawn, reports):
    assert len(drawn("esd", 80).axes) == 80
    panel = drawn("esd", 80).axes[79]
    assert panel.get_title() == "layer 79"
    assert [(line.get_label(), line.get_color()) for line in panel.lines] == [(r, ROLE_STYLES[r].colour) for r in ROLES]
    assert len(plot.esd(reports[2], layers=1).axes) == 1


def test_checkpoints_are_matched_by_place(reports):
    """The fine-tune's names have another prefix."""
    a, b = reports[12], reports["12B"]
    assert not {r.key for r in a if r.layer == 3} & {r.key for r in b}
    figure = plot.esd(a, b, roles="q", layers=3)
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_label() in ("bert_pretrained", "bert_ft")]
    assert colours == list(REPORT_COLOURS[:2])
    with pytest.raises(UsageError, match="no counterpart of layer 3 q"):
        plot.esd(a, reports[2], roles="q", layers=3)


def test_balance_states_the_score(reports):
    a, b = reports[12], reports["12B"]
    figure = plot.balance(a, b)
    stated = "\n".join(t.get_text() for t in figure.legends[0].get_texts())
    for report in (a, b):
        assert f"sd {report.summary.balance_sd:.3f}, range {report.summary.balance_range:.3f}" in stated
    bars, means = figure.axes[:2]
    medians = [p.get_width() + 1 for c in bars.containers if isinstance(c, BarContainer) for p in c.patches]
    expected = [s.square_alpha for r in (a, b) for s in r.summary.roles if s.family in ("attention", "mlp")]
    assert medians == pytest.approx(expected)
    values = [r.square_alpha for r in a if r.role in ("q", "k")]
    band = means.containers[0].patches[0]
    assert (band.get_y(), band.get_height()) == pytest.approx((min(values), np.ptp(values)))
    assert means.lines[0].get_ydata()[0] == pytest.approx(np.mean(values))


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
        assert {to_hex(p.get_facecolor()) for p in bars} == {ROLE_STYLES[role].colour.lower()}
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
    assert len(axes.lines) == 3  # two layers and noise
    figure = plot.paper(small, plan_of(small), small)
    decays = sorted(p.get_height() for c in figure.axes[1].containers for p in c.patches if p.get_height())
    assert decays == pytest.approx(sorted(e.weight_decay for e in plan_of(small).entries))


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
    assert not any(label.startswith("null") for axes in plot.alpha(report).axes for label in lines(axes))
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


@pytest.mark.parametrize("kind", ["esd", "esd_role", "scree", "paper"])
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


def test_roles_can_be_told_apart():
    """By lightness within attention and within the MLP, and by marker everywhere."""

    def lightness(colour):
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.299 * red + 0.587 * green + 0.114 * blue

    assert set(ROLE_STYLES) == set(specdiag.records.ROLES)
    assert (
        len({s.colour for s in ROLE_STYLES.values()})
        == len({s.marker for s in ROLE_STYLES.values()})
        == len(ROLE_STYLES)
    )
    for roles in ("qkvo", ("gate", "up", "down")):
        greys = sorted(lightness(ROLE_STYLES[r].colour) for r in roles)
        assert min(np.diff(greys)) > 20
    assert abs(lightness(REPORT_COLOURS[0]) - lightness(REPORT_COLOURS[1])) > 60


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


def run(*args):
    return invoke("plot", *args)


@pytest.mark.parametrize(
    ("args", "written"),
    [
        (["esd", "A", "--role", "q", "--layer", "1", "-o", "e.svg"], "e.svg"),
        (["esd", "A", "B"], "run.esd.png"),
        (["alpha", "A", "--basis", "square", "--dpi", "60"], "run.alpha.png"),
        (["balance", "A", "B"], "run.balance.png"),
        (["heatmap", "A", "--metric", "rho", "-o", "h.pdf"], "h.pdf"),
        (["decay", "plan.json"], "plan.decay.png"),
        (["decay", "A", "--basis", "square"], "run.decay.png"),
        (["scree", "A", "--include", "*mlp*"], "run.scree.png"),
        (["paper", "A", "B", "--plan", "plan.json"], "run.paper.png"),
    ],
)
def test_command(args, written, tmp_path, monkeypatch, reports):
    monkeypatch.chdir(tmp_path)
    reports[2].save(tmp_path / "run.specdiag.json")
    reports["2B"].save(tmp_path / "b.json")
    plan_of(reports[2]).save(tmp_path / "plan.json")
    done = run(*({"A": "run.specdiag.json", "B": "b.json"}.get(a, a) for a in args))
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    assert done.stderr.strip() == f"written: {written}"
    assert (tmp_path / written).stat().st_size > 5000


def test_command_analyses_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "ckpt", llama(2))
    done = execute("plot", "alpha", "ckpt", "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "for this figure alone" in done.stderr
    assert (tmp_path / "ckpt.alpha.png").read_bytes().startswith(b"\x89PNG")


def test_command_refusals(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    small.save(tmp_path / "a.json")
    small.save(tmp_path / "bare.json", spectra=False)
    for args, code, said in (
        (["heatmap", "a.json", "--metric", "loss"], 2, "choose from rows"),
        (["scree", "a.json", "--basis", "square"], 2, "scree knows no --basis; it takes --include, --layer, --role"),
        (["alpha", "a.json", "a.json"], 2, "alpha takes 1 SOURCE at most, not 2"),
        (["esd", "bare.json"], 2, "carries no eigenvalues"),
        (
            ["alpha", "a.json", "--device", "cpu"],
            2,
            "a.json is a saved report, taken as it is: --device needs the checkpoint",
        ),
        (["alpha", "gone.json"], 3, "no such file"),
    ):
        done = run(*args)
        assert (done.exit_code, done.stdout) == (code, "")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("*.png"))


def test_help_is_light():
    code = (
        "import sys\nfrom specdiag_cli.main import app\n"
        "try:\n    app(['plot', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    )
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]"
