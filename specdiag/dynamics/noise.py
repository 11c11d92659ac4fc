"""The optimizers themselves on gradients that are pure noise: a seeded simulation to check predictions against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from specdiag.decay.schedules import Schedule
from specdiag.dynamics.renormalized import renormalized_step
from specdiag.dynamics.updates import Shape, Update

Direction = Callable[[np.ndarray, int], np.ndarray]
"""An optimizer's update u from the gradient at a step, counted from 1."""

_EPSILON = 1e-8
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Walk(NamedTuple):
    """Measurements of a simulation on noise."""

    squares: dict[int, float]
    """Mean square of a weight after each noted step."""
    balance: float
    """The same, averaged over the second half of the steps."""
    update_square: float
    """Mean square of the update in a coordinate over that half: C. 0 for coupled decay and renormalized steps."""


def run_on_noise(
    update: Update,
    shape: Shape,
    lr: Schedule,
    decay: Schedule,
    steps: int,
    start: float,
    at: Iterable[int],
    *,
    gradient_rms: float = 1.0,
    seed: int = 0,
) -> Walk:
    """Run the optimizer from Gaussian weights on white Gaussian gradients; the same seed gives the same numbers.

    Args:
        update: names the optimizer and its momentum.
        shape: of the weights.
        lr: learning rate at each step from 1 on.
        decay: the optimizer's argument at each step.
        steps: number of steps.
        start: mean square of the weights before the first step, to which the drawn weights are scaled.
        at: steps to note; 0 is the start.
        gradient_rms: root mean square of a gradient's coordinates.
        seed: of weights and gradients.
    """
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(shape)
    weights *= math.sqrt(start / _mean_square(weights))
    direction = _direction(update, shape)
    wanted = set(at)
    squares = {0: start} if 0 in wanted else {}
    total = total_update = 0.0
    for step in range(1, steps + 1):
        rate, argument = lr(step), decay(step)
        gradient = gradient_rms * rng.standard_normal(shape)
        if update.coupled:
            weights -= rate * direction(gradient + argument * weights, step)
        elif update.renormalized:
            weights = renormalized_step(weights, direction(gradient, step), rate, argument)
        else:
            u = direction(gradient, step)
            weights *= 1 - rate * argument
            weights -= rate * u
            total_update += _mean_square(u) if 2 * step > steps else 0.0
        if 2 * step > steps or step in wanted:
            square = _mean_square(weights)
            total += square if 2 * step > steps else 0.0
            if step in wanted:
                squares[step] = square
    half = steps - steps // 2
    return Walk(squares, total / half, total_update / half)


def polar(matrix: np.ndarray) -> np.ndarray:
    """U V^T of the singular value decomposition U S V^T: the nearest semi-orthogonal matrix.

    Args:
        matrix: shape [rows, cols].
    """
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Muon's five steps towards U V^T; singular values end between 0.5 and 1.2.

    Args:
        matrix: shape [rows, cols].

    Returns:
        The same shape and type, float64 in simulations.
    """
    a, b, c = _NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (np.linalg.norm(wide) + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _mean_square(values: np.ndarray) -> float:
    return float(np.mean(np.square(values)))


def _direction(update: Update, shape: Shape) -> Direction:
    name = update.optimizer
    if name == "random-walk":
        return lambda gradient, _: gradient
    if name in ("adamw", "adamc", "adamw-renormalized"):
        return _adam(shape, *update.kept)
    if name == "lion":
        return _lion(shape, *update.kept)
    if name in ("sgdm", "sgdw"):
        return _momentum(shape, update.kept[0], 1.0, lambda buffer: buffer)
    if name == "muon":
        return _muon(shape, update.kept[0])
    scale = {
        "scion-l2": lambda m: m * math.sqrt(m.size) / np.linalg.norm(m),
        "scion-sign": lambda m: np.sign(m) / shape[-1],
        "scion-spectral": lambda m: math.sqrt(shape[0] / shape[-1]) * polar(m),
    }[name]
    return _momentum(shape, update.kept[0], 1 - update.kept[0], scale)


def _momentum(shape: Shape, kept: float, weight: float, then: Callable[[np.ndarray], np.ndarray]) -> Direction:
    buffer = np.zeros(shape)

    def direction(gradient: np.ndarray, step: int) -> np.ndarray:
        buffer[...] = kept * buffer + weight * gradient
        return then(buffer)

    return direction


def _adam(shape: Shape, beta1: float, beta2: float) -> Direction:
    mean, second = np.zeros(shape), np.zeros(shape)

    def direction(gradient: np.ndarray, step: int) -> np.ndarray:
        mean[...] += (1 - beta1) * (gradient - mean)
        second[...] += (1 - beta2) * (gradient * gradient - second)
        return mean / (1 - beta1**step) / (np.sqrt(second / (1 - beta2**step)) + _EPSILON)

    return direction


def _lion(shape: Shape, beta1: float, beta2: float) -> Direction:
    mean = np.zeros(shape)

    def direction(gradient: np.ndarray, step: int) -> np.ndarray:
        u = np.sign(beta1 * mean + (1 - beta1) * gradient)
        mean[...] += (1 - beta2) * (gradient - mean)
        return u

    return direction


def _muon(shape: Shape, mu: float) -> Direction:
    buffer = np.zeros(shape)
    adjusted = math.sqrt(max(1.0, shape[0] / shape[-1]))

    def direction(gradient: np.ndarray, step: int) -> np.ndarray:
        buffer[...] = mu * buffer + (1 - mu) * gradient
        return adjusted * newton_schulz((1 - mu) * gradient + mu * buffer)

    return direction
