"""Typical values of docs/reading.md are those of the two models that it names."""

import pytest

import specdiag
from specdiag.views.reading import find

RATIOS = {"effective_rank", "matrix_rank", "detx_k"}
"""Columns that are given over the smaller side."""


@pytest.fixture(scope="module")
def models(asset, minilm):
    reports = [specdiag.analyze(folder, device="cpu") for folder in (minilm, asset("smollm2-gguf"))]
    return [[record for record in report.records if record.family in ("attention", "mlp")] for report in reports]


def span(records, column):
    """Lowest and highest value, over the smaller side where the page says so."""
    size = [min(r.rows, r.cols) if column in RATIOS else 1 for r in records]
    values = [getattr(record, column) / side for record, side in zip(records, size, strict=True)]
    return min(values), max(values)


@pytest.mark.parametrize(
    ("column", "encoder", "decoder"),
    [
        ("square_alpha", "{:.2f} to {:.2f}", "{:.2f} to {:.2f}"),
        ("rho", "{:.2f} to {:.2f}", "{:.2f} to {:.2f}"),
        ("z", "{:.0f} to {:.0f}", "{:.0f} to {:.0f}"),
        ("ks", "{:.2f} to {:.2f}", "{:.2f} to {:.2f}"),
        ("pl_alpha", "{:.1f} to {:.1f}", "{:.1f} to {:.0f}"),
        ("stable_rank", "{:.0f} to {:.0f} of 384", "{:.0f} to {:.0f} of up to 576"),
        ("effective_rank", "{:.2f} to {:.2f}", "{:.2f} to {:.2f}"),
        ("spectral_norm", "{:.1f} to {:.0f}", "{:.1f} to {:.0f}"),
        ("frobenius_norm", "{:.0f} to {:.0f}", "{:.0f} to {:.0f}"),
        ("mp_spikes", "{:.0f} to {:.0f}", "{:.0f} to {:.0f}"),
        ("detx_k", "{:.2f} to {:.2f}", "{:.2f} to {:.2f}"),
        ("alpha_weighted", "{:.1f} to {:.0f}", None),
    ],
)
def test_ranges(models, column, encoder, decoder):
    typical = find(column).typical
    for name, records, shown in zip(("MiniLM", "SmolLM2-135M"), models, (encoder, decoder), strict=True):
        if shown is not None:
            assert f"{shown.format(*span(records, column))} in {name}" in typical


def test_alpha_by_shape(models):
    encoder, decoder = models
    square = [[r for r in model if r.rows == r.cols] for model in models]
    mlp = [[r for r in model if r.family == "mlp"] for model in models]
    narrow = [r for r in decoder if r.role in ("k", "v")]
    assert {(r.rows, r.cols) for r in narrow} == {(192, 576)}
    assert all(r.family == "attention" for r in square[0])
    assert len(square[0]) + len(mlp[0]) == len(encoder)
    said = [["{:.2f} to {:.2f}".format(*span(r, "alpha")) for r in kind] for kind in (square, mlp)]
    (first, second), (third, fourth) = said
    assert f"{first} in MiniLM, {second} in SmolLM2-135M. MLP: {third} and {fourth}." in find("alpha").typical
    assert "(3:1): {:.2f} to {:.2f}.".format(*span(narrow, "alpha")) in find("alpha").typical


def test_rank(models):
    assert span(models[0], "matrix_rank") == (1, 1)
    low, high = span(models[1], "matrix_rank")
    assert high == 1
    assert f"{low:.2f} of the smaller side to full" in find("matrix_rank").typical
