"""square_alpha of random matrices: its moments are closed forms, at every shape."""

import numpy as np
import pytest
from helpers import esd, gaussian_eigenvalues

from specdiag.spectra.null import null_moments
from specdiag.spectra.square import SQUARE_NULL, cut_alpha, square_null, square_sd


def square(eigenvalues, columns):
    return cut_alpha(np.sort(np.asarray(eigenvalues, float))[None], columns)


def of_matrix(w):
    return square(esd(w), max(w.shape)).alpha


@pytest.mark.parametrize("n", [64, 65, 128])
@pytest.mark.parametrize("aspect", [1, 1.1, 1.5, 2, 4, 32])
def test_noise_at_every_shape(n, aspect):
    """Mean and standard deviation of square_alpha over Gaussian matrices are the closed forms."""
    m = round(n * aspect)
    rng = np.random.default_rng([n, m])
    draws = [square(gaussian_eigenvalues(n, m, rng), m).alpha for _ in range(1000 if aspect == 1 else 300)]
    mean, sd = square_null((m, n)), square_sd((m, n))
    assert np.mean(draws) == pytest.approx(mean, abs=0.05 / n + 3.5 * sd / len(draws) ** 0.5)
    assert np.std(draws) == pytest.approx(sd, rel=0.03 + 3.5 / (2 * len(draws)) ** 0.5)


def test_noise_scores_the_limit():
    """The mean is within .005 from n = 105 on, beyond 1:2 from 66 on, and within .0077 from 64 on."""
    for aspect in np.geomspace(1, 64, 40):
        for n in (64, 66, 67, 105, 106, 200, 1000):
            away = abs(square_null((n, max(round(n * aspect), n))) - SQUARE_NULL)
            assert away < (0.005 if n >= 105 or (aspect >= 2 and n >= 66) else 0.0077)


@pytest.mark.parametrize(("n", "draws", "jump"), [(64, 400, -0.45), (65, 400, 0.2), (255, 40, 0.2), (256, 40, -0.45)])
def test_jump_from_square_to_one_more_column(n, draws, jump):
    """n times the change by a column that is added to the same matrix: at n = 256 within .003."""
    rng = np.random.default_rng(n)
    changes = []
    for _ in range(draws):
        w = rng.standard_normal((n, n + 1))
        changes.append(n * (of_matrix(w) - of_matrix(w[:, :n])))
    assert np.mean(changes) == pytest.approx(jump, abs=0.1 + 3 * np.std(changes) / draws**0.5)


@pytest.mark.parametrize("aspect", [1, 2, 8, 32])
def test_entries_with_heavy_tails(aspect):
    """A stated limit: by shape t(2.5) entries score 1.98 to 2.06 in the mean over many draws, 4 of n = 256 here."""
    rng = np.random.default_rng(aspect)
    assert np.mean([of_matrix(rng.standard_t(2.5, (256, 256 * aspect))) for _ in range(4)]) == pytest.approx(
        2.02, abs=0.1
    )


@pytest.mark.parametrize(("aspect", "moved"), [(1, -0.6), (4, -0.16)])
def test_entries_of_another_law(aspect, moved):
    """n times the mean falls with their excess kurtosis: signs (-2), Laplace (3)."""
    n, rng = 64, np.random.default_rng(0)
    shape = (n, aspect * n)
    laws = {-2: lambda: rng.choice([-1.0, 1.0], shape), 3: lambda: rng.laplace(size=shape)}
    for kurtosis, draw in laws.items():
        change = n * (np.mean([of_matrix(draw()) for _ in range(400)]) - square_null(shape))
        error = 3 * n * square_sd(shape) / 400**0.5
        assert change == pytest.approx(moved * kurtosis, abs=error + 0.1 * abs(moved * kurtosis))


def test_numbers_of_the_documentation():
    table = {
        1: (0.58, (-0.0070, -0.0039, -0.0021)),
        1.5: (0.43, (-0.0064, -0.0033, -0.0017)),
        2: (0.34, (-0.0051, -0.0026, -0.0013)),
        4: (0.18, (-0.0027, -0.0014, -0.0007)),
    }
    for aspect, (limit, means) in table.items():
        assert 10**5 * (SQUARE_NULL - square_null((10**5, round(10**5 * aspect)))) == pytest.approx(limit, abs=0.005)
        found = [square_null((n, round(n * aspect))) - SQUARE_NULL for n in (64, 128, 256)]
        assert found == pytest.approx(means, abs=6e-5)
    spreads = {(64, 64): 3.1, (65, 65): 3.4, (256, 256): 3.7, (256, 512): 0.83, (256, 1024): 0.38}
    for (n, m), spread in spreads.items():
        assert n * square_sd((n, m)) == pytest.approx(spread, abs=0.05)
    for n, higher in ((256, 2.7), (257, 1.1)):
        assert n * (null_moments((n, n))[0] - square_null((n, n))) == pytest.approx(higher, abs=0.05)
