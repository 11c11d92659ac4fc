"""Small random models of every architecture whose wiring is known, and changes of form that must change no output.

Nothing here is shared with the code under test but the entry of the wiring, which says what may be changed: a wrong entry
allows what changes the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

WIDTH, HEADS, GROUPS, HIDDEN, TOKENS = 48, 4, 2, 80, 67
_PLAIN = {
    "vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = _PLAIN | {"num_key_value_heads": GROUPS, "head_dim": 16}
_NARROW = _PLAIN | {"num_key_value_heads": GROUPS}
_EXACT = {"rms_norm_eps": 1e-14}
_GPT = {"vocab_size": TOKENS, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_inner": HIDDEN, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_IMAGE = {"image_size": 16, "patch_size": 4}
_WHISPER = {
    "vocab_size": TOKENS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN, "num_mel_bins": 8,
    "max_source_positions": 16, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1,
}  # fmt: skip

KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _NARROW),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _NARROW),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        _GROUPED | {"num_local_experts": 4, "experts_implementation": "eager"},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | _EXACT),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GROUPED | _EXACT),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GROUPED | _EXACT),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _NARROW | _EXACT),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", _GPT | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _PLAIN | {"rotary_pct": 0.5}),
    "cohere": ("CohereForCausalLM", "CohereConfig", _NARROW),
    "bert": ("BertForMaskedLM", "BertConfig", _PLAIN),
    "vit": ("ViTForImageClassification", "ViTConfig", {k: v for k, v in _PLAIN.items() if "_token_" not in k} | _IMAGE),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _WHISPER),
}
"""Class, config and its arguments by model_type."""


def random_model(kind: str, **others: Any) -> Any:
    """Build a model in float64, its parameters drawn in the order of their names."""
    model_class, config_class, arguments = KINDS[kind]
    config = getattr(transformers, config_class)(**arguments | others, attn_implementation="eager")
    model = getattr(transformers, model_class)(config).double().eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = 0.2 * rng.standard_normal(tuple(parameter.shape))
            is_gain = parameter.ndim == 1 and name.endswith("weight") and not kind.startswith("gemma")
            parameter.copy_(torch.from_numpy(values + is_gain))
    return model


def logits(kind: str, model: Any) -> Tensor:
    """Run the model on fixed inputs."""
    rng = np.random.default_rng(1)
    tokens = torch.from_numpy(rng.integers(3, TOKENS, (2, 12)))
    with torch.no_grad():
        if kind == "vit":
            return model(torch.from_numpy(rng.standard_normal((2, 3, 16, 16)))).logits
        if kind == "whisper":
            sound = torch.from_numpy(rng.standard_normal((2, 8, 32)))
            return model(input_features=sound, decoder_input_ids=tokens).logits
        return model(tokens).logits


@dataclass
class Layer:
    """The parameters of a block as views: what is changed here changes the model."""

    q: Tensor  # [H, h, d]
    k: Tensor  # [groups, h, d]
    v: Tensor
    o: Tensor  # [d, H, h]
    up: Tensor  # [experts, m, d]
    down: Tensor  # [experts, d, m]
    gate: Tensor | None = None
    router: Tensor | None = None
    biases: dict[str, Tensor] = field(default_factory=dict)  # q, k, v as their weights; o and down [d]; up [1, m]
    norms: dict[str, Any] = field(default_factory=dict)  # modules by their path in the wiring
    q_gain: Tensor | None = None
    k_gain: Tensor | None = None


def layers(kind: str, model: Any) -> list[Layer]:
    """Take the blocks of a model apart; of Whisper those of the encoder and of the decoder."""
    heads = model.config.num_attention_heads
    if kind == "whisper":
        sides = (model.model.encoder, model.model.decoder)
        return [_layer(kind, block, heads) for side in sides for block in side.layers]
    inner = {
        "gpt2": lambda: model.transformer.h, "gptj": lambda: model.transformer.h, "bert": lambda: model.bert.encoder.layer,
        "gpt_neox": lambda: model.gpt_neox.layers, "vit": lambda: model.vit.layers,
    }.get(kind, lambda: model.model.layers)  # fmt: skip
    return [_layer(kind, block, heads) for block in inner()]


def _layer(kind: str, block: Any, heads: int) -> Layer:
    linear = _ATTENTION.get(kind, _llama_attention)(block)
    weights, biases = ({k: v for k, v in part.items() if v is not None} for part in linear)
    head_dim = len(weights["q"]) // heads if weights["q"].ndim == 2 else weights["q"].shape[1]
    for name in ("q", "k", "v"):
        if weights[name].ndim == 2:
            weights[name] = weights[name].unflatten(0, (-1, head_dim))
            if name in biases:
                biases[name] = biases[name].unflatten(0, (-1, head_dim))
    weights["o"] = weights["o"].unflatten(1, (heads, head_dim))
    mlp, mlp_biases = _MLP.get(kind, _llama_mlp)(block)
    head_norms = [getattr(getattr(block, "self_attn", None), name, None) for name in ("q_norm", "k_norm")]
    return Layer(
        **weights,
        **mlp,
        biases=biases | {k: v for k, v in mlp_biases.items() if v is not None},
        norms=dict(block.named_children()),
        q_gain=None if head_norms[0] is None else head_norms[0].weight,
        k_gain=None if head_norms[1] is None else head_norms[1].weight,
    )


def _modules(**named: Any) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    return {k: m.weight for k, m in named.items()}, {k: m.bias for k, m in named.items()}


def _llama_attention(block: Any) -> Any:
    a = block.self_attn
    return _modules(q=a.q_proj, k=a.k_proj, v=a.v_proj, o=a.o_proj)


def _phi3_attention(block: Any) -> Any:
    a, n = block.self_attn, WIDTH // HEADS * GROUPS
    q, k, v = a.qkv_proj.weight.split([WIDTH, n, n])
    return {"q": q, "k": k, "v": v, "o": a.o_proj.weight}, {}


def _gpt2_attention(block: Any) -> Any:
    a = block.attn
    weights, biases = (dict(zip("qkv", values.chunk(3), strict=True)) for values in (a.c_attn.weight.T, a.c_attn.bias))
    return weights | {"o": a.c_proj.weight.T}, biases | {"o": a.c_proj.bias}


def _gptj_attention(block: Any) -> Any:
    a = block.attn
    return _modules(q=a.q_proj, k=a.k_proj, v=a.v_proj, o=a.out_proj)


def _neox_attention(block: Any) -> Any:
    a = block.attention
    weight = a.query_key_value.weight.view(HEADS, 3, -1, WIDTH)
    bias = a.query_key_value.bias.view(HEADS, 3, -1)
    weights = {name: weight[:, i] for i, name in enumerate("qkv")}
    biases = {name: bias[:, i] for i, name in enumerate("qkv")}
    return weights | {"o": a.dense.weight}, biases | {"o": a.dense.bias}


def _bert_attention(block: Any) -> Any:
    a = block.attention
    return _modules(q=a.self.query, k=a.self.key, v=a.self.value, o=a.output.dense)


def _vit_attention(block: Any) -> Any:
    a = block.attention
    return _modules(q=a.q_proj, k=a.k_proj, v=a.v_proj, o=a.o_proj)


def _whisper_attention(block: Any) -> Any:
    a = block.self_attn
    return _modules(q=a.q_proj, k=a.k_proj, v=a.v_proj, o=a.out_proj)


_ATTENTION: dict[str, Callable[[Any], Any]] = {
    "phi3": _phi3_attention, "gpt2": _gpt2_attention, "gptj": _gptj_attention, "gpt_neox": _neox_attention,
    "bert": _bert_attention, "vit": _vit_attention, "whisper": _whisper_attention,
}  # fmt: skip


def _llama_mlp(block: Any) -> Any:
    m = block.mlp
    return {"gate": m.gate_proj.weight[None], "up": m.up_proj.weight[None], "down": m.down_proj.weight[None]}, {}


def _phi3_mlp(block: Any) -> Any:
    gate, up = block.mlp.gate_up_proj.weight.split(HIDDEN)
    return {"gate": gate[None], "up": up[None], "down": block.mlp.down_proj.weight[None]}, {}


def _mixtral_mlp(block: Any) -> Any:
    experts = block.mlp.experts
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    return {"gate": gate, "up": up, "down": experts.down_proj, "router": block.mlp.gate.weight}, {}


def _two(up: Any, down: Any, *, conv1d: bool = False) -> Any:
    weights = [m.weight.T if conv1d else m.weight for m in (up, down)]
    return {"up": weights[0][None], "down": weights[1][None]}, {"up": up.bias[None], "down": down.bias}


_MLP: dict[str, Callable[[Any], Any]] = {
    "phi3": _phi3_mlp,
    "mixtral": _mixtral_mlp,
    "gpt2": lambda block: _two(block.mlp.c_fc, block.mlp.c_proj, conv1d=True),
    "gptj": lambda block: _two(block.mlp.fc_in, block.mlp.fc_out),
    "gpt_neox": lambda block: _two(block.mlp.dense_h_to_4h, block.mlp.dense_4h_to_h),
    "bert": lambda block: _two(block.intermediate.dense, block.output.dense),
    "vit": lambda block: _two(block.mlp.fc1, block.mlp.fc2),
    "whisper": lambda block: _two(block.fc1, block.fc2),
}
