"""Updates of an optimizer on gradients that are pure noise: their length, and how they repeat each other.

A step is lr x u. Two numbers of u decide the norm: C, its mean square in a coordinate, and the correlation rho_k
between updates k steps apart, which momentum causes. For white gradients every optimizer here has rho_k = f(a r^k),
k >= 1: f is the identity where u is linear in the gradients (after a normalisation that hardly moves), and
(2/pi) asin where their signs are taken.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

from specdiag.errors import UsageError
from specdiag.text import checks

Optimizer = Literal[
    "adamw", "adamc", "adamw-renormalized", "sgdm", "sgdw", "lion", "muon", "scion-l2", "scion-sign", "scion-spectral",
    "random-walk",
]  # fmt: skip
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

BETAS: dict[Optimizer, tuple[float, float]] = {
    "adamw": (0.9, 0.999), "adamc": (0.9, 0.999), "adamw-renormalized": (0.9, 0.999), "lion": (0.9, 0.99),
}  # fmt: skip
"""Defaults of the optimizers that take betas."""
MOMENTUM: dict[Optimizer, float] = {
    "sgdm": 0.9, "sgdw": 0.9, "muon": 0.95, "scion-l2": 0.9, "scion-sign": 0.9, "scion-spectral": 0.9,
}  # fmt: skip
"""Defaults of the optimizers that take a momentum, the share of the buffer that a step keeps."""

SPECTRAL_REPEATS = ((1.0, 0.776), (1.5, 0.869), (2.0, 0.906), (3.0, 0.940), (4.0, 0.956), (8.0, 0.979))
"""(longer side over shorter, R - 1 of U V^T over that of an l2-normalised update), measured to 0.001 at small alpha."""
NEWTON_SCHULZ_SQUARE, NEWTON_SCHULZ_REPEATS = 0.83, 0.95
"""Measured: mean squared singular value of what Muon's five steps return for Gaussian matrices (0.75 to 0.91, smaller
sides 128 to 1024), and the correlations that Nesterov momentum leaves between such, over `SPECTRAL_REPEATS`."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """An optimizer's update under white gradients, with the settings that it was derived from."""

    optimizer: Optimizer
    kept: tuple[float, ...]
    """Share of each buffer that a step keeps: (beta1, beta2), (mu,), or (1 - alpha,)."""
    square: float
    """C: mean square of u in a coordinate, so that a step moves a coordinate by lr sqrt(C)."""
    amplitude: float
    """a of the correlations a r^k."""
    memory: float
    """r of the correlations a r^k."""
    sign: bool = False
    """True where u is the sign of a linear update: correlations are (2/pi) asin of the linear ones."""
    repeats: float = 1.0
    """Measured factor on all correlations, for updates that no formula covers."""
    coupled: bool = False
    """True where the decay passes through the momentum, as in torch's SGD."""
    renormalized: bool = False
    """True where the part of a step that is perpendicular to the weights does not lengthen them."""


def update_of(
    optimizer: str,
    shape: Shape,
    *,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    gradient_rms: float = 1.0,
) -> Update:
    """Derive the update of an optimizer on a tensor of this shape.

    Args:
        optimizer: one of `OPTIMIZERS`. `sgdm` is torch's SGD, whose decay is coupled; `sgdw` has decoupled decay;
            `random-walk` takes a fresh N(0, 1) number in each coordinate.
        shape: (d_out, d_in), or (d,).
        momentum: share of the buffer that a step keeps, in [0, 1); Scion's alpha is 1 - momentum. None for the default
            in `MOMENTUM`.
        betas: of the optimizers in `BETAS`, each in [0, 1); None for the default there.
        gradient_rms: root mean square of a gradient's coordinates; only SGD's steps depend on it.

    Raises:
        UsageError: an unknown optimizer, a setting that it does not have, or a shape that it is not defined for.
    """
    checks.one_of("optimizer", optimizer, OPTIMIZERS)
    assert _is_known(optimizer)
    _check(optimizer, shape, momentum, betas, gradient_rms)
    if optimizer == "random-walk":
        return Update(optimizer, (), 1.0, 0.0, 0.0)
    if optimizer in BETAS:
        return _with_betas(optimizer, betas or BETAS[optimizer])
    kept = MOMENTUM[optimizer] if momentum is None else momentum
    if optimizer in ("sgdm", "sgdw"):
        square = gradient_rms**2 / (1 - kept**2)
        return Update(optimizer, (kept,), square, 1.0, kept, coupled=optimizer == "sgdm")
    if optimizer == "scion-l2":
        return Update(optimizer, (kept,), 1.0, 1.0, kept)
    rows, cols = shape
    if optimizer == "scion-sign":
        return Update(optimizer, (kept,), 1 / cols**2, 1.0, kept, sign=True)
    repeats = interpolated(SPECTRAL_REPEATS, max(rows, cols) / min(rows, cols))
    if optimizer == "scion-spectral":
        return Update(optimizer, (kept,), min(rows, cols) / cols**2, 1.0, kept, repeats=repeats)
    square = max(1.0, rows / cols) / max(rows, cols) * NEWTON_SCHULZ_SQUARE
    return Update(
        optimizer, (kept,), square, _amplitude(*_nesterov(kept)), kept, repeats=repeats * NEWTON_SCHULZ_REPEATS
    )


