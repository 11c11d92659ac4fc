"""A small decoder in the names and layouts of several formats, laid anew by numpy alone.

The order of rotary rows is that of llama.cpp's convert_hf_to_gguf.py (`permute`), of Meta's files and of litgpt's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from models import Arrays

D, FF, V, LAYERS, HEADS, PAIRS, HEAD = 32, 48, 40, 3, 4, 2, 8
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": D, "intermediate_size": FF,
    "num_attention_heads": HEADS, "num_key_value_heads": PAIRS, "num_hidden_layers": LAYERS, "vocab_size": V,
}  # fmt: skip
BLOCK: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (D, D), "self_attn.k_proj": (PAIRS * HEAD, D), "self_attn.v_proj": (PAIRS * HEAD, D),
    "self_attn.o_proj": (D, D), "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "mlp.down_proj": (D, FF),
    "input_layernorm": (D,), "post_attention_layernorm": (D,),
}  # fmt: skip
META = {
    "model.embed_tokens": "tok_embeddings", "model.": "", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "lm_head": "output",
}  # fmt: skip
GGUF = {
    "model.embed_tokens": "token_embd", "model.layers": "blk", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "model.norm": "output_norm",
    "lm_head": "output",
}  # fmt: skip
LITGPT = {
    "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h", "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.fc_1", "mlp.up_proj": "mlp.fc_2", "mlp.down_proj": "mlp.proj",
    "input_layernorm": "norm_1", "post_attention_layernorm": "norm_2", "model.norm": "transformer.ln_f",
}  # fmt: skip


def decoder(*, biased: bool = False, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D), "lm_head.weight": (V, D)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in BLOCK.items()}
    if biased:
        shapes |= {
            f"model.layers.{i}.self_attn.{x}_proj.bias": BLOCK[f"self_attn.{x}_proj"][:1]
            for i in range(LAYERS)
            for x in "qkv"
        }
    shapes["model.norm.weight"] = (D,)
    return {n: (rng.standard_normal(s) * 0.05 + (len(s) == 1)).astype("f4") for n, s in shapes.items()}


def renamed(state: dict[str, Any], words: dict[str, str]) -> dict[str, Any]:
    for old, new in words.items():
        state = {name.replace(old, new): value for name, value in state.items()}
    return state


def to_pairs(w: Any) -> Any:
    """Row i of a head and row i + d/2 become rows 2i and 2i + 1."""
    heads = len(w) // HEAD
    order = [h * HEAD + half * (HEAD // 2) + i for h in range(heads) for i in range(HEAD // 2) for half in (0, 1)]
    return w[order]


def in_pairs(state: Arrays) -> Arrays:
    return {n: to_pairs(w) if n.split(".")[-2] in ("q_proj", "k_proj") else w for n, w in state.items()}


def meta(state: Arrays) -> dict[str, Any]:
    return renamed(in_pairs(state), META)


def gguf_names(state: Arrays) -> dict[str, Any]:
    return renamed(in_pairs(state), GGUF)


def litgpt(state: Arrays, *, grouped: bool) -> dict[str, Any]:
    """q, k and v in one: one after another, or group by group as in the files of 2023."""
    result = dict(state)
    for i in range(LAYERS):
        for leaf in ("weight", "bias"):
            names = [f"model.layers.{i}.self_attn.{x}_proj.{leaf}" for x in "qkv"]
            if names[0] not in state:
                continue
            q, k, v = (result.pop(name) for name in names)
            if grouped:
                share = HEADS // PAIRS * HEAD
                parts = [
                    x
                    for g in range(PAIRS)
                    for x in (q[g * share :][:share], k[g * HEAD :][:HEAD], v[g * HEAD :][:HEAD])
                ]
            else:
                parts = [q, k, v]
            result[f"model.layers.{i}.attn.{'attn' if grouped else 'qkv'}.{leaf}"] = np.concatenate(parts)
    return renamed(result, LITGPT)
