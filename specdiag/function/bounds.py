"""Bounds of what the matrices of a block can put out, for any input: proofs from weights alone.

A norm gives every position a vector of length at most sqrt(d). With the norm folded in, row i of a reader W with bias b
puts out at most sqrt(d)|W_i| + |b_i|; the rest follows from there. A bound proves that a type is wide enough; where it
exceeds the largest value of a type nothing follows. Values are those of exact arithmetic.
"""

from __future__ import annotations

from specdiag.function.algebra import Algebra
from specdiag.function.arrays import Array, falling, larger, largest_of, living_ratio, norms, repeated, smaller, swapped
from specdiag.function.attention import Moving
from specdiag.function.decompositions import singular, triangle
from specdiag.function.folding import Norm, Reader


def reader_bounds(reader: Reader) -> Array:
    """Bound each output of a matrix behind a norm: sqrt(d)|W_i| + |b_i|.

    Args:
        reader: weight [n, d] and bias [n], the norm folded in.

    Returns:
        Shape [n].
    """
    return reader.weight.shape[1] ** 0.5 * norms(reader.weight, 1) + _size(reader)


def gated_bounds(gate: Reader, up: Reader) -> Array:
    """Bound what enters the down projection of a gated MLP whose activation a has |a(x)| <= |x|.

    d(|G_i||U_i| + |G_i.U_i|)/2 is the largest |G_i x||U_i x| of |x|^2 = d; biases b and c add
    sqrt(d)(|b||U_i| + |c||G_i|) + |b c|.

    Args:
        gate: weight [m, d] and bias, the norm folded in.
        up: likewise.

    Returns:
        Shape [m].
    """
    d = gate.weight.shape[1]
    of_gate, of_up = norms(gate.weight, 1), norms(up.weight, 1)
    both = d * (of_gate * of_up + abs((gate.weight * up.weight).sum(axis=1))) / 2
    b, c = _size(gate), _size(up)
    return both + d**0.5 * (b * of_up + c * of_gate) + b * c


def down_bounds(down: Reader, inner: Array) -> Array:
    """Bound each output of a down projection by what enters it: sum_i |D_ji| bound_i + |b_j|.

    Args:
        down: weight [d, m] and bias [d].
        inner: bounds of what enters, shape [m].

    Returns:
        Shape [d].
    """
    return abs(down.weight) @ inner + _size(down)


def gated_down_bound(row: Array, gate: Reader, up: Reader, algebra: Algebra) -> float:
    """Bound an output of a gated MLP by Cauchy and Schwarz: |E^1/2 g(x)| |E^1/2 u(x)|, E = diag |row|.

    Without biases it is d sqrt(l_max(G'E G) l_max(U'E U)). It does not depend on the scales of neurons where gate and
    up have rows of equal norms.

    Args:
        row: of the down projection, shape [m].
        gate: weight [m, d] and bias, the norm folded in.
        up: likewise.
        algebra: that computes.
    """
    weights = abs(row) ** 0.5
    sides = [_largest_output(Reader(side.weight * weights[:, None], _times(side.bias, weights)), algebra)
             for side in (gate, up)]  # fmt: skip
    return sides[0] * sides[1]


def gated_down_bounds(down: Array, gate: Reader, up: Reader, algebra: Algebra) -> Array:
    """Bound every output of a gated MLP from above the Cauchy-Schwarz bound, without an eigenproblem for each.

    For any c >= 0, E <= (E - c)+ + c, so that l_max(G'E G) <= sum_i (e_i - c)+ |G_i|^2 + c sigma_max(G)^2. The least
    over c is taken (our derivation). Biases are treated as in `gated_down_bound`.

    Args:
        down: shape [d, m].
        gate: weight [m, d] and bias, the norm folded in.
        up: likewise, with rows as long as those of gate.
        algebra: that computes.

    Returns:
        Shape [d].
    """
    width = gate.weight.shape[1]
    weights = abs(down)
    squares = larger(*((side.weight * side.weight).sum(axis=1) for side in (gate, up)))
    sizes, order = falling(weights)
    by_row = squares[order]
    above = (sizes * by_row).cumsum(axis=1) - sizes * by_row.cumsum(axis=1)
    found: list[Array] = []
    for side in (gate, up):
        top = float(algebra.largest(side.weight)) ** 2
        largest = smaller(-largest_of(-(above + sizes * top), 1), weights @ squares)
        bias = 0.0 if side.bias is None else (weights @ (side.bias * side.bias)) ** 0.5
        found.append((width * largest) ** 0.5 + bias)
    return found[0] * found[1]


