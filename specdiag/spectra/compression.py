"""The spectrum of a cut of a matrix, in closed form from the eigenvalues: free compression.

W is n x m, n <= m, with eigenvalues lambda of W W^T. Rotate its long side at random and keep n' of the m columns. The
spectrum of that cut depends, as n grows, on lambda and tau = n'/m alone (Nica and Speicher 1996, R_tau(g) = R_B(tau g)
for B = W^T W). With

    G(w) = (1/m) [sum_i 1/(w - lambda_i) + (m - n)/w],     L its antiderivative, Im w > 0,

the point z(w) = w - (1 - tau)/G(w) of the cut's spectrum belongs to w, its Stieltjes transform there is G(w)/tau, and
S = Im [L(w) + (1 - tau) ln G(w)]/(pi tau) of the n' eigenvalues lie above it where z(w) = x is real. Those w form a
curve u + i v(u), v >= 0, along which x grows with u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES = 12
"""Gauss-Legendre nodes in each panel of the ray; twice as many Gauss-Laguerre nodes beyond the last."""
_RATIO = 4.0
"""Each panel of the ray reaches this many times further than the one before it."""
_FLAT = 1e-9
"""Distance in S from its value in a gap of the spectrum at which the edges of the gap are sought."""
_NUDGE = 1e-6
"""Relative step in u to either side of a point, by which S moves unless there is a gap."""
_RAISED = 1e-40
"""Height at which G is taken for a point of the real axis, in mean eigenvalues."""
_SQUARED = 1e-8
"""Step of Newton's method after which a root is exact to rounding, over the scale on which its function bends."""
_ROUNDING = 1e-15
"""Relative step that rounding alone makes."""
_STEPS = 200
"""Largest number of steps of a root search; bisection alone needs about 60."""


class Cut(NamedTuple):
    """A cut of one matrix to fewer columns of its long side.

    Attributes:
        eigenvalues: lambda of the whole matrix, ascending, shape [n], scaled to mean 1.
        columns: m, its longer side.
        tau: n'/m in (0, 1), the share of the columns that is kept.
    """

    eigenvalues: Array
    columns: int
    tau: float

    @property
    def n_zeros(self) -> int:
        """Zero eigenvalues of W^T W that W W^T does not have."""
        return self.columns - len(self.eigenvalues)

    @property
    def variance(self) -> float:
        """Variance of the eigenvalues of W^T W, zeros included."""
        values, m = self.eigenvalues, self.columns
        mean = float(values.sum()) / m
        return max(float(values @ values) / m - mean * mean, 0.0)


class Point(NamedTuple):
    """A point of the curve.

    Attributes:
        u: real part of w.
        v: imaginary part of w; 0 outside the support of the cut's spectrum.
        x: z(w), a point of the cut's spectrum.
        above: S, the share of the cut's eigenvalues above x.
        density: -dS/dx.
        stretch: dx/du along the curve.
    """

    u: float
    v: float
    x: float
    above: float
    density: float
    stretch: float


def upper_mean(cuts: Sequence[Cut], share: float) -> tuple[float, float]:
    """Find the threshold of the upper eigenvalues of a cut, and how far they lie above it.

    Args:
        cuts: slices whose spectra are averaged, all of one shape.
        share: of the eigenvalues above the threshold, in (0, 1).

    Returns:
        The threshold x_f, S(x_f) = `share`, and the integral of S d ln x above it. In a gap of the spectrum x_f is the
        geometric mean of the gap's edges.
    """
    points = _quantile(cuts, share)
    if _in_a_gap(cuts, points, share):
        edges = [_quantile(cuts, share + sign * _FLAT)[0].x for sign in (1, -1)]
        points = _common(cuts, max(edges[0] * edges[1], 0.0) ** 0.5)
    x = points[0].x
    return x, float(np.mean([_excess(cut, point, x) for cut, point in zip(cuts, points, strict=True)]))


def _in_a_gap(cuts: Sequence[Cut], points: Sequence[Point], share: float) -> bool:
    """Tell whether points lie in a gap or at its edge, where rounding alone decides which point of it is found."""
    for step in (_NUDGE, -_NUDGE):
        moved = [_point(cut, p.u + step * (abs(p.u) + p.x), p.v).above for cut, p in zip(cuts, points, strict=True)]
        if abs(float(np.mean(moved)) - share) < _FLAT:
            return True
    return False


def _quantile(cuts: Sequence[Cut], share: float) -> list[Point]:
    """Points of all cuts with one x, above which `share` of their eigenvalues lie in the mean."""
    if len(cuts) == 1:
        cut = cuts[0]
        low, high = _bracket(cut, lambda p: p.above > share)
        return [_root(cut, low, high, lambda p: (share - p.above, p.density * p.stretch))]
    alone = [_quantile([cut], share)[0].x for cut in cuts]
    low, high = min(alone), max(alone)
    found = _common(cuts, (low + high) / 2)
    for _ in range(_STEPS):
        excess = float(np.mean([point.above for point in found])) - share
        x = found[0].x
        low, high = (x, high) if excess > 0 else (low, x)
        if abs(excess) < 1e-14 or high - low <= 1e-14 * high:
            break
        density = float(np.mean([point.density for point in found]))
        x = x + excess / density if density > 0 else low
        found = _common(cuts, x if low < x < high else (low + high) / 2)
    return found


