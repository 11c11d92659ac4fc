"""Densities of eigenvalues: one matrix, the extremes of many, several checkpoints, and ridges of all."""

import numpy as np
import pytest
import torch
from drawn_models import lines
from matplotlib.colors import to_hex

import specdiag
from specdiag import plot
from specdiag.errors import UsageError
from specdiag.views.figures.palette import LIGHT


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
    assert drawn["random matrices"].get_xdata()[-1] == pytest.approx(record.mp_edge, rel=1e-3)
    assert to_hex(axes.patches[0].get_facecolor()) == LIGHT.roles["up"].colour


def test_esd_holds_a_permuted_spectrum_that_is_wider():
    """An orthogonal matrix has one eigenvalue, its permuted entries a whole bulk."""
    state = {"a.q_proj.weight": torch.linalg.qr(torch.randn(96, 64, generator=torch.Generator().manual_seed(0)))[0]}
    report = specdiag.analyze(state, randomize=True)
    (axes,) = plot.esd(report).axes
    low, high = axes.get_xlim()
    permuted = report.eigenvalues("a.q_proj.weight", randomized=True)
    assert low < permuted[0] < 0.1 < 2 < permuted[-1] < high
    assert low < lines(axes)["largest eigenvalue,\nentries permuted"].get_xdata()[0] < high


def test_checkpoints_are_matched_by_place(reports):
    """The fine-tune's names have another prefix."""
    a, b = reports[12], reports["12B"]
    assert not {r.key for r in a if r.layer == 3} & {r.key for r in b}
    (axes,) = plot.esd(a, b, roles="q", layers=3).axes
    assert [p.get_label() for p in axes.patches] == ["bert_pretrained", "bert_ft"]
    assert [to_hex(p.get_edgecolor()) for p in axes.patches] == list(LIGHT.checkpoints[:2])
    assert [t.get_text().split(",")[0] for t in axes.texts] == [
        f"alpha {next(r.alpha for r in report if r.role == 'q' and r.layer == 3):.2f}" for report in (a, b)
    ]
    with pytest.raises(UsageError, match="no counterpart of layer 3 q"):
        plot.esd(a, reports[2], roles="q", layers=3)


def test_esd_without_permuted_eigenvalues(small, reports, monkeypatch):
    """Not computed, or saved when only the largest was kept."""
    key = next(r.key for r in small)
    assert [p.get_label() for p in plot.esd(small, include=key).axes[0].patches][1:] == ["entries permuted"]
    assert len(plot.esd(reports["2B"], include=key).axes[0].patches) == 1
    real = specdiag.SpectralReport.eigenvalues

    def old(self, name, part=None, *, randomized=False):
        if randomized:
            raise UsageError("the report was saved before these were kept")
        return real(self, name, part)

    monkeypatch.setattr(specdiag.SpectralReport, "eigenvalues", old)
    (axes,) = plot.esd(small, include=key).axes
    assert len(axes.patches) == 1
    assert "largest eigenvalue,\nentries permuted" in lines(axes)


GROUPS = {"q, k": "qk", "v, o": "vo", "MLP": ("gate", "up", "down"), "others": ("embed", "head", "other")}


@pytest.mark.parametrize("name", [2, 12, 80, "experts"])
def test_esd_of_many_is_that_of_the_extremes(name, reports):
    report = reports[name]
    figure = plot.esd(report)
    assert len(figure.axes) <= 12
    shown = {axes.get_title().partition("\n")[2]: axes for axes in figure.axes}
    for group, roles in GROUPS.items():
        values = sorted(r.square_alpha for r in report if r.role in roles and r.square_alpha is not None)
        if len(values) < 3:
            continue
        for place, value in (("heaviest", values[0]), ("median", values[len(values) // 2]), ("lightest", values[-1])):
            axes = shown[f"{place} of {len(values)} {group}: square_alpha {value:.2f}"]
            chosen = {r.key: r for r in report if r.square_alpha == value and r.role in roles}
            assert [t.get_text() for t in axes.texts] in [
                [f"alpha {r.alpha:.2f}, random {r.alpha_null:.2f}"] for r in chosen.values()
            ]
            assert {"fitted power law", "random matrices"} <= set(lines(axes))
    assert f"{len(figure.axes)} of {len(report)} matrices" in figure.get_supxlabel().replace("\n", " ")


def test_esd_of_a_few_is_that_of_all(reports):
    figure = plot.esd(reports[12], roles="q")
    assert [axes.get_title() for axes in figure.axes] == [f"layer {layer} q" for layer in range(12)]


def test_experts_are_named(reports):
    figure = plot.esd(reports["experts"], include="*0.mlp.experts.[345].up*")
    assert [axes.get_title() for axes in figure.axes] == [f"layer 0 up, expert {e}" for e in (3, 4, 5)]


def test_ridges_hold_every_matrix(reports):
    report = reports[12]
    figure = plot.esd(report, every=True)
    layered = [axes for axes in figure.axes if not axes.get_title().startswith("outside")]
    assert [axes.get_title().split(":")[0] for axes in layered] == ["q", "k", "v", "o", "up", "down"]
    for axes in figure.axes:
        assert lines(axes)[axes.lines[-1].get_label()].get_xdata()[0] == 1  # noise ends here
    assert [len(axes.collections) for axes in layered] == [12] * 6
    q = [r.square_alpha for r in report if r.role == "q"]
    assert layered[0].get_title() == f"q: square_alpha {min(q):.2f} to {max(q):.2f}"
    (outside,) = (axes for axes in figure.axes if axes.get_title().startswith("outside"))
    names = [t.get_text() for t in outside.texts]
    assert {"word_embeddings", "position_embeddings", "token_type_embeddings"} <= set(names)
    assert len(set(names)) == len(names)
    with pytest.raises(UsageError, match="every=True draws the matrices of one report"):
        plot.esd(report, reports["12B"], every=True)


def test_a_ridge_is_a_share_of_eigenvalues(small):
    """Heights are square roots of shares, upwards from the layer."""
    figure = plot.esd(small, every=True, roles="q")
    ridge = figure.axes[0].lines[1]
    record = next(r for r in small if r.role == "q" and r.layer == 1)
    eigenvalues = small.eigenvalues(record.key) / record.mp_edge
    shares = (1 - ridge.get_ydata()) ** 2
    low, high = figure.axes[0].get_xlim()
    assert 0.5 < ((eigenvalues > low) & (eigenvalues < high)).mean() <= 1
    assert shares.argmax() == pytest.approx(
        np.histogram(eigenvalues, np.geomspace(low, high, len(shares) + 1))[0].argmax(), abs=1
    )


def test_a_ridge_of_experts_is_their_mean(reports):
    figure = plot.esd(reports["experts"], every=True)
    gate = next(axes for axes in figure.axes if axes.get_title().startswith("gate"))
    assert len(gate.collections) == 2
    assert "a ridge of several matrices is their mean" in figure.get_supxlabel().replace("\n", " ")


@pytest.mark.parametrize("every", [False, True])
def test_what_is_no_report_is_refused(small, every):
    with pytest.raises(UsageError, match="report=None: give a SpectralReport"):
        plot.esd(small, None, every=every)