def plain_down_bounds(down: Reader, up: Reader, algebra: Algebra) -> Array:
    """Bound each output of an MLP without a gate by |D_j| times the length of what enters.

    Args:
        down: weight [d, m] and bias [d].
        up: weight [m, d] and bias [m], the norm folded in.
        algebra: that computes.

    Returns:
        Shape [d].
    """
    return norms(down.weight, 1) * _largest_output(up, algebra) + _size(down)


def moved_bounds(heads: Moving, width: int, bias: Array | None = None) -> Array:
    """Bound each output of attention: sqrt(d) sum_h |row j of O_h V_h| + |b_j|, as attention averages values.

    Args:
        heads: values, the norm folded in, and outputs as they are stored.
        width: d.
        bias: of all outputs, those of values moved into it, shape [d]; None without one.

    Returns:
        Shape [d].
    """
    triangles = repeated(triangle(swapped(heads.v)), len(heads.o) // len(heads.v))
    rows = norms(heads.o @ swapped(triangles), 2).sum(axis=0)
    return width**0.5 * rows + (0.0 if bias is None else abs(bias))


def balanced_gate(gate: Reader, up: Reader, down: Array) -> tuple[Reader, Array]:
    """Scale the neurons of a gated MLP so that gate and up have rows of equal norms.

    Args:
        gate: weight [m, d].
        up: weight [m, d] and bias.
        down: shape [d, m].

    Returns:
        Up and down; neurons of which a side is zero stay as they are.
    """
    scale = living_ratio(norms(gate.weight, 1), norms(up.weight, 1))
    return Reader(up.weight * scale[:, None], _times(up.bias, scale)), down / scale


def least_of_norm(norm: Norm) -> float:
    """Compute the smallest value that the largest output of a norm can have, sqrt(d / sum 1/g^2) less the largest bias.

    A stream of length zero, or one as short as the norm's eps, gives less.

    Args:
        norm: gain [d] and bias.
    """
    size = abs(norm.gain)
    if not size.all():
        return 0.0
    least = float((len(size) / (size**-2.0).sum()) ** 0.5)
    return max(least - (0.0 if norm.bias is None else float(abs(norm.bias).max())), 0.0)


def least_of_reader(reader: Reader, beyond: float) -> float:
    """Compute a value that the largest output of a matrix behind a norm has at least, whatever the input.

    An output whose bias exceeds its reach has |b_i| - sqrt(d)|W_i| at least; of n outputs one has at least
    sqrt(d/n) sigma_min where n >= d and there is no bias. The singular value is computed where it can exceed `beyond`.

    Args:
        reader: weight [n, d] and bias [n], the norm folded in.
        beyond: smaller answers do not matter.
    """
    n, d = reader.weight.shape
    lengths = norms(reader.weight, 1)
    least = float((_size(reader) - d**0.5 * lengths).max()) if n else 0.0
    if reader.bias is None and n >= d and float((lengths * lengths).sum() / n) ** 0.5 > beyond:
        smallest = float(singular(triangle(reader.weight))[1][-1])
        least = max(least, (d / n) ** 0.5 * smallest)
    return max(least, 0.0)


def _largest_output(reader: Reader, algebra: Algebra) -> float:
    """Bound the length of all outputs together: sqrt(d) sigma_max + |b|."""
    bias = 0.0 if reader.bias is None else float(norms(reader.bias, 0))
    return reader.weight.shape[1] ** 0.5 * float(algebra.largest(reader.weight)) + bias


def _size(reader: Reader) -> Array | float:
    return 0.0 if reader.bias is None else abs(reader.bias)


def _times(bias: Array | None, factors: Array) -> Array | None:
    return None if bias is None else bias * factors
