"""Settings of config.json that decide outputs: two models that state different ones do not compute the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isclose
from typing import cast

from specdiag.architecture import config as settings

_KEYS: Mapping[str, tuple[str, ...]] = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "rope_type": ("rope_type", "type"),
    "rope_factor": ("factor",),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
    "activation": (
        "hidden_act", "activation_function", "hidden_activation", "activation", "mlp_hidden_act", "feed_forward_proj",
    ),
    "eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "query_pre_attn_scalar": ("query_pre_attn_scalar",),
    "attention_multiplier": ("attention_multiplier",),
    "residual_multiplier": ("residual_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "scale_attn_weights": ("scale_attn_weights",),
    "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx",),
    "position_embedding_type": ("position_embedding_type",),
    "use_parallel_residual": ("use_parallel_residual",),
    "sliding_window": ("sliding_window",),
    "experts of a token": ("num_experts_per_tok", "num_experts_per_token"),
    "norm_topk_prob": ("norm_topk_prob",),
}  # fmt: skip
"""Keys under which configs hold a setting, by its name in a sentence."""
_TABLES = ("rope_parameters", "rope_scaling")
_SAME = {"swish": "silu", "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu_accurate": "gelu_new"}
"""Names of one activation, but for rounding."""
_CLOSE = 1e-5


def different_settings(a: Mapping[str, object], b: Mapping[str, object]) -> Iterator[str]:
    """List the settings that both models state and that differ.

    Args:
        a: config.json of a model.
        b: of another.
    """
    first, second = (settings.sections(config, None) for config in (a, b))
    for name, keys in _KEYS.items():
        of_a, of_b = _value(first, keys), _value(second, keys)
        if of_a is not None and of_b is not None and not _is_equal(of_a, of_b):
            yield f"{name} {of_a} and {of_b}"


def _value(chain: Sequence[Mapping[str, object]], keys: Sequence[str]) -> str | float | bool | None:
    for part in chain:
        inner = (part.get(name) for name in _TABLES)
        for table in (part, *(cast("Mapping[str, object]", t) for t in inner if isinstance(t, Mapping))):
            for key in keys:
                value = table.get(key)
                if isinstance(value, str | float | int):
                    return _SAME.get(value, value) if isinstance(value, str) else value
    return None


def _is_equal(a: str | float | bool, b: str | float | bool) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return isclose(a, b, rel_tol=_CLOSE)
