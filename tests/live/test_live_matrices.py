"""The walk over a model in memory: names, roles, and how matrices are cut from Parameters."""

import torch
from live_models import Decoder
from transformers import GPT2Config, GPT2LMHeadModel

from specdiag.live.matrices import live_matrices


def test_a_tied_head_comes_under_both_names_and_marks_the_embedding_as_output():
    matrices = live_matrices(Decoder(layers=1, tied=True))
    own = {m.name: (m.role, m.is_first, m.is_output) for m in matrices if m.module.layer is None}
    assert own == {"embed_tokens.weight": ("embed", True, True), "lm_head.weight": ("head", False, True)}
    untied = {m.name: (m.is_first, m.is_output) for m in live_matrices(Decoder(layers=1)) if m.module.layer is None}
    assert untied == {"embed_tokens.weight": (True, False), "lm_head.weight": (True, True)}


def test_fused_parameters_are_cut_and_wrappers_are_looked_through():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=4))
    wrapped = torch.nn.Sequential()
    wrapped.add_module("module", model)
    for live in (model, wrapped):
        cut = {m.key: m for m in live_matrices(live) if "c_attn" in m.name}
        assert [(k.removeprefix("transformer.h.0.attn."), m.role) for k, m in cut.items()] == [
            (f"c_attn.weight[{part}]", part) for part in "qkv"
        ]
        k = cut["transformer.h.0.attn.c_attn.weight[k]"]
        assert torch.equal(k.cut(k.parameter)[0], model.transformer.h[0].attn.c_attn.weight.detach()[:, 8:16])
        assert not k.cut(k.parameter).requires_grad
        assert k.cost == 8 * 8 * 16
