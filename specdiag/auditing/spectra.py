"""Checks of spectra against those of other layers, of random matrices, and of the permuted entries."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import median

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_MIN_SIDE = 50
"""Smaller spectra scatter too much to be compared with a limit law. A choice."""
_SPREAD = 0.1
"""Least spread of ln sigma_max that is taken for natural. A choice: layers that agree to 10 % are not told apart."""
_MAD = 1.4826
"""Median absolute deviation to standard deviation, for a normal distribution."""
_LIKE_NOISE = 0.1
"""How far the stable rank of a random matrix may lie from that of noise, relative. A choice."""


def traps(subject: Subject) -> Iterator[Observation]:
    """Compare the spectral norm of the permuted entries, where an eigenvalue sticks out, with that of equal noise.

    Args:
        subject: the subject of the audit.

    Yields:
        The ratio of the two norms.
    """
    for r in subject.report:
        if subject.is_of_base(r):
            continue
        if r.rand_spikes and r.rand_spectral_norm and r.frobenius_norm and min(r.rows, r.cols) >= _MIN_SIDE:
            noise = r.frobenius_norm / (r.rows * r.cols * r.n_slices) ** 0.5 * (r.rows**0.5 + r.cols**0.5)
            yield Observation("trap", r.key, r.rand_spectral_norm / noise)


def norm_outliers(subject: Subject) -> Iterator[Observation]:
    """Find spectral norms unlike those of other layers, among matrices of one role and shape.

    Args:
        subject: the subject of the audit.

    Yields:
        How many robust deviations ln sigma_max lies from its median.
    """
    least = subject.checks["norm_outlier"].at_least or 2
    for group in (group for group in _like(subject) if len(group) >= least):
        middle = median(log for _, log in group)
        spread = max(_SPREAD, _MAD * median(abs(log - middle) for _, log in group))
        for r, log in group:
            if subject.is_of_base(r):
                continue
            yield Observation("norm_outlier", r.key, abs(log - middle) / spread)


def few_norms(subject: Subject) -> Iterator[Observation]:
    """Compare the spectral norms of matrices of one role and shape that are too few for a median.

    Args:
        subject: the subject of the audit.

    Yields:
        The factor between the largest or smallest norm and the next one, for the one that stands further apart.
    """
    least = subject.checks["norm_outlier"].at_least or 2
    for group in (group for group in _like(subject) if 2 <= len(group) < least):
        logs = sorted(group, key=lambda entry: entry[1])
        low, high = logs[1][1] - logs[0][1], logs[-1][1] - logs[-2][1]
        r, gap = (logs[0][0], low) if low > high else (logs[-1][0], high)
        if not subject.is_of_base(r):
            yield Observation("norms_differ", r.key, math.exp(gap))


def sizes(subject: Subject) -> Iterator[Observation]:
    """Find matrices that are far larger than those of networks whose numbers stay within their types.

    Where values are saturated, `saturated` tells it.

    Args:
        subject: the subject of the audit.

    Yields:
        The spectral norm of each: of every matrix for `huge`, else of those of layers for `large`.
    """
    huge = subject.checks["huge"]
    limit = huge.threshold if huge.enabled and huge.threshold is not None else math.inf
    for r in subject.report:
        if r.spectral_norm and not r.n_saturated and not subject.is_of_base(r):
            yield Observation("huge", r.key, r.spectral_norm)
            if r.layer is not None and r.spectral_norm <= limit:
                yield Observation("large", r.key, r.spectral_norm)


def random(subject: Subject) -> Iterator[Observation]:
    """Find matrices whose spectrum is that of noise.

    Args:
        subject: the subject of the audit.

    Yields:
        The |z| of each; or, where most matrices of attention and MLP are noise, their share in the whole model.
    """
    random, untrained = subject.checks["random"], subject.checks["untrained"]
    least = random.at_least or 0
    measured = [
        r
        for r in subject.report
        if None not in (r.z, r.mp_spikes, r.stable_rank) and min(r.rows, r.cols) >= least and not subject.is_of_base(r)
    ]
    like_noise = [(r, abs(r.z or 0.0)) for r in measured if _is_like_noise(r)]
    noise = [(r, z) for r, z in like_noise if z < (random.threshold or 0.0)]
    blocks = [r for r in measured if r.family in ("attention", "mlp")]
    noisy = {r.key for r, _ in noise}
    share = sum(r.key in noisy for r in blocks) / len(blocks) if blocks else 0.0
    if untrained.enabled and untrained.threshold is not None and share > untrained.threshold:
        yield Observation("untrained", None, share)
    else:
        yield from (Observation("random", r.key, z) for r, z in like_noise)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    measured = [r for r in subject.report if r.z is not None]
    if not measured and any(r.alpha is not None for r in subject.report):
        return dict.fromkeys(("random", "untrained"), "needs alpha by hill at tail fraction 0.5")
    least = subject.checks["random"].at_least or 0
    if not any(min(r.rows, r.cols) >= least for r in measured):
        return dict.fromkeys(("random", "untrained"), f"no matrix has {least} eigenvalues")
    return {}


def _like(subject: Subject) -> Iterable[list[tuple[ModuleRecord, float]]]:
    """Group the matrices of layers by role and shape, each with the logarithm of its spectral norm."""
    groups: dict[tuple[object, ...], list[tuple[ModuleRecord, float]]] = defaultdict(list)
    for r in subject.report:
        if r.layer is not None and r.spectral_norm:
            kind = (r.component, r.family, r.role, r.cross_attention, r.rows, r.cols, r.n_slices)
            groups[kind].append((r, math.log(r.spectral_norm)))
    return groups.values()


def _is_like_noise(r: ModuleRecord) -> bool:
    """Tell whether a matrix has no eigenvalue beyond the edge of the noise, and the stable rank of noise."""
    noise = r.rows * r.cols / (r.rows**0.5 + r.cols**0.5) ** 2
    return not r.mp_spikes and abs((r.stable_rank or 0.0) / noise - 1) < _LIKE_NOISE
