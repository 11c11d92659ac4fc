"""Directions that were taken out of what writes to the stream, W <- (I - a r r')W, seen without a base model.

Matrices that write to it reach each of its directions. Where one was removed, the lowest eigenvalue of G = W W'/tr
falls below the next. Figures are ratios of the two: of one wide matrix, of the mean of G over layers and over the
model, and of the lowest direction of one matrix in the others. Matrices are in balance, so that no figure depends on
the scales of neurons or the coordinates of heads; LayerNorms do not see the direction of equal values, which is taken
out first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from specdiag.function.alarm_records import WindowRatio, WriterRatio
from specdiag.function.algebra import Algebra
from specdiag.function.arrays import Array, on_host, placed

WIDE = 1.5
"""Columns over rows from which on a matrix counts as wide: others have low eigenvalues by nature."""
LEAST_LAYERS = 6
"""Layers over which the mean of G is taken, at least."""
LOWEST = 10
"""Lowest eigenvalues among which the largest gap tells how many directions were removed."""
HELD = 1 << 30
"""Bytes of G that are held for the comparison of all matrices; beyond, the weights are read once more."""
_GAP = 0.1
"""Ratio over the largest gap below which it stands for that of the lowest two: of several removed directions these two
are equally low. A choice: wide matrices of clean models had .33 or more."""
_LACKING = 0.5
"""Share of its second eigenvalue below which a matrix counts as one that lacks a direction. A choice."""


class Writer(NamedTuple):
    """A matrix that writes to the stream.

    Attributes:
        key: of the stored matrix.
        layer: its index; None where there is none.
        values: in balance, shape [d, n]; centred where the direction of equal values is no part of the stream.
    """

    key: str
    layer: int | None
    values: Array


class Low(NamedTuple):
    """The low end of a spectrum.

    Attributes:
        ratio: lowest eigenvalue over the next; over the largest gap among the lowest ten where several were removed.
        next: the next one.
        vectors: of as many as lie below the largest gap among the lowest ten, shape [d, k].
    """

    ratio: float
    next: float
    vectors: Array


def low_end(gram: Array, algebra: Algebra, *, is_centred: bool) -> Low:
    """Compute the lowest eigenvalue of G over the next, and the directions below the largest gap.

    Args:
        gram: G of one matrix or of several, shape [d, d].
        algebra: that computes.
        is_centred: leave out the direction of equal values, in which G is zero.
    """
    trace = float(gram.trace())
    if is_centred:  # lifted above all others
        gram = gram + trace / len(gram)
        trace *= 2
    values, vectors = algebra.lowest(gram, min(LOWEST + 1, len(gram) - int(is_centred)))
    values = np.maximum(values, 0)
    floor = max(trace * np.finfo(np.float64).eps, np.finfo(np.float64).tiny)
    ratios = (values[:-1] + floor) / (values[1:] + floor)
    n = int(ratios.argmin()) + 1
    ratio = float(values[0] / max(values[1], floor))
    return Low(min(ratio, float(ratios[n - 1])) if ratios[n - 1] < _GAP else ratio, float(values[1]), vectors[:, :n])


def windows(n_layers: int) -> list[tuple[int, int]]:
    """List the ranges of layers over which means are taken: all, and 8, 16, 32, ... with half of them overlapping.

    Args:
        n_layers: of the stream.
    """
    if n_layers < LEAST_LAYERS:
        return [(0, n_layers)] if n_layers else []
    found = [(0, n_layers)]
    size = 8
    while size < n_layers:
        starts = [*range(0, n_layers - size + 1, size // 2)]
        found += [(start, start + size) for start in starts]
        size *= 2
    return found


@dataclass(slots=True)
class _Entry:
    """A matrix that was seen: its low end; wide or not; what it has of each direction, over its second eigenvalue."""

    layer: int | None
    low: Low
    is_wide: bool
    levels: Mapping[str, float]


class DirectionSearch:
    """The search for removed directions in one stream: `add` all matrices, `compare` them again if not `is_held`."""

    def __init__(self, component: str | None, layers: Iterable[int], algebra: Algebra, *, is_centred: bool) -> None:
        """Start with no matrix.

        Args:
            component: the piece of the model.
            layers: of the stream.
            algebra: that computes.
            is_centred: whether its matrices are centred.
        """
        self._component, self._algebra, self._is_centred = component, algebra, is_centred
        self._layers = sorted(set(layers))
        self._sums: dict[tuple[int, int], tuple[int, Array]] = {}
        self._lows: dict[tuple[int, int], tuple[int, Low]] = {}
        self._entries: dict[str, _Entry] = {}
        self._grams: dict[str, Array] = {}
        self.is_held = True
        """False where the matrices were too large to be held: each is then given to `compare`."""

    def add(self, writer: Writer) -> None:
        """Take a matrix into account, in the order of layers. One that is zero or not finite is passed over."""
        gram = self._gram(writer)
        if gram is None:
            return
        d, n = writer.values.shape
        if writer.layer is not None:
            self._add_up(self._layers.index(writer.layer), gram)
        if n < d:  # of low rank by its shape
            return
        low = low_end(gram, self._algebra, is_centred=self._is_centred)
        self._entries[writer.key] = _Entry(writer.layer, low, n >= WIDE * d, {})
        if self.is_held:
            self._grams[writer.key] = gram
            self.is_held = len(self._grams) * gram.nbytes <= HELD
            if not self.is_held:
                self._grams.clear()

    def compare(self, writer: Writer) -> None:
        """Look at a matrix once more, for the directions of all others."""
        gram = self._gram(writer) if writer.key in self._entries else None
        if gram is not None:
            self._level(writer.key, gram)

    def finish(self) -> tuple[list[WriterRatio], list[WindowRatio], dict[str, Array]]:
        """Give the figures of every matrix and of every range of layers, and the lowest directions behind them.

        Returns:
            The figures, and directions [d, k] by the key of a matrix or the name of a range.
        """
        for key, gram in self._grams.items():
            self._level(key, gram)
        vectors = {key: entry.low.vectors for key, entry in self._entries.items()}
        found: list[WindowRatio] = []
        for (first, last), (n, low) in sorted(self._windows().items(), key=lambda item: item[0][0] - item[0][1]):
            window = WindowRatio(
                component=self._component,
                first=self._layers[first],
                last=self._layers[last - 1],
                n_matrices=n,
                is_whole=(first, last) == (0, len(self._layers)),
                ratio=low.ratio,
                n_directions=low.vectors.shape[1],
                layers=self._lacking(_name(first, last)),
            )
            found.append(window)
            vectors[window.name] = low.vectors
        return [self._writer(key, entry) for key, entry in self._entries.items()], found, vectors

    def _writer(self, key: str, entry: _Entry) -> WriterRatio:
        levels = sorted((other.levels[key], name) for name, other in self._entries.items() if other.levels)
        shared, other = None, None
        if len(levels) > 1:  # the second smallest: that of the matrix itself is among them
            shared = levels[1][0]
            other = next(name for _, name in levels if name != key)
        return WriterRatio(
            key=key,
            component=self._component,
            layer=entry.layer,
            ratio=entry.low.ratio if entry.is_wide else None,
            n_directions=entry.low.vectors.shape[1],
            shared=shared,
            shared_with=other,
            layers=self._lacking(key),
        )

    def _gram(self, writer: Writer) -> Array | None:
        size = float((writer.values * writer.values).sum())
        return self._algebra.gram(writer.values) / size if np.isfinite(size) and size > 0 else None

    def _add_up(self, index: int, gram: Array) -> None:
        """Add G to the sum of each range that holds the layer; a range that lies behind is finished and let go."""
        self._close(index)
        for first, last in windows(len(self._layers)):
            if first <= index < last:
                n, total = self._sums.get((first, last), (0, None))
                if total is None:
                    total = gram + 0.0
                else:
                    total += gram
                self._sums[first, last] = n + 1, total

    def _close(self, before: int) -> None:
        for first, last in [place for place in self._sums if place[1] <= before]:
            n, total = self._sums.pop((first, last))
            self._lows[first, last] = n, low_end(total / n, self._algebra, is_centred=self._is_centred)

    def _windows(self) -> dict[tuple[int, int], tuple[int, Low]]:
        self._close(len(self._layers))
        return self._lows

    def _level(self, key: str, gram: Array) -> None:
        """Compute what a matrix has of each lowest direction, over its second eigenvalue."""
        directions = {name: entry.low.vectors[:, 0] for name, entry in self._entries.items()}
        directions |= {_name(*place): low.vectors[:, 0] for place, (_, low) in self._windows().items()}
        stacked = np.stack(list(directions.values()), axis=1)
        levels = np.einsum("dn,dn->n", stacked, on_host(gram @ placed(stacked, self._algebra.device)))
        entry = self._entries[key]
        least = max(entry.low.next, float(gram.trace()) * np.finfo(np.float64).eps)
        entry.levels = {name: float(max(level, 0) / least) for name, level in zip(directions, levels, strict=True)}

    def _lacking(self, name: str) -> tuple[int, ...]:
        layers = {e.layer for e in self._entries.values() if e.layer is not None and e.levels.get(name, 1.0) < _LACKING}
        return tuple(sorted(layers))


def _name(first: int, last: int) -> str:
    return f"{first}:{last}"
