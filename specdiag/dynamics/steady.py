"""The balance of decay and random steps: its norm, the steps until it is reached, and the rotation of the weights.

For theta <- (1 - eta) theta - lr u with eta = lr x decay and updates that correlate as `Update` says,

    S (2 eta - eta^2) = lr^2 C R,   R = 1 + 2 sum_k rho_k (1 - eta)^k

gives the squared norm S of a coordinate: equations 1 and 2 of *Correction of Decoupled Weight Decay* (arXiv
2512.08217) with the term that momentum adds. R at finite eta is a reconstruction, checked by simulation; as eta goes
to 0 it is the paper's (2 - alpha)/alpha for l2-normalised updates (equation 3).
"""

from __future__ import annotations

import functools
import math

from specdiag.dynamics.updates import Update
from specdiag.errors import UsageError

_NEGLIGIBLE = 1e-12
"""Terms of the arcsine's series below this are dropped."""
_ALONE = 16
"""Number of terms of the arcsine's series that are not merged with others."""
NEAR = 0.01
"""A norm is called steady within this relative distance of its limit."""


def inflation(update: Update, eta: float = 0.0) -> float:
    """R: how much the squared norm grows because momentum repeats each gradient.

    Args:
        update: of an optimizer.
        eta: fraction of the weights that a step removes, in [0, 1); 0 gives the factor of the papers.
    """
    return (0.0 if update.renormalized else 1.0) + _repeated(update, eta)


def removed(update: Update, lr: float, decay: float) -> float:
    """eta: the fraction of the weights that a step removes.

    lr x decay where decay is decoupled. Coupled decay goes through the momentum: eta is then given by the slow root of
    a recursion of second order, about lr x decay/(1 - mu).

    Args:
        update: of an optimizer.
        lr: learning rate.
        decay: the optimizer's argument.

    Raises:
        UsageError: a step would remove all of the weights, or coupled decay would make them oscillate.
    """
    product = lr * decay
    if not update.coupled:
        if product >= 1:
            raise UsageError(
                f"lr {lr:g} x weight decay {decay:g} is {product:.3g}: a step would remove all weights; weight_decay= "
                "is the optimizer's argument, before it is multiplied by the lr"
            )
        return product
    mu = update.kept[0]
    middle = (1 + mu - product) / 2
    root = middle * middle - mu
    if root < 0:
        raise UsageError(
            f"lr {lr:g} x weight decay {decay:g} is {product:.3g}: coupled through momentum {mu:g} it makes the "
            f"weights swing; {(1 - math.sqrt(mu)) ** 2:.3g} is the most"
        )
    return product / (1 - middle + math.sqrt(root))  # 1 - (middle + sqrt(root)) without cancellation


def steady_square(update: Update, lr: float, decay: float) -> float | None:
    """S: mean square of a weight in the balance.

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        decay: the optimizer's argument.

    Returns:
        S; None where nothing decays.

    Raises:
        UsageError: see `removed`.
    """
    eta = removed(update, lr, decay)
    if eta == 0:
        return None
    if update.coupled:
        return _coupled(update, lr, decay)
    return lr * lr * update.square * inflation(update, eta) / (eta * (2 - eta))


def steady_norm(update: Update, lr: float, decay: float, dimension: int = 1) -> float | None:
    """The norm of the weights in the balance.

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        decay: the optimizer's argument.
        dimension: number of weights; 1 gives the root mean square of a weight.

    Returns:
        The norm; None where nothing decays.

    Raises:
        UsageError: see `removed`.
    """
    square = steady_square(update, lr, decay)
    return None if square is None else math.sqrt(square * dimension)


def tuc(update: Update, lr: float, dimension: int) -> float:
    """Total update contribution: the distance that one gradient moves the weights over all steps, without decay.

    lr sqrt(R C d): lr sqrt(d) for AdamW whatever its betas, the effective lr x sqrt(d) for l2-normalised updates
    (Kosson et al., arXiv 2305.17212; arXiv 2512.08217, equation 3).

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        dimension: d, number of weights.
    """
    return lr * math.sqrt((1 + _repeated(update)) * update.square * dimension)


def rotation(update: Update, lr: float, decay: float) -> float | None:
    """Length of a step over the norm, in the balance: the angle by which a step turns the weights.

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        decay: the optimizer's argument.

    Returns:
        Radians; None where nothing decays.

    Raises:
        UsageError: see `removed`.
    """
    square = steady_square(update, lr, decay)
    return lr * math.sqrt(update.square / square) if square else None


