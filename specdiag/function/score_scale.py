"""The scale of attention scores and the frequencies of rotary positions, as a config says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from specdiag.architecture.wiring import UnknownWiring
from specdiag.function.arrays import Array

N_POSITIONS = 512
"""Distances at which scores are bounded one by one lie below this."""
OFFSETS: tuple[int, ...] = tuple(
    -offset for offset in (*range(16), *sorted({round(16 * 32 ** (i / 29)) for i in range(29)}), N_POSITIONS - 1)
)
"""Those distances, of the key less the query: attention of these models looks back."""
_PLAIN = ("default", "linear", "llama3", "dynamic")
"""Kinds of rotary positions that leave the length of a vector as it is; yarn and longrope do not."""

_BIASED = ("t5", "mt5", "umt5")
_UNSAID = {"gemma2", "gemma3", "granite"}
"""Architectures of GGUF files whose scale is not 1/sqrt(h) in every model."""

Chain = Sequence[Mapping[str, object]]


def score_scale(chain: Chain, head_dim: int, layer: int | None) -> float:
    """Find the factor of the scores of a head, 1/sqrt(h) where the config says nothing else.

    Args:
        chain: sections of config.json, the most specific first.
        head_dim: h.
        layer: index of the block.

    Raises:
        UnknownWiring: the kind of rotary positions scales the scores in a way that is not known here.
    """
    types = [str(part.get("model_type")) for part in chain if "model_type" in part]
    if (types and types[0] in _BIASED) or _first(chain, "position_embedding_type") not in (None, "absolute", "rope"):
        raise UnknownWiring("learnt position biases are added to its scores")
    names = _first(chain, "architectures")
    if not types and isinstance(names, list) and not _UNSAID.isdisjoint(map(str, cast("list[object]", names))):
        raise UnknownWiring("the GGUF file does not say the scale of its scores")
    kind = _rope_kind(chain)
    if kind not in _PLAIN:
        raise UnknownWiring(f"rotary positions of type {kind} scale its scores")
    scalar = _number(chain, "query_pre_attn_scalar")
    scale = _number(chain, "attention_multiplier") or (scalar or head_dim) ** -0.5
    if _first(chain, "scale_attn_weights") is False:
        scale = 1.0
    if _first(chain, "scale_attn_by_inverse_layer_idx") is True and layer is not None:
        scale /= layer + 1
    return scale


def frequencies(chain: Chain, n_rotated: int) -> Array | None:
    """Compute the frequency of each rotary plane; None where the config does not say it.

    Args:
        chain: sections of config.json, the most specific first.
        n_rotated: rows of a head that are rotated.

    Returns:
        Shape [n_rotated / 2], radians a position.
    """
    theta = _number(chain, "rope_theta") or _number(chain, "rotary_emb_base")
    if theta is None or _rope_kind(chain) != "default":
        return None
    return theta ** (-2 * np.arange(n_rotated // 2) / n_rotated)


def _rope_kind(chain: Chain) -> str:
    for key in ("rope_parameters", "rope_scaling"):
        table = _first(chain, key)
        if isinstance(table, Mapping):
            inner = cast("Mapping[str, object]", table)
            nested = [cast("Mapping[str, object]", part) for part in inner.values() if isinstance(part, Mapping)]
            kinds = {str(part.get("rope_type", part.get("type", "default"))) for part in (inner, *nested)}
            return next((kind for kind in sorted(kinds) if kind not in _PLAIN), min(kinds))
    return "default"


def _number(chain: Chain, key: str) -> float | None:
    for part in chain:
        inner = part.get("rope_parameters")
        tables = (part, cast("Mapping[str, object]", inner)) if isinstance(inner, Mapping) else (part,)
        for table in tables:
            value = table.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
    return None


def _first(chain: Chain, key: str) -> object:
    return next((part[key] for part in chain if key in part), None)
