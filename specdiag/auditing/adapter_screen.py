"""Measurements of an adapter's updates: its factors, the energy of their product, and its effect on the base's weights.

Updates are read one at a time, with a base its weight in float32 three times: before, after, and with noise instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from specdiag.checkpoint.adapters.update import Applied
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError
from specdiag.spectra import intruders
from specdiag.spectra.float_types import FLOAT_TYPES
from specdiag.spectra.random_factors import energy_share, random_shares

_LARGEST = 1 << 28
"""Values of the largest weight whose singular vectors are compared."""
_MOST_RANK = 512
"""Rank up to which random factors are simulated."""
_EDGE = 20.0
"""Initial values reach the edge of their range to within this many mean distances, but for once in exp(20)."""
_SPREAD = 5.0
"""Standard deviations by which the mean square of initial values may differ from that of their distribution."""
_UNIFORM_SD = 2 / 5**0.5
"""Standard deviation of the mean square of n uniform values, times sqrt(n), over the mean square."""


@dataclass(frozen=True, slots=True)
class OfBase:
    """An update beside the weight that it changes.

    Attributes:
        ratio: spectral norm of the update over that of the weight.
        intruders: leading singular vectors of the sum that the weight has not.
        expected: the same with dense noise of the same norm in place of the update.
    """

    ratio: float
    intruders: int
    expected: int


@dataclass(frozen=True, slots=True)
class Screen:
    """The measurements of an update.

    Attributes:
        name: the parameter.
        module: its module, as the adapter names it.
        zero: the factors that are all zero, `A` and `B`.
        is_zero: whether the update is zero.
        is_initial: whether A cannot be told from PEFT's initialisation.
        share: share of its energy in the first direction; None of rank 1, and of an update of zero.
        distance: of that share from random factors, in their standard deviations; None where it is not simulated.
        rank: r.
        of_base: its effect on the base's weight; None without a base, and where that was not measured.
    """

    name: str
    module: str
    zero: tuple[str, ...]
    is_zero: bool
    is_initial: bool
    rank: int
    share: float | None = None
    distance: float | None = None
    of_base: OfBase | None = None


def screen(updates: tuple[Applied, ...], embeddings: Set[str], *, with_base: bool) -> Iterator[Screen]:
    """Measure the updates of an adapter.

    Args:
        updates: each with the weight that it changes, where there is a base.
        embeddings: parameters that are tables, whose singular vectors are not compared.
        with_base: compare updates with their weights.

    Yields:
        A record for each update of finite values that can be read; audits report the others by their rows.
    """
    for applied in updates:
        try:
            measured = _measured(applied, compares=with_base and applied.name not in embeddings)
        except (SourceError, OSError):
            continue
        if measured is not None:
            yield measured


def _measured(applied: Applied, *, compares: bool) -> Screen | None:
    update = applied.update
    down, up = _values(update.down), _values(update.up)
    core = update.core()[0]
    if not np.isfinite(core).all():
        return None
    sigma = np.linalg.svd(core, compute_uv=False).astype(np.float64)
    is_zero = sigma[0] == 0
    share, distance = None, None
    if not is_zero and len(sigma) > 1:
        share = energy_share(sigma)
    if share is not None and update.rank <= _MOST_RANK:
        mean, sd = random_shares(up.shape[0], down.shape[1], update.rank)
        distance = abs(share - mean) / sd
    return Screen(
        name=applied.name,
        module=update.module,
        zero=tuple(name for name, values in (("A", down), ("B", up)) if not values.any()),
        is_zero=is_zero,
        is_initial=_is_initial(down, FLOAT_TYPES[update.down.values_dtype].eps),
        rank=update.rank,
        share=share,
        distance=distance,
        of_base=_beside(applied) if compares and not is_zero else None,
    )


def _values(factor: StoredTensor) -> NDArray[np.float32]:
    raw = factor.read(None)
    wide = FLOAT_TYPES[factor.values_dtype].widen(raw, np.dtype(np.float32))
    return wide.reshape(raw.shape[0], prod(raw.shape[1:]))


def _is_initial(down: NDArray[np.float32], eps: float) -> bool:
    """Tell whether A is uniform within 1/sqrt(inputs): `kaiming_uniform_` of a = sqrt 5, where PEFT and kohya begin.

    One step of training takes some of the values at the edge beyond it.
    """
    bound = down.shape[1] ** -0.5
    largest = float(np.abs(down).max())
    if not bound * (1 - _EDGE / down.size) <= largest <= bound * (1 + eps):
        return False
    mean_square = float(np.mean(np.square(down, dtype=np.float64)))
    return abs(3 * mean_square / bound**2 - 1) <= _SPREAD * _UNIFORM_SD / down.size**0.5


def _beside(applied: Applied) -> OfBase | None:
    """Compare the weight after an update with that before it, and with what dense noise of the same norm would do."""
    weight = applied.weight
    if weight is None or prod(weight.shape) > _LARGEST or min(weight.shape[0], prod(weight.shape[1:])) < 4:
        return None
    raw, kind = weight.read(None), FLOAT_TYPES[weight.values_dtype]
    before = kind.widen(raw, np.dtype(np.float32)).reshape(raw.shape[0], -1)
    after = applied.update.added_to(raw, kind).reshape(before.shape).astype(np.float32)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return None
    change = after - before
    values, vectors = intruders.leading(before, 2 * intruders.LEADING)
    of_change, _ = intruders.leading(change, 1)
    if not (len(values) and len(of_change)) or values[0] == 0:
        return None
    size = float(np.linalg.norm(change))
    found = intruders.count(after, before, vectors)
    expected = 0
    if found:
        noise = np.random.default_rng(0).standard_normal(before.shape, dtype=np.float32)
        noise *= np.float32(size / float(np.linalg.norm(noise)))
        noise += before
        expected = intruders.count(noise, before, vectors)
    return OfBase(float(of_change[0] / values[0]), found, expected)
