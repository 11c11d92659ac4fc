"""AlphaPruning's share of weights to prune in each block, by its released code (arXiv 2410.10912)."""

from __future__ import annotations

from collections.abc import Sequence

from specdiag.decay.assignment import Values, linear
from specdiag.decay.targets import column, decay_targets
from specdiag.errors import UsageError
from specdiag.rates.rule import block_means
from specdiag.report import SpectralReport
from specdiag.text import checks

_FULL = 1.0


def sparsities(report: SpectralReport, sparsity: float, *, epsilon: float = 0.3) -> dict[str, float]:
    """Divide a share of weights to prune among blocks: more where tails are lighter (AlphaPruning, arXiv 2410.10912).

    The map is s_i = S phi_i sum(d)/sum(d phi), with phi from 1 - epsilon at the smallest mean alpha of a block to
    1 + epsilon at the largest, and d the weights of a matrix. The released code fits alpha by `tail="fix-finger"` and
    never stops at 1; here what lies above 1 is divided among the others. Not tested by this project. Where all blocks
    have the same shapes, these cancel.

    Args:
        report: of the model, with the exponent that shall decide.
        sparsity: S, the share of all weights in projections of attention and MLP, 0 to 1.
        epsilon: half the range of phi, 0 to 1. Paper: 0.3.

    Returns:
        Share to prune of each matrix by name; those of a block have the same. The mean, weighted by weights, is S.

    Raises:
        UsageError: an option is out of range, or no block has an exponent.

    Example:
        >>> shares = sparsities(specdiag.analyze("org/name"), 0.7)
        >>> all(0 <= share <= 1 for share in shares.values())
        True
    """
    checks.instance("report", report, SpectralReport, "such as analyze gives")
    sparsity = checks.number("sparsity", sparsity, least=0, most=1)
    epsilon = checks.number("epsilon", epsilon, least=0, most=1)
    targets = decay_targets(report.records, include=(), exclude=(), roles=())
    alpha = column("alpha", report.settings)
    values = block_means([target.mean(alpha) for target in targets], [target.block for target in targets])
    if all(value is None for value in values):
        raise UsageError(f"{report.source}: no projection has an exponent, by which weights could be pruned")
    shares = divide(values, [target.n_parameters for target in targets], sparsity, epsilon)
    return dict(zip((target.name for target in targets), shares, strict=True))


def divide(values: Values, counts: Sequence[int], sparsity: float, epsilon: float) -> list[float]:
    """Map exponents to shares whose mean, weighted by `counts`, is `sparsity`.

    Args:
        values: exponent of each matrix; None gets phi = 1.
        counts: its weights.
        sparsity: share of all weights, 0 to 1.
        epsilon: half the range of phi.
    """
    phi = linear(values, 1 - epsilon, 1 + epsilon)
    shares = [0.0] * len(phi)
    left, pruned = set(range(len(phi))), sparsity * sum(counts)
    while left:
        weight = sum(counts[i] * phi[i] for i in left)
        even = min(pruned / sum(counts[i] for i in left), _FULL)
        for i in left:
            shares[i] = phi[i] * pruned / weight if weight else even
        over = {i for i in left if shares[i] > _FULL}
        if not over:
            break
        for i in over:
            shares[i] = _FULL
        left -= over
        pruned -= sum(counts[i] for i in over)
    return shares