def _common(cuts: Sequence[Cut], x: float) -> list[Point]:
    """The point of each cut whose place in the spectrum is x."""
    found: list[Point] = []
    for cut in cuts:
        low, high = _bracket(cut, lambda p: p.x < x, 2 * x / cut.tau)
        found.append(_root(cut, low, high, lambda p: (p.x - x, p.stretch))._replace(x=x))
    return found


def _bracket(cut: Cut, is_left: Callable[[Point], bool], further: float = 0.0) -> tuple[float, float]:
    """Neighbours among nodes of u between which a point is passed.

    Nodes are quantiles of the eigenvalues, and points below and above them as far as the support reaches, and `further`
    above.
    """
    values = cut.eigenvalues
    reach = 2 * cut.variance**0.5 * ((1 - cut.tau) / cut.tau) ** 0.5 + float(values[-1])
    beyond = reach * 4.0 ** -np.arange(12)
    quantiles = values[np.linspace(0, len(values) - 1, 17).astype(int)]
    quantiles = quantiles[np.diff(quantiles, prepend=-1.0) > 0]
    between = (quantiles[1:] + quantiles[:-1]) / 2
    nodes = np.sort(np.concatenate([-beyond, between, float(values[-1]) + beyond, [beyond[0] + further]]))
    low, high, guess = 0, len(nodes) - 1, 0.0
    while high - low > 1:
        middle = (low + high) // 2
        point = _point(cut, float(nodes[middle]), guess)
        low, high, guess = (middle, high, point.v) if is_left(point) else (low, middle, point.v)
    return float(nodes[low]), float(nodes[high])


def _root(cut: Cut, low: float, high: float, value: Callable[[Point], tuple[float, float]]) -> Point:
    """The point between two u at which an increasing value, given with its slope in u, is zero.

    Newton's method; a step that leaves the bracket is a bisection. Errors of a step are squared by the next, over the
    spread of the eigenvalues: those of an orthogonal matrix are equal but for rounding.
    """
    spread = float(cut.eigenvalues[-1] - cut.eigenvalues[0])
    point = _point(cut, (low + high) / 2)
    for _ in range(_STEPS):
        error, slope = value(point)
        low, high = (low, point.u) if error > 0 else (point.u, high)
        if error == 0 or high - low <= 4e-16 * max(abs(low), abs(high)):
            break
        u = point.u - error / slope if slope > 0 else low
        is_newton = slope > 0 and low <= u <= high
        is_last = is_newton and abs(u - point.u) <= max(_SQUARED * min(abs(u), spread), _ROUNDING * abs(u))
        point = _point(cut, u if is_newton else (low + high) / 2, point.v)
        if is_last:
            break
    return point


def _point(cut: Cut, u: float, guess: float = 0.0) -> Point:
    distance = u - cut.eigenvalues
    sides, squares = _sides(distance), distance * distance
    v = _height(cut, u, sides, squares, guess)
    # On the real axis the limit from above: no division by zero at an eigenvalue, and angles of pi, not of -pi.
    raised = max(v, _RAISED)
    g, slope = (complex(a) for a in _transform(cut, u, sides, squares, raised))
    angles = float(np.arctan2(raised, distance).sum()) + cut.n_zeros * float(np.arctan2(raised, u))
    above = (angles / cut.columns - (1 - cut.tau) * float(np.arctan2(-g.imag, g.real))) / (np.pi * cut.tau)
    along = 1 + (1 - cut.tau) * slope / (g * g)
    stretch = abs(along) ** 2 / along.real if along.real > 0 else 0.0
    x = u - (1 - cut.tau) * (1 / g).real
    return Point(u, v, x, above, -g.imag / (np.pi * cut.tau), stretch)


def _sides(distance: Array) -> Array:
    """1 and u - lambda side by side: products with them are sums over the eigenvalues."""
    sides = np.ones((len(distance), 2))
    sides[:, 1] = distance
    return sides


def _height(cut: Cut, u: float, sides: Array, squares: Array, guess: float) -> float:
    """v(u): where Im 1/G = v/(1 - tau).

    With Im(1/G) = v (1 + g(v^2)), g decreases from its value at the real axis, and 1/g is concave and increasing in
    s = v^2: Newton's method on 1/g = (1 - tau)/tau comes from the left and never passes the root. Its slope is lost to
    rounding where s is tiny; the bracket then takes over.
    """
    wanted = (1 - cut.tau) / cut.tau
    high = 1.001 * cut.variance * wanted
    low = 1e-24 * (u * u + float(squares.sum()) / len(squares))
    if _inverse_excess(cut, u, sides, squares, low)[0] >= wanted:
        return 0.0
    s = guess * guess if low < guess * guess < high else 1e-3 * high
    for _ in range(_STEPS):
        value, slope = _inverse_excess(cut, u, sides, squares, s)
        low, high = (s, high) if value < wanted else (low, s)
        step = (wanted - value) / slope if slope > 0 else high
        is_newton = low < s + step < high
        s = s + step if is_newton else (low * high) ** 0.5
        if (is_newton and abs(step) <= _SQUARED * s) or high - low <= 1e-15 * high:
            break
    return s**0.5


