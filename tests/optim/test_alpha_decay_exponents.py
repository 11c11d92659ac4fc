"""The exponents that AlphaDecay measures: every type and device, and matrices that have none."""

import math

import numpy as np
import pytest
import torch
from helpers import esd, naive_hill
from live_models import Decoder, Q, float32_errors
from live_optimizers import adamw

import specdiag
from specdiag.optim import AlphaDecay
from specdiag.spectra.eigenvalues import ALPHA_TOLERANCE
from specdiag.spectra.live_alpha import exponents

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_matrix_that_is_not_finite_keeps_its_exponent_and_is_named_once(caplog):
    model = Decoder()
    decay = AlphaDecay(model, adamw(model), every=1, measure_first=True)
    decay.step(0)
    before = decay.alphas[Q]
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    for step in (1, 2):
        decay.step(step)
        assert decay.alphas[Q] == before
    assert [r.getMessage() for r in caplog.records if Q in r.getMessage()] == [
        f"{Q} could not be measured (not finite, or no convergence): keeps exponent {before:.3f}"
    ]


def test_a_matrix_without_an_exponent_gets_ratio_1():
    model = Decoder()
    torch.nn.init.zeros_(model.layers[0].self_attn.o_proj.weight)
    torch.nn.init.zeros_(model.layers[1].self_attn.o_proj.weight[:, 8:])
    decay = AlphaDecay(model, adamw(model), measure_first=True)
    decay.step(0)
    for layer in (0, 1):
        assert decay.alphas[f"layers.{layer}.self_attn.o_proj.weight"] is None
        assert decay.ratios[f"layers.{layer}.self_attn.o_proj.weight"] == 1.0
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=float32_errors(model)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_exponents_of_every_type(dtype):
    torch.manual_seed(0)
    w = torch.randn(2, 96, 64).to(dtype)
    expected = naive_hill(np.concatenate([esd(slice.double().numpy()) for slice in w]))
    assert exponents([w], "alpha") == pytest.approx([expected], rel=ALPHA_TOLERANCE)
    assert exponents([w * 1e-2], "alpha") == exponents([w * 1e-2], "alpha")
    assert exponents([torch.randn(1, 20, 400)], "alpha") == [None]


def test_threads_change_no_bit():
    torch.manual_seed(0)
    stacks = [torch.randn(1, 128, 96) for _ in range(4)]
    alone = exponents(stacks, "alpha")
    torch.set_num_threads(3)
    assert exponents(stacks, "alpha") == alone


def test_the_accelerator_route_agrees_with_the_cpu():
    from specdiag.spectra.live_alpha import _on_accelerator

    torch.manual_seed(0)
    stacks = [torch.randn(1, 64, 160), torch.randn(1, 96, 64), torch.randn(1, 64, 160), torch.zeros(1, 64, 64)]
    stacks.append(torch.full((1, 64, 64), float("nan")))
    for basis in ("alpha", "square"):
        on_cpu, batched = exponents(stacks, basis), _on_accelerator(stacks, basis)
        assert batched[:3] == pytest.approx(on_cpu[:3], rel=2 * ALPHA_TOLERANCE)
        assert batched[3] is on_cpu[3] is None
        assert math.isnan(batched[4])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    model = Decoder().cuda()
    optimizer = adamw(model, fused=True)
    decay = AlphaDecay(model, optimizer, measure_first=True)
    decay.step(0)
    assert decay.ratios == pytest.approx(specdiag.recommend(model.cpu()).ratios, abs=1e-4)
