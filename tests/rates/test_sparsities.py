"""Shares of weights to prune: AlphaPruning's own numbers, their mean, and what lies above 1."""

import pytest
import torch
from live_models import Decoder

import specdiag
from specdiag.errors import UsageError
from specdiag.rates.sparsities import divide

ALPHAS = [1.70, 1.75, 1.95, 1.90, 2.35, 2.42, 2.50]
SIZES = [4, 4, 4, 4, 11, 11, 11]


def mean(shares, sizes):
    return sum(s * n for s, n in zip(shares, sizes, strict=True)) / sum(sizes)


def test_shares_are_those_of_the_released_code():
    shares = divide(ALPHAS, SIZES, 0.7, 0.3)
    wanted = [0.447093, 0.471044, 0.566850, 0.542898, 0.758461, 0.791993, 0.830315]
    assert shares == pytest.approx(wanted, abs=5e-7)
    assert mean(shares, SIZES) == pytest.approx(0.7)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_no_share_leaves_0_to_1_and_the_mean_is_kept(sparsity, epsilon):
    shares = divide(ALPHAS, SIZES, sparsity, epsilon)
    assert all(0 <= share <= 1 for share in shares)
    assert [s for _, s in sorted(zip(ALPHAS, shares, strict=True))] == sorted(shares)
    assert mean(shares, SIZES) == pytest.approx(sparsity)


def test_matrices_of_a_block_share_and_lighter_blocks_lose_more():
    model = Decoder(layers=3, width=64, mlp=160)
    with torch.no_grad():
        for parameter in model.layers[0].parameters():
            if parameter.ndim == 2:
                u, s, v = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(u @ torch.diag(torch.arange(1, len(s) + 1) ** -1.0) @ v)
    report = specdiag.analyze(model)
    shares = specdiag.sparsities(report, 0.5)
    assert len(shares) == 18
    by_layer = [{s for name, s in shares.items() if name.startswith(f"layers.{i}.")} for i in range(3)]
    assert all(len(each) == 1 for each in by_layer)
    assert min(by_layer[0]) < min(by_layer[1] | by_layer[2])
    assert mean(list(shares.values()), [report[n].rows * report[n].cols for n in shares]) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"sparsity": 1.1}, {"sparsity": float("nan")}, {"sparsity": 0.5, "epsilon": 2}])
def test_other_ranges_are_refused(options):
    report = specdiag.analyze(Decoder())
    with pytest.raises(UsageError, match=next(reversed(options))):
        specdiag.sparsities(report, **options)


def test_without_an_exponent_nothing_is_pruned():
    with pytest.raises(UsageError, match="no projection has an exponent"):
        specdiag.sparsities(specdiag.analyze(Decoder(width=16, mlp=32)), 0.5)
