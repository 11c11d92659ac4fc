"""Small random models of every architecture whose wiring is known."""

from __future__ import annotations

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

_NAMED = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_BART = _NAMED | {
    "vocab_size": TOKENS, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": HIDDEN, "decoder_ffn_dim": HIDDEN,
    "max_position_embeddings": 64, "forced_eos_token_id": 2,
}  # fmt: skip
_OPT = {
    "vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "ffn_dim": HIDDEN,
    "max_position_embeddings": 64, "word_embed_proj_dim": WIDTH,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T5 = {
    "vocab_size": TOKENS, "d_model": WIDTH, "d_kv": 16, "d_ff": HIDDEN, "num_layers": 2, "num_heads": HEADS,
    "decoder_start_token_id": 1,
}  # fmt: skip
_TOWER = {k: v for k, v in _PLAIN.items() if k not in ("vocab_size", "max_position_embeddings") and "_token_" not in k}
_CLIP = {
    "projection_dim": 20,
    "text_config": _PLAIN | {"projection_dim": 20},
    "vision_config": _TOWER | _IMAGE | {"projection_dim": 20},
}
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN, "norm_topk_prob": True,
    "experts_implementation": "eager",
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
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _NARROW),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", _GROUPED | _EXACT | _EXPERTS),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _NARROW),
    "phi": ("PhiForCausalLM", "PhiConfig", _PLAIN | {"partial_rotary_factor": 0.5}),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", _NARROW),
    "opt": ("OPTForCausalLM", "OPTConfig", _OPT),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _PLAIN),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", _PLAIN | {"embedding_size": WIDTH}),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "mbart": ("MBartForConditionalGeneration", "MBartConfig", _BART),
    "clip": ("CLIPModel", "CLIPConfig", _CLIP),
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
            is_gain = parameter.ndim == 1 and name.endswith("weight") and not kind.startswith(("gemma", "nemotron"))
            parameter.copy_(torch.from_numpy(np.asarray(values + is_gain)))
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
        if kind == "clip":
            image = torch.from_numpy(rng.standard_normal((2, 3, 16, 16)))
            return model(input_ids=tokens, pixel_values=image).logits_per_image
        if kind in ("t5", "bart", "mbart"):
            return model(input_ids=tokens, decoder_input_ids=tokens.flip(1)).logits
        return model(tokens).logits
