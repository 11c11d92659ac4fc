"""Norm gains and their biases under the names of several formats: Hugging Face, GGUF, Meta, litgpt, GPT-2."""

from __future__ import annotations

import re
from collections.abc import Collection

_INDEX = re.compile(r"(?:^|\.)(\d{1,5})\.")
_IN_BLOCK: dict[str, tuple[str, ...]] = {
    "before attention": ("input_layernorm", "attn_norm", "attention_norm", "norm_1", "ln_1"),
    "before mlp": ("pre_feedforward_layernorm", "ffn_norm", "norm_2", "ln_2"),
    "after attention": ("post_attention_norm", "post_self_attn_layernorm"),
    "after mlp": ("post_feedforward_layernorm", "post_ffw_norm", "post_mlp_norm", "post_mlp_layernorm"),
    "queries": ("q_norm", "attn_q_norm", "norm_q", "q_layernorm"),
    "keys": ("k_norm", "attn_k_norm", "norm_k", "k_layernorm"),
}
_AT_THE_END = ("norm", "output_norm", "ln_f", "final_layernorm", "final_layer_norm")
_OPEN = "post_attention_layernorm"
"""In front of the MLP, or behind attention where the MLP has norms of its own on both sides."""
_MEANINGS = {word: meaning for meaning, words in _IN_BLOCK.items() for word in words}


def meaning(name: str, names: Collection[str]) -> tuple[str, int | None, str] | None:
    """Say which norm of a decoder a tensor belongs to.

    Args:
        name: of a tensor.
        names: of all tensors of its model that are not matched by their names.

    Returns:
        The place of the norm, its layer, and `weight` or `bias`; None where the name is no norm's.
    """
    path, _, leaf = name.rpartition(".")
    word = path.rpartition(".")[2]
    index = _INDEX.search(name)
    if leaf not in ("weight", "bias"):
        return None
    if index is None:
        return ("at the end", None, leaf) if word in _AT_THE_END else None
    if word == _OPEN:
        sandwich = any("feedforward_layernorm" in other for other in names)
        return ("after attention" if sandwich else "before mlp", int(index[1]), leaf)
    return (_MEANINGS[word], int(index[1]), leaf) if word in _MEANINGS else None
