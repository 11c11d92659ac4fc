"""Looking up what config.json says about one piece of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

_PIECES = {
    "vision": ("vision_config", "vit_config", "image_config"),
    "audio": ("audio_config", "speech_config", "audio_encoder_config"),
    "text": ("text_config", "language_config", "llm_config", "thinker_config"),
}
_INNER = ("attn_config", "ffn_config")

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KEY_VALUE_HEADS = (
    "num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num",
    "num_query_groups", "n_query_groups", "n_kv_heads",
)  # fmt: skip


def sections(config: Mapping[str, object], component: str | None) -> list[Mapping[str, object]]:
    """Find the sections of config.json that describe a piece of the model.

    Args:
        config: the content of config.json.
        component: `vision`, `audio` or `text`; None counts as text. Any other piece has no section of its own.

    Returns:
        The sections, the most specific first; `config` itself is among them.
    """
    keys = _PIECES.get(component or "text", ())
    outer = _inside(config, keys)
    chain = [*(inner for section in outer for inner in _inside(section, keys)), *outer, config]
    return [*chain, *(inner for section in chain for inner in _inside(section, _INNER))]


def number(chain: Iterable[Mapping[str, object]], keys: Iterable[str]) -> int | None:
    """Find the first positive integer under one of several keys, section by section.

    Args:
        chain: sections of config.json, the most specific first.
        keys: the names in use, in the order in which a section is searched.

    Returns:
        None where no section has one.
    """
    names = tuple(keys)
    for part in chain:
        for key in names:
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def model_types(chain: Iterable[Mapping[str, object]]) -> list[str]:
    """List the `model_type` of every section that has one."""
    return [kind for part in chain if isinstance(kind := part.get("model_type"), str)]


def _inside(section: Mapping[str, object], keys: Iterable[str]) -> list[Mapping[str, object]]:
    """List the sections under `keys` that exist and are not empty."""
    values = (section.get(key) for key in keys)
    return [cast("Mapping[str, object]", value) for value in values if isinstance(value, Mapping) and value]