def nesterov(mu: float) -> Update:
    """Nesterov momentum on an exponential average, normalised: Muon's update before it is orthogonalised.

    Args:
        mu: share of the buffer that a step keeps, in [0, 1).
    """
    return Update("scion-l2", (mu,), 1.0, _amplitude(*_nesterov(mu)), mu)


def interpolated(table: tuple[tuple[float, float], ...], at: float) -> float:
    """Interpolate a measured table, linearly in log x.

    Args:
        table: (x, y) in ascending order of x, from x = 1 on.
        at: x to look up, 1 or more.

    Returns:
        y at that x; the last y beyond the table.
    """
    for (x0, y0), (x1, y1) in itertools.pairwise(table):
        if at <= x1:
            return y0 + (y1 - y0) * math.log(at / x0) / math.log(x1 / x0)
    return table[-1][1]


def _is_known(name: str) -> TypeGuard[Optimizer]:
    return name in OPTIMIZERS


def _with_betas(optimizer: Optimizer, betas: tuple[float, float]) -> Update:
    first, second = betas
    if optimizer == "lion":
        head, rest = 1 - first, first * (1 - second)
        return Update(optimizer, betas, 1.0, _amplitude(head, rest, second), second, sign=True)
    square = (1 - first) / (1 + first)  # of an average of unit noise; the second moment divides by the noise's own size
    return Update(optimizer, betas, square, 1.0, first, renormalized=optimizer == "adamw-renormalized")


def _nesterov(mu: float) -> tuple[float, float, float]:
    return (1 - mu) * (1 + mu), mu * mu * (1 - mu), mu


def _amplitude(head: float, rest: float, ratio: float) -> float:
    """a of the kernel head, rest, rest ratio, rest ratio^2, ..., whose correlations are a ratio^k from k = 1 on."""
    if ratio == 0:
        return 0.0
    tail = rest * rest / (1 - ratio * ratio)
    return (head * rest / ratio + tail) / (head * head + tail)


def _check(
    optimizer: Optimizer,
    shape: Shape,
    momentum: float | None,
    betas: tuple[float, float] | None,
    gradient_rms: float,
) -> None:
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise UsageError(f"shape={'x'.join(map(str, shape))}: give ROWSxCOLS, or the length of a vector")
    if optimizer in ("muon", "scion-sign", "scion-spectral") and len(shape) == 1:
        raise UsageError(f"{optimizer} needs a matrix: give shape=ROWSxCOLS, not {shape[0]}")
    if momentum is not None and optimizer not in MOMENTUM:
        raise UsageError(f"{optimizer} takes no momentum=" + (": give betas=" if optimizer in BETAS else ""))
    if betas is not None and optimizer not in BETAS:
        raise UsageError(f"{optimizer} takes no betas=" + (": give momentum=" if optimizer in MOMENTUM else ""))
    if betas is not None and not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"betas=({betas[0]:g}, {betas[1]:g}): each lies in [0, 1)")
    if momentum is not None and not 0 <= momentum < 1:
        raise UsageError(f"momentum={momentum:g} must be the share of the buffer that a step keeps, in [0, 1)")
    if not (math.isfinite(gradient_rms) and gradient_rms > 0):
        raise UsageError(f"gradient_rms={gradient_rms:g} must be positive")
