"""Alarms under changes of form at random: none moves a figure but those that are of the stored form."""

import gguf
import numpy as np
import pytest
import torch
import transformers
from assets import fetch
from changes_of_form import Changes
from safetensors.torch import load_file
from wired_models import random_model

from specdiag.analysis.source import open_source
from specdiag.function.alarms import look_for_alarms
from specdiag.function.blocks import find_blocks

SAME = 1e-6
LARGER = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 192,
}


def smollm2():
    """The first nine blocks of the real model in float64; llama.cpp keeps rotated rows in pairs, transformers in halves."""
    (file,) = fetch("smollm2-gguf").glob("*.gguf")
    names = {
        "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    ends = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    state = {}
    for tensor in gguf.GGUFReader(file).tensors:
        block, layer, *rest = f"{tensor.name}...".split(".")[:3]
        if block == "blk" and int(layer) < 9:
            name = f"model.layers.{layer}.{names[rest[0]]}.weight"
        elif tensor.name in ends:
            name = ends[tensor.name]
        else:
            continue
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if rest[0] in ("attn_q", "attn_k"):
            values = values.reshape(-1, 32, 2, 576).swapaxes(1, 2).reshape(values.shape)
        state[name] = torch.from_numpy(np.array(values, np.float64))
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=9, num_attention_heads=9,
        num_key_value_heads=3, rope_parameters={"rope_type": "default", "rope_theta": 1e5}, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    return model.eval()


def minilm():
    """The real model in float64."""
    folder = fetch("minilm")
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder)).double().eval()
    model.bert.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model


MODELS = {
    "llama": lambda: random_model("llama", **LARGER),
    "smollm2": smollm2,
    "mixtral": lambda: random_model("mixtral", **LARGER),
    "gpt2": lambda: random_model("gpt2", n_embd=128, n_head=2, n_inner=256, n_layer=9),
    "bert": minilm,
    "gemma2": lambda: random_model("gemma2"),
    "qwen3": lambda: random_model("qwen3"),
    "olmo2": lambda: random_model("olmo2"),
}


def figures(model, *, stored):
    """Every figure by its place, experts in the order of size; `stored` adds those that scales and biases may change."""
    alarms, _ = look_for_alarms(open_source(model))
    found = {}
    for row in alarms.writers:
        found.setdefault(("ratio", row.layer, "down" in row.key), []).append([row.ratio or 0, row.shared])
    for window in alarms.windows:
        found["window", window.name] = [[window.ratio]]
    found["channels"] = [[c.channel, c.size] for c in alarms.channels]
    for score in alarms.scores:
        found["score", score.layer, score.head] = [[score.bound, score.at_positions or 0]]
    for row in alarms.ranges:
        if row.role == "down" or (row.role == "o" and stored) or (row.role in ("gate", "into down") and stored):
            found.setdefault((row.role, row.layer), []).append([row.bound])
    return {key: np.array(sorted(values)) for key, values in found.items()}


@pytest.mark.parametrize("kind", MODELS)
def test_no_verdict_depends_on_the_form(kind):
    model = MODELS[kind]()
    before = figures(model, stored=False)
    name = "llama" if kind == "smollm2" else kind
    blocks, _ = find_blocks(open_source(model))
    block = blocks[0]
    changes = Changes(name, model, [b.wiring for b in blocks], block.attention.n_rotated)
    changes.all()
    after = figures(model, stored=False)
    assert before.keys() == after.keys()
    is_written_anew = changes.is_layer or block.wiring.mlp_out is not None  # 1a' and scales change what is put out
    for key, values in before.items():
        if key[0] == "down" and is_written_anew:
            continue
        assert after[key] == pytest.approx(values, rel=SAME, abs=SAME), key


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_folds_and_order_leave_bounds_as_well(kind):
    model = MODELS[kind]()
    before = figures(model, stored=True)
    blocks, _ = find_blocks(open_source(model))
    block = blocks[0]
    changes = Changes(kind, model, [b.wiring for b in blocks], block.attention.n_rotated)
    changes.scales = lambda *shape: torch.ones(*shape, dtype=torch.float64)  # order alone
    with torch.no_grad():
        for layer in changes.layers:
            changes.neurons(layer)
            changes.experts(layer)
    changes = Changes(kind, model, [b.wiring for b in blocks], block.attention.n_rotated)
    with torch.no_grad():
        for layer in changes.layers:
            changes.fold(layer)
            changes.mix_values(layer)
    after = figures(model, stored=True)
    assert any(key[0] == "o" for key in before)
    for key, values in before.items():
        assert after[key] == pytest.approx(values, rel=SAME, abs=SAME), key


def test_a_rotation_of_the_stream_leaves_all_but_channels():
    model = random_model("llama", **LARGER)
    with torch.no_grad():
        for block in model.model.layers:
            for norm, readers in (
                (block.input_layernorm, (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
                (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
            ):
                for reader in readers:
                    reader.weight *= norm.weight
                norm.weight.fill_(1)
        before = figures(model, stored=True)
        turn = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[
            0
        ]
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
                reader.weight.copy_(reader.weight @ turn)
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight.copy_(turn.T @ writer.weight)
    after = figures(model, stored=True)
    moved = {"channels", *(key for key in before if key[0] in ("o", "down"))}  # rows of what is written
    assert after["channels"] != pytest.approx(before["channels"])
    for key in before.keys() - moved:
        assert after[key] == pytest.approx(before[key], rel=SAME, abs=SAME), key
