"""The LMOs against their published values, and against what makes them LMOs."""

import math

import pytest
import torch

from specdiag import UsageError
from specdiag.optim.optimizers.lmo import LMOS, auto, direction, norm

A = torch.tensor([[3.0, 0, 4], [0, -2, 0]], dtype=torch.float64)
SPECTRAL = [[0.4898979486, 0, 0.6531972647], [0, -0.8164965809, 0]]


def close(found, expected, atol=1e-9):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


def exact_direction(kind, tensor):
    """As `direction`, spectral ones by the SVD."""
    if not kind.startswith("spectral"):
        return direction(kind, tensor)
    wide = tensor.flatten(1) if kind == "spectral-conv" else tensor
    u, _, vh = torch.linalg.svd(wide, full_matrices=False)
    polar = (u @ vh).view(tensor.shape)
    return polar / norm(kind, polar)


def test_published_values():
    """decay-methods L1 to L5."""
    close(direction("sign", A), [[1 / 3, 0, 1 / 3], [0, -1 / 3, 0]])
    close(direction("row-norm", A), [[0.3464101615, 0, 0.4618802154], [0, -0.5773502692, 0]], 1e-8)
    c, n = 1.4142135624, 0.4714045208
    close(direction("col-norm-plain", A), [[c, 0, c], [0, -c, 0]], 2e-8)
    close(direction("col-norm", A), [[n, 0, n], [0, -n, 0]], 1e-8)
    close(exact_direction("spectral", A), SPECTRAL)
    assert exact_direction("spectral", A).square().sum() == pytest.approx(4 / 3)
    bias = torch.tensor([3.0, 4.0], dtype=torch.float64)
    close(direction("bias-rms", bias), [0.8485281374, 1.1313708499], 1e-8)
    assert norm("bias-rms", bias) == pytest.approx(3.5355339059)


def test_the_spectral_step_is_that_of_the_svd_up_to_its_five_steps():
    found = direction("spectral", A)
    close(found, SPECTRAL, 0.15)
    assert found[0, 1] == found[1, 0] == 0


def test_published_norms_and_products():
    """decay-methods L6."""
    assert norm("sign", A) == pytest.approx(12)
    assert norm("spectral", A) == pytest.approx(6.1237243570)
    assert (exact_direction("spectral", A) * A).sum() == pytest.approx(5.7154760665)
    assert (direction("sign", A) * A).sum() == pytest.approx(3)


def test_the_plain_forms_and_the_image_layer():
    close(direction("sign-plain", A), A.sign())
    close(direction("row-norm-plain", A), [[0.6, 0, 0.8], [0, -1, 0]], 1e-8)
    close(exact_direction("spectral-plain", A), math.sqrt(2) * exact_direction("spectral", A) / math.sqrt(2 / 3))
    assert norm("spectral-max", A) == pytest.approx(5)
    assert norm("spectral-max", A.T) == pytest.approx(5 / math.sqrt(1.5)) == norm("spectral", A.T)


@pytest.mark.parametrize("kind", LMOS)
def test_no_step_in_the_unit_ball_rises_faster(kind):
    torch.manual_seed(0)
    shape = (6, 4, 3, 3) if kind == "spectral-conv" else (6, 4)
    gradient = torch.randn(shape, dtype=torch.float64)
    best = exact_direction(kind, gradient)
    assert norm(kind, best) == pytest.approx(1, abs=1e-6)
    for _ in range(50):
        other = torch.randn(shape, dtype=torch.float64)
        other /= norm(kind, other)
        assert (other * gradient).sum() <= (best * gradient).sum()


@pytest.mark.parametrize("kind", LMOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_zeros_and_scale(kind, dtype):
    torch.manual_seed(0)
    gradient = torch.randn((6, 4, 3) if kind == "spectral-conv" else (6, 4)).to(dtype)
    found = direction(kind, gradient)
    assert found.dtype == dtype
    assert found.shape == gradient.shape
    torch.testing.assert_close(direction(kind, 1024 * gradient), found, rtol=0.02, atol=0.02)
    assert not direction(kind, torch.zeros_like(gradient)).any()


def test_squared_norms_of_a_unit_step():
    """The table of decay-methods, section 4.1."""
    torch.manual_seed(0)
    g = torch.randn(8, 32, dtype=torch.float64)
    expected = {"sign": 1 / 4, "sign-plain": 256, "spectral": 2, "col-norm-plain": 256, "col-norm": 1 / 4,
                "row-norm": 1 / 4, "row-norm-plain": 8, "bias-rms": 256}  # fmt: skip
    for kind, squared in expected.items():
        assert exact_direction(kind, g).square().sum() == pytest.approx(squared, rel=1e-6), kind


def test_a_convolution_is_scaled_by_its_kernel():
    torch.manual_seed(0)
    kernel = torch.randn(8, 2, 3, 3, dtype=torch.float64)
    assert norm("spectral-conv", kernel) == pytest.approx(float(torch.linalg.svdvals(kernel.flatten(1))[0]) * 9 / 2)
    assert exact_direction("spectral-conv", kernel).square().sum() == pytest.approx(8 * (2 / 9) ** 2)


def test_stacked_experts_are_their_matrices():
    torch.manual_seed(0)
    stack = torch.randn(3, 6, 4, dtype=torch.float64)
    for kind in ("sign", "spectral", "row-norm", "col-norm"):
        torch.testing.assert_close(direction(kind, stack), torch.stack([direction(kind, m) for m in stack]))
        assert norm(kind, stack) == pytest.approx(max(norm(kind, m) for m in stack))


def test_auto_goes_by_the_number_of_axes():
    shapes = [(), (3,), (3, 4), (3, 4, 5), (3, 4, 5, 5)]
    kinds = [auto(torch.Size(shape)) for shape in shapes]
    assert kinds == ["bias-rms", "bias-rms", "spectral", "spectral-conv", "spectral-conv"]
    assert direction("bias-rms", torch.tensor(-3.0)) == -1


def test_what_has_no_such_norm_is_refused():
    with pytest.raises(UsageError, match=r"spectral LMO needs at least 2 axes and a parameter has shape \(3,\)"):
        direction("spectral", torch.ones(3))
    with pytest.raises(UsageError, match="spectral-conv LMO needs at least 3 axes"):
        direction("spectral-conv", torch.ones(3, 4))
    with pytest.raises(UsageError, match="unknown lmo='euclid'; choose from sign, sign-plain"):
        direction("euclid", torch.ones(3, 4))