def _inverse_excess(cut: Cut, u: float, sides: Array, squares: Array, s: float) -> tuple[float, float]:
    """1/g and its derivative in s, for w = u + i sqrt(s), from `_sides` and (u - lambda)^2.

    With P = sum 1/|w - b|^2 and D = sum (u - b)/|w - b|^2 over the m eigenvalues b of W^T W, 1 + g = m P/(D^2 + s P^2).
    """
    q = 1 / (squares + s)
    zero = cut.n_zeros / (u * u + s) if cut.n_zeros else 0.0
    zero_slope = zero * zero / cut.n_zeros if cut.n_zeros else 0.0
    (p, d), (p_slope, d_slope) = (q @ sides).tolist(), (q * -q @ sides).tolist()
    p, d, p_slope, d_slope = p + zero, d + u * zero, p_slope - zero_slope, d_slope - u * zero_slope
    size = d * d + s * p * p
    size_slope = 2 * d * d_slope + p * p + 2 * s * p * p_slope
    rest = cut.columns * p - size
    if rest <= 0:  # so far outside that the eigenvalues are one to the last bit
        return float("inf"), 0.0
    value = size / rest
    return value, (size_slope - value * (cut.columns * p_slope - size_slope)) / rest


def _transform(
    cut: Cut, u: float, sides: Array, squares: Array, v: Array | float
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """G and dG/dw at u + i v, v a number or of shape [k], without complex arithmetic on k x n numbers."""
    q = 1 / (squares + np.expand_dims(v * v, -1))
    first, second = q @ sides, (q * q) @ sides
    w = u + 1j * v
    g = first[..., 1] - 1j * v * first[..., 0]
    slope = -(first[..., 0] - 2 * v * v * second[..., 0] - 2j * v * second[..., 1])
    if cut.n_zeros:
        g, slope = g + cut.n_zeros / w, slope - cut.n_zeros / (w * w)
    return g / cut.columns, slope / cut.columns


def _excess(cut: Cut, start: Point, x: float) -> float:
    """Integral of S d ln x above x, which is that of ln(y/x) over the spectrum above it.

    It is -Im of the integral of ln(z/x) [G/tau - 1/z] dz over pi along any way from x to infinity above the real axis,
    here along w = u + i (v + r), r >= 0: the subtracted 1/z is real on the real axis and makes the integrand vanish
    as ln z/z^2. Panels grow with r, so that no eigenvalue is near to one that is long.
    """
    distance = start.u - cut.eigenvalues
    squares = distance * distance
    far = (float(squares.max()) + start.v**2) ** 0.5 + abs(start.u) + x
    near = float(squares.min()) + start.v**2
    near = max((min(near, start.u**2 + start.v**2) if cut.n_zeros else near) ** 0.5, 1e-12 * far)
    nodes, weights = _ray(near, far)
    v = start.v + nodes
    g, slope = _transform(cut, start.u, _sides(distance), squares, v)
    w = start.u + 1j * v
    z = w - (1 - cut.tau) / g
    step = 1 + (1 - cut.tau) * slope / (g * g)
    integrand = np.log(z / x) * (g / cut.tau - 1 / z) * step * 1j
    return -float(integrand.imag @ weights) / np.pi


def _ray(near: float, far: float) -> tuple[Array, Array]:
    """Nodes and weights of an integral over r from 0 to infinity.

    Gauss-Legendre panels [0, near], then longer by `_RATIO` each to beyond `far`; from there on Gauss-Laguerre in ln r.
    """
    (unit, weights), (logs, decaying) = _legendre(), _laguerre()
    count = max(int(np.ceil(np.log(2 * far / near) / np.log(_RATIO))), 1)
    ends = np.concatenate([[0.0], near * _RATIO ** np.arange(count + 1)])
    widths = np.diff(ends)
    inner = (ends[:-1, None] + widths[:, None] * unit).ravel()
    outer = ends[-1] * np.exp(logs)
    return np.concatenate([inner, outer]), np.concatenate(
        [(widths[:, None] * weights).ravel(), outer * decaying * np.exp(logs)]
    )


@cache
def _legendre() -> tuple[Array, Array]:
    """Nodes and weights of an integral from 0 to 1."""
    unit, weights = np.polynomial.legendre.leggauss(_NODES)
    return (unit + 1) / 2, weights / 2


@cache
def _laguerre() -> tuple[Array, Array]:
    """Nodes x and weights of an integral of exp(-x) f(x) from 0 to infinity."""
    return np.polynomial.laguerre.laggauss(2 * _NODES)
