"""AlphaDecay on tied, fused, stacked, wrapped, compiled and frozen models."""

import numpy as np
import pytest
import torch
from helpers import esd, naive_hill
from live_models import Decoder, Q, float32_errors, train
from live_optimizers import adamw

import specdiag
from specdiag import UsageError
from specdiag.optim import AlphaDecay

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_tied_head_takes_no_part():
    model = Decoder(tied=True)
    decay = AlphaDecay(model, adamw(model), measure_first=True)
    decay.step(0)
    assert len(decay.ratios) == 12
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=float32_errors(model)[1])


def test_gpt2_with_its_transposed_fused_weights():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=80, n_positions=16))
    decay = AlphaDecay(model, adamw(model), measure_first=True)
    decay.step(0)
    report = specdiag.analyze(model)
    fused = "transformer.h.0.attn.c_attn.weight"
    parts = [report[f"{fused}[{part}]"].alpha for part in "qkv"]
    of_alpha, of_ratio = float32_errors(model)
    assert decay.alphas[fused] == pytest.approx(np.mean(parts), abs=of_alpha)
    assert decay.ratios == pytest.approx(specdiag.recommend(report).ratios, abs=of_ratio)


def test_a_module_around_the_model_hides_no_config():
    """Where heads are interleaved in a fused matrix, only the config says how many there are."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=80, **sizes))
    around = torch.nn.Module()
    around.net, around.loss = model, torch.nn.CrossEntropyLoss()
    measured = []
    for module in (model, torch.nn.parallel.DataParallel(around)):
        decay = AlphaDecay(module, adamw(module), measure_first=True)
        decay.step(0)
        measured.append(decay.alphas)
    assert measured[1] == {f"net.{name}": alpha for name, alpha in measured[0].items()}
    assert "gpt_neox.layers.0.attention.query_key_value.weight" in measured[0]
    around.head = torch.nn.Linear(64, 64)
    assert len(AlphaDecay(around, adamw(around)).ratios) == 3


def test_stacked_experts_share_the_mean_of_their_exponents():
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 80,
    }
    model = MixtralForCausalLM(MixtralConfig(num_local_experts=3, num_key_value_heads=2, **sizes))
    decay = AlphaDecay(model, adamw(model), measure_first=True)
    decay.step(0)
    name = "model.layers.0.mlp.experts.down_proj"
    stack = model.model.layers[0].mlp.experts.down_proj.detach().numpy()
    of_alpha, of_ratio = float32_errors(model)
    assert decay.alphas[name] == pytest.approx(np.mean([naive_hill(esd(w)) for w in stack]), abs=of_alpha)
    assert decay.ratios == pytest.approx(specdiag.recommend(model).ratios, abs=of_ratio)
    assert len(decay.state_dict()["modules"]) == 4 + 3 * 3


def test_a_compiled_model():
    model = Decoder()
    compiled = torch.compile(model, backend="eager")
    optimizer = adamw(compiled)
    decay = AlphaDecay(compiled, optimizer, measure_first=True)
    train(compiled, optimizer, 2, decay=decay)
    assert Q in decay.ratios


def test_frozen_parameters_and_adapters():
    model = Decoder()
    some = [p for name, p in model.named_parameters() if "layers.1" in name]
    assert len(AlphaDecay(model, torch.optim.AdamW(some)).ratios) == 6
    with pytest.raises(UsageError, match="holds no weight matrix of this Decoder"):
        AlphaDecay(model, torch.optim.AdamW(Decoder().parameters()))
    model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(64, 8, bias=False)
    said = r"adapters \(layers\.0\.self_attn\.q_proj\.lora_A\.weight\).* \(cB, A/c\) is the same update .* not to 0"
    with pytest.raises(UsageError, match=said):
        AlphaDecay(model, adamw(model))
