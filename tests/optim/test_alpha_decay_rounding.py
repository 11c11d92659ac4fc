"""A warning names decays that rounding undoes, and decays of 0."""

import pytest
import torch
from live_models import Decoder

from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decay_that_rounding_undoes_is_said(dtype):
    model = Decoder().to(dtype)
    with pytest.warns(UserWarning, match=r"rounding undoes it.*float32.*stochastic rounding"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1))
    AlphaDecay(model, torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=0.1))
    AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-1, weight_decay=0.1))


def test_bf16_weights_really_do_not_move_below_that_rate_and_do_above():
    w = torch.randn(10_000).to(torch.bfloat16)
    threshold = torch.finfo(torch.bfloat16).eps / 4
    assert torch.equal(w * (1 - 0.99 * threshold), w)
    assert not torch.equal(w * (1 - 1.01 * threshold), w)


def test_of_a_fused_step_part_of_that_decay_is_left():
    """It rounds decay and update together: where the update alone moves a weight, the decay moves the odds."""

    def norm(weight_decay, dtype=torch.bfloat16, **options):
        torch.manual_seed(0)
        w = torch.nn.Parameter((0.02 * torch.randn(20_000)).to(dtype))
        optimizer = torch.optim.AdamW([w], weight_decay=weight_decay, **options)
        for _ in range(300):
            w.grad = torch.randn(20_000).to(dtype)
            optimizer.step()
        return float(w.detach().double().norm())

    def kept(**options):
        """The share of what decay takes from the norm of float32 weights that it takes from that of bfloat16."""
        whole = 1 - norm(0.3, torch.float32, **options) / norm(0.0, torch.float32, **options)
        return (1 - norm(0.3, **options) / norm(0.0, **options)) / whole

    assert kept(lr=3e-4, fused=False) == 0
    assert 0.5 < kept(lr=3e-4, fused=True) < 0.9
    assert 0.02 < kept(lr=1e-4, fused=True) < 0.3
    assert kept(lr=1e-5, fused=True) < 0.01
    model = Decoder().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="rounding undoes it, or part of it .a fused step rounds decay and update"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True))


def test_no_decay_to_multiply_is_said():
    model = Decoder()
    with pytest.warns(UserWarning, match="all 12 matrices is 0"):
        AlphaDecay(model, torch.optim.AdamW(model.parameters(), weight_decay=0.0))
