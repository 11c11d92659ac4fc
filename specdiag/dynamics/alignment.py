"""Measured directions of updates: do they point along the weights more than momentum alone explains?

Predicted norms assume that they do not. Random steps with momentum repeat each other, and so point a little along the
weights that they have built: for an update of length |s| the cosine is K |s|/|W|, K = sum_k rho_k, and the squared norm
grows by R = 1 + 2K times |s|^2 (reconstructed, as in `steady`). A larger cosine is signal: a falling loss, or an output
layer whose logits grow (arXiv 2512.08217, appendix D). Its share of the growth says how far the predicted balance is
off.
"""

from __future__ import annotations

import math
from statistics import fmean

from specdiag.dynamics.norm_log import NormedModule, NormLog
from specdiag.dynamics.steady import correlations
from specdiag.dynamics.updates import Update, update_of
from specdiag.records import Record

SHARE = 0.5
"""A module is flagged beyond this share. A choice: the norm of the balance is then off by a quarter."""
_FULL = 5
"""Multiple of 1/(1 - memory), in steps, after which the momentum counts as full: e^-5 of it, 0.7 %, is not."""
FEWEST = 5
"""Fewest logged steps for a flag. A choice."""


class Alignment(Record, frozen=True, kw_only=True):
    """Mean direction of a module's updates, over the logged steps after its momentum has filled."""

    module: str
    n: int
    """Steps with a cosine."""
    cosine: float
    """Mean cosine between update and weights; positive lengthens them."""
    cosine_of_momentum: float
    """Cosine that momentum alone gives on random gradients."""
    share: float | None
    """Growth of the squared norm by the rest of the cosine, over its growth by random steps; -1 would cancel it."""
    flagged: bool
    """True where the size of the share exceeds `SHARE`, and the mean rest twice its standard error."""


def alignments(log: NormLog) -> list[Alignment]:
    """Compute the alignment of each module with decoupled decay, whose update is logged without the decay.

    Args:
        log: of a norm watch, with `cos_update` and `update_ratio`.

    Returns:
        In the order of the log's modules, without those that have no cosine after their momentum has filled.
    """
    cosines, ratios = log.series("cos_update"), log.series("update_ratio")
    measured: list[Alignment] = []
    for module in log.modules:
        ratio = dict(ratios.get(module.key, ()))
        full = _first_full_step(module)
        pairs = [(c, ratio[step]) for step, c in cosines.get(module.key, ()) if step in ratio and step >= full]
        if pairs and module.decay == "decoupled":
            measured.append(_alignment(module, pairs))
    return measured


def _alignment(module: NormedModule, pairs: list[tuple[float, float]]) -> Alignment:
    repeats = _repeats(module)
    own = 0.0 if module.optimizer == "adamw-renormalized" else 1.0
    excess = [(cosine - repeats * ratio) * ratio for cosine, ratio in pairs]
    mean = fmean(excess)
    walked = (own + 2 * repeats) * fmean(ratio * ratio for _, ratio in pairs)
    share = 2 * mean / walked if walked else None
    error = math.sqrt(sum((e - mean) ** 2 for e in excess) / max(1, len(excess) - 1) / len(excess))
    return Alignment(
        module=module.key,
        n=len(pairs),
        cosine=fmean(cosine for cosine, _ in pairs),
        cosine_of_momentum=repeats * fmean(ratio for _, ratio in pairs),
        share=share,
        flagged=len(pairs) >= FEWEST and share is not None and abs(share) > SHARE and abs(mean) > 2 * error,
    )


def _repeats(module: NormedModule) -> float:
    """K; 0 where the optimizer is not known."""
    update = _update(module)
    return 0.0 if update is None else sum(weight * ratio / (1 - ratio) for weight, ratio in correlations(update))


def _first_full_step(module: NormedModule) -> float:
    """Step from which on the momentum is full. Before it updates repeat each other less, and Adam's are longer."""
    update = _update(module)
    return 0.0 if update is None else _FULL / (1 - update.memory)


def _update(module: NormedModule) -> Update | None:
    if module.optimizer is None:
        return None
    return update_of(module.optimizer, (module.rows, module.cols), momentum=module.momentum, betas=module.betas)
