"""Faults that make a model incomplete or contradict its configuration, planted into names, shapes and config.json."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Fault = Callable[[Shapes, dict[str, Any], random.Random], bool]
"""Changes names, shapes and configuration; False where the architecture has no place for it."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.(\d+)\.")
PLANTED: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 160,
              "num_hidden_layers": 12, "vocab_size": 320},
    "qwen3_moe": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "head_dim": 16,
                  "intermediate_size": 160, "moe_intermediate_size": 48, "num_experts": 8, "num_hidden_layers": 12,
                  "vocab_size": 320},
    "mixtral": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "intermediate_size": 160,
                "num_local_experts": 8, "num_hidden_layers": 2, "vocab_size": 320},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 12, "vocab_size": 320, "n_positions": 128},
    "bert": {"num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 12,
             "vocab_size": 320},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 160, "num_heads": 4, "num_layers": 12, "vocab_size": 320},
    "gemma2": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "head_dim": 16,
               "intermediate_size": 160, "num_hidden_layers": 12, "vocab_size": 320},
}  # fmt: skip
"""Architectures with sizes that leave room for each fault."""
_CLASSES = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration", "gpt2": "GPT2LMHeadModel"}


def small(kind: str, device: str = "meta") -> Any:
    """A small model of one of these architectures."""
    import torch
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    configuration = CONFIG_MAPPING[kind]
    name = _CLASSES.get(kind)
    model_class = getattr(transformers, name) if name else MODEL_FOR_CAUSAL_LM_MAPPING[configuration]
    with torch.device(device):
        return model_class._from_config(configuration(**PLANTED[kind]))


def _drop(shapes: Shapes, pattern: str, rng: random.Random, *, all_of_them: bool = False) -> bool:
    names = [name for name in shapes if re.search(pattern, name)]
    for name in names if all_of_them else names and [rng.choice(names)]:
        del shapes[name]
    return bool(names)


def no_embedding(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """The token embedding is not there, nor what is tied to it."""
    return _drop(shapes, r"(embed_tokens|wte|word_embeddings|shared)\.weight$", rng, all_of_them=True)


def one_norm(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """Leave out a norm gain of a layer."""
    return _drop(shapes, r"\.\d+\..*(norm|ln_\d|LayerNorm)\w*\.weight$", rng)


def final_norm(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """The norm after the last layer is not there."""
    return _drop(shapes, r"^(model\.norm|transformer\.ln_f|ln_f|\w+\.final_layer_norm)\.weight$", rng)


def one_matrix(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """Leave out a matrix of a layer."""
    name = rng.choice(_matrices(shapes))
    del shapes[name]
    return True


def transposed(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """A matrix of one layer is transposed."""
    name = rng.choice([n for n in _matrices(shapes) if shapes[n][0] != shapes[n][1]])
    shapes[name] = shapes[name][::-1]
    return True


def other_width(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """A matrix of one layer has eight rows more."""
    name = rng.choice(_matrices(shapes))
    shapes[name] = (shapes[name][0] + 8, *shapes[name][1:])
    return True


def every_up(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """No layer has the matrix beside gate and down."""
    return _drop(shapes, r"(up_proj|wi_1|experts\.\d+\.w3)\.weight$", rng, all_of_them=True)


def every_query(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """No layer has its queries, or the fused matrix with them."""
    return _drop(shapes, r"(q_proj|c_attn|self\.query|SelfAttention\.q)\.weight$", rng, all_of_them=True)


def last_expert(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """Every layer has one expert fewer than its router has rows."""
    return _drop(shapes, r"experts\.7\.", rng, all_of_them=True)


def one_layer(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
    """The last layer is not there."""
    last = max(int(match[1]) for name in shapes if (match := _LAYER.search(name)))
    return _drop(shapes, rf"(?:^|\.)(layers?|h|block)\.{last}\.", rng, all_of_them=True)


def _sized(*keys: str, factor: int = 2) -> Fault:
    def change(shapes: Shapes, config: dict[str, Any], rng: random.Random) -> bool:
        """The configuration gives another size."""
        key = next((key for key in keys if isinstance(config.get(key), int)), None)
        if key is not None:
            config[key] *= factor
        return key is not None

    return change


def _matrices(shapes: Shapes) -> list[str]:
    return [
        name for name, shape in shapes.items() if len(shape) == 2 and _LAYER.search(name) and "relative" not in name
    ]


FAULTS: dict[str, Fault] = {
    "no embedding": no_embedding, "one norm": one_norm, "final norm": final_norm, "one matrix": one_matrix,
    "transposed": transposed, "other width": other_width, "every up": every_up, "every query": every_query,
    "last expert": last_expert, "one layer": one_layer, "hidden_size": _sized("hidden_size", "n_embd", "d_model"),
    "intermediate_size": _sized("moe_intermediate_size", "intermediate_size", "d_ff"),
    "kv heads": _sized("num_key_value_heads"), "head_dim": _sized("head_dim", "d_kv"),
    "experts": _sized("num_experts", "num_local_experts"), "vocabulary": _sized("vocab_size"),
    "layers": _sized("num_hidden_layers", "n_layer", "num_layers"),
}  # fmt: skip
