"""Orthogonalisation against the singular value decomposition and the published polynomials."""

import pytest
import torch

from specdiag import UsageError
from specdiag.optim.optimizers.orthogonal import ITERATIONS, iterate, orthogonalize

SIGMA = torch.tensor([0.001, 0.01, 0.1, 0.5, 1.0], dtype=torch.float64)


def oracle(matrix):
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


@pytest.mark.parametrize(
    ("method", "margin", "expected"),
    [
        ("polar-express", 1.01, [0.840145, 1.054024, 0.891444, 1.104657, 0.877107]),
        ("polar-express-modded", 1.01, [0.852730, 1.011910, 1.034966, 0.885254, 0.874198]),
        ("newton-schulz", 1.0, [0.470544, 0.698917, 0.712120, 0.765439, 0.696436]),
    ],
)
def test_five_steps_map_singular_values_as_published(method, margin, expected):
    """decay-methods P1, P2, P3."""
    found = iterate(torch.diag(SIGMA / margin), method).diag()
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def test_eight_steps_of_polar_express_converge():
    """decay-methods P4."""
    found = iterate(torch.diag(SIGMA / 1.01), "polar-express", 8).diag()
    torch.testing.assert_close(found, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 8), (2, 8, 5), (1, 4)])
def test_it_is_the_polar_factor_of_the_svd(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    found = orthogonalize(matrix, "polar-express", 12)
    torch.testing.assert_close(found, oracle(matrix), rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ITERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_low_precision_singular_values_lie_around_1(method, dtype):
    torch.manual_seed(0)
    matrix = torch.randn(32, 64).to(dtype)
    found = orthogonalize(matrix, method)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.6
    assert values.max() < 1.25


@pytest.mark.parametrize("scale", [1e-4, 1e15])
def test_the_scale_of_the_matrix_does_not_matter(scale):
    torch.manual_seed(0)
    matrix = torch.randn(8, 16)
    torch.testing.assert_close(orthogonalize(scale * matrix), orthogonalize(matrix), rtol=0, atol=0.05)


def test_a_stack_is_its_matrices_one_by_one():
    torch.manual_seed(0)
    stack = torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(stack), torch.stack([orthogonalize(m) for m in stack]))


def test_zero_stays_zero_and_nan_shows():
    assert not orthogonalize(torch.zeros(3, 4)).any()
    assert orthogonalize(torch.full((3, 4), float("nan"))).isnan().all()


def test_what_is_no_matrix_or_no_method_is_refused():
    with pytest.raises(UsageError, match=r"shape \(3,\) is no matrix"):
        orthogonalize(torch.ones(3))
    with pytest.raises(UsageError, match="unknown orthogonalisation 'qr'; choose from polar-express"):
        orthogonalize(torch.ones(3, 3), "qr")
