"""Looking up what config.json says about one piece of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

_PIECES = {
    "vision": ("vision_config", "vit_config", "image_config"),
    "audio": ("audio_config", "speech_config", "audio_encoder_config"),
    "text": ("text_config", "language_config", "llm_config", "thinker_config"),
}
_INNER = ("attn_config", "ffn_config")

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num")


def speaking_of(config: Mapping[str, Any], component: str | None) -> list[Mapping[str, Any]]:
    """The parts of `config` that speak of `component`, the most specific first.

    What belongs to no named piece is text where the config has a part for text.
    """
    own = _PIECES.get(component or "text", ())
    found = [config[key] for key in own if _is_table(config.get(key))]
    deeper = [part[key] for part in found for key in own if _is_table(part.get(key))]
    chain: list[Mapping[str, Any]] = [*deeper, *found, config]
    return [*chain, *(part[key] for part in chain for key in _INNER if _is_table(part.get(key)))]


def number(chain: Iterable[Mapping[str, Any]], keys: Iterable[str]) -> int | None:
    """The first positive integer under one of `keys`, the first part that has any deciding."""
    wanted = tuple(keys)
    for part in chain:
        for key in wanted:
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def model_types(chain: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every `model_type` of the parts."""
    return [kind for part in chain if isinstance(kind := part.get("model_type"), str)]


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and bool(cast("Mapping[str, Any]", value))