def tuc_rotation(update: Update, lr: float, decay: float) -> float:
    """The total contribution of one gradient over the norm, sqrt(2 eta) for every optimizer (Kosson et al.).

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        decay: the optimizer's argument.

    Raises:
        UsageError: see `removed`.
    """
    return math.sqrt(2 * removed(update, lr, decay))


def kosson_rotation(update: Update, lr: float, decay: float) -> float | None:
    """Rotation in a step by the formulas of Kosson et al. (arXiv 2305.17212), to first order in eta.

    For Lion they take 2/pi of the average's correlation for that of its sign, where `rotation` has the arcsine.

    Args:
        update: of an optimizer.
        lr: learning rate, constant.
        decay: the optimizer's argument.

    Returns:
        Radians; None without decay, and for optimizers that the paper has no formula for.
    """
    first = update.kept[0] if update.kept else 0.0
    if decay == 0:
        return None
    if update.optimizer in ("adamw", "adamc"):
        return math.sqrt(2 * lr * decay * (1 - first) / (1 + first))
    if update.optimizer == "sgdm":
        return math.sqrt(2 * lr * decay / (1 + first))
    if update.optimizer == "lion":
        second = update.kept[1]
        kernel = (1 - first) ** 2 + first**2 * (1 - second) / (1 + second)
        return math.sqrt(math.pi / 2 * 2 * lr * decay * kernel)
    return None


def steps_to_steady(square: float, steady: float, eta: float, near: float = NEAR) -> int:
    """Count the steps at a constant lr until the norm is near its balance.

    Args:
        square: S, the mean square of a weight, at the start.
        steady: S in the balance, above 0.
        eta: fraction of the weights that a step removes, above 0.
        near: relative distance from the norm of the balance that counts as near.

    Returns:
        The number of steps; 0 where the norm is near already.
    """
    off = square / steady - 1
    allowed = (1 + near) ** 2 - 1 if off > 0 else 1 - (1 - near) ** 2
    return max(0, math.ceil(math.log(abs(off) / allowed) / (-2 * math.log1p(-eta)))) if abs(off) > allowed else 0


def decay_of(rms: float, lr: float) -> float:
    """The decay for which AdamW in balance at this lr has weights of this RMS: lr/(2 RMS^2).

    Norms that agree do not prove this decay: a run out of balance, coupled decay or a fallen lr give other norms.

    Args:
        rms: root mean square of a weight, above 0.
        lr: learning rate, constant.
    """
    return lr / (2 * rms * rms)


def correlations(update: Update) -> tuple[tuple[float, float], ...]:
    """Correlations rho_k of updates k >= 1 steps apart, as a sum of weight x ratio^k.

    Args:
        update: of an optimizer.

    Returns:
        (weight, ratio) of each term of the sum.
    """
    terms = _arcsine(update.amplitude, update.memory) if update.sign else ((update.amplitude, update.memory),)
    return tuple((update.repeats * weight, ratio) for weight, ratio in terms)


def _repeated(update: Update, eta: float = 0.0) -> float:
    """2 sum_k rho_k (1 - eta)^k."""
    left = 1 - eta
    return 2 * sum(weight * ratio * left / (1 - ratio * left) for weight, ratio in correlations(update))


def _coupled(update: Update, lr: float, decay: float) -> float:
    """S of SGD with coupled decay, exact: the variance of an autoregression of second order."""
    mu, product = update.kept[0], lr * decay
    fresh = update.square * (1 - mu * mu)
    return lr * lr * fresh * (1 + mu) / ((1 - mu) * product * (2 * (1 + mu) - product))


@functools.lru_cache
def _arcsine(amplitude: float, memory: float) -> tuple[tuple[float, float], ...]:
    """(2/pi) asin(amplitude memory^k) as a sum of weight x ratio^k: the series of the arcsine.

    The first terms are kept. Later ones have short memories: each block of them is merged into one term with the same
    weight and the same sum over k.
    """
    terms: list[tuple[float, float]] = []
    weight, j = 2 / math.pi * amplitude, 0
    while weight * memory ** (2 * j + 1) > _NEGLIGIBLE:
        terms.append((weight, memory ** (2 * j + 1)))
        weight *= amplitude * amplitude * (2 * j + 1) ** 2 / ((2 * j + 2) * (2 * j + 3))
        j += 1
    joined, first = terms[:_ALONE], _ALONE
    while block := terms[first : 2 * first]:
        weight = sum(w for w, _ in block)
        total = sum(w * ratio / (1 - ratio) for w, ratio in block)
        joined.append((weight, total / (weight + total)))
        first *= 2
    return tuple(joined)
