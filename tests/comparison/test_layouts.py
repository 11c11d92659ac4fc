"""compare across layouts: a language model inside a larger one, and one model in the names of three formats."""

from __future__ import annotations

import pytest
import torch

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.errors import SourceError

D, FF, V, LAYERS = 16, 24, 40, 3
BLOCK = {
    "self_attn.q_proj": (D, D), "self_attn.k_proj": (8, D), "self_attn.v_proj": (8, D), "self_attn.o_proj": (D, D),
    "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "mlp.down_proj": (D, FF),
}  # fmt: skip
META = {
    "model.embed_tokens": "tok_embeddings", "model.": "", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "lm_head": "output",
}  # fmt: skip
GGUF = {
    "model.embed_tokens": "token_embd", "model.layers": "blk", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "lm_head": "output",
}  # fmt: skip


def language_model(body="model.", head="lm_head."):
    random = torch.Generator().manual_seed(0)
    shapes = {f"{body}embed_tokens.weight": (V, D), f"{head}weight": (V, D)}
    shapes |= {f"{body}layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in BLOCK.items()}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def tower(path):
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.fc1", "mlp.fc2")
    return {f"{path}.{i}.{name}.weight": torch.ones(12, 12) for i in range(4) for name in names}


def renamed(tensors, words):
    for old, new in words.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def compared(a, b):
    return specdiag.compare(from_state_dict(a), from_state_dict(b), cache=None, subspace=0)


@pytest.mark.parametrize(
    ("body", "head", "vision"),
    [
        ("model.language_model.", "lm_head.", "model.visual.blocks"),
        ("model.language_model.", "lm_head.", "model.vision_tower.vision_model.encoder.layers"),
        ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.encoder.layers"),
        ("model.text_model.", "lm_head.", "model.vision_model.encoder.layers"),
        ("language_model.", "lm_head.", "vision_model.encoder.layers"),
        ("llm.model.", "llm.lm_head.", "vpm.encoder.layers"),
        ("thinker.model.", "thinker.lm_head.", "thinker.visual.blocks"),
    ],
)
def test_a_language_model_is_found_in_a_larger_one(body, head, vision):
    larger = language_model(body, head) | tower(vision)
    for a, b in ((language_model(), larger), (larger, language_model())):
        found = compared(a, b)
        assert len(found.modules) == 7 * LAYERS + 2
        assert found.relative_change == 0
        assert all(vision in lost.name for lost in (*found.only_before, *found.only_after))


@pytest.mark.parametrize("words", [META, GGUF])
def test_one_model_in_other_names_is_matched_by_layer_role_and_shape(words):
    found = compared(language_model(), renamed(language_model(), words))
    assert len(found.modules) == 7 * LAYERS + 2
    assert any(note.startswith("23 matrices have other names AFTER") for note in found.notes)
    without = {module.role for module in found.modules if module.delta is None}
    assert without == {"q", "k"}, "rows of q and k lie in another order: their difference would be a wrong number"
    assert any("q and k of these matrices are compared by their spectra alone" in note for note in found.notes)


def test_another_model_is_not_matched_by_role():
    other = {f"transformer.h.{i}.mlp.c_fc.weight": torch.ones(FF, D) for i in range(LAYERS)}
    with pytest.raises(SourceError, match="are these one model"):
        compared(language_model(), other)


def test_two_language_models_in_one_are_not_guessed_between():
    both = language_model("thinker.model.", "thinker.lm_head.") | language_model("talker.model.", "talker.lm_head.")
    with pytest.raises(SourceError, match="alike"):
        compared(language_model(), both)
