"""A model has the same function under the names of GGUF, Meta and transformers."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf_writer import model as gguf_file
from safetensors.torch import save_file
from wired_models import GROUPS, HEADS, WIDTH, random_model

import specdiag
from specdiag.analysis.source import open_source
from specdiag.function.matrices import function_of

ARCHITECTURES = {
    "llama": "LLAMA", "mixtral": "LLAMA", "granite": "GRANITE", "qwen2": "QWEN2", "qwen3": "QWEN3",
    "qwen3_moe": "QWEN3MOE", "gemma": "GEMMA", "gemma2": "GEMMA2", "gemma3_text": "GEMMA3", "phi3": "PHI3", "phi": "PHI2",
    "olmo2": "OLMO2", "gpt2": "GPT2", "gpt_neox": "GPTNEOX", "starcoder2": "STARCODER2", "cohere": "COMMAND_R",
    "nemotron": "NEMOTRON", "bert": "BERT",
}  # fmt: skip
PAIRED = ("llama", "mixtral", "granite")
BERT = {
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip


def spectra(source):
    """Singular values of the function and of the balanced form by layer, role and head; experts in any order."""
    function = function_of(open_source(source))
    assert not function.notes
    found = {}
    for matrix in (*function.rows, *function.balanced.values()):
        module = matrix.module
        key = (module.form, module.layer, module.role, module.head)
        found.setdefault(key, []).append(torch.linalg.svdvals(matrix.load().double()).numpy())
    return {key: np.array(sorted(values, key=lambda v: v.sum())) for key, values in found.items()}


def pairs(rows, heads):
    """Rows i and i + h/2 of each head beside each other, as llama.cpp and Meta have them."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def converted(kind, model):
    """The tensors of a model as llama.cpp's converter writes them, under the names of the gguf package."""
    architecture = getattr(gguf.MODEL_ARCH, ARCHITECTURES[kind])
    names, state = gguf.get_tensor_name_map(architecture, 2), {}
    for name, value in model.state_dict().items():
        if kind == "bert":
            found = next((f"blk.{name.split('.')[3]}.{b}" for a, b in BERT.items() if f".{a}." in name), None)
            found = None if found is None else f"{found}.{name.rpartition('.')[2]}"
        else:
            found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name.endswith("experts.gate_up_proj"):
            block = f"blk.{name.split('.')[2]}"
            state[f"{block}.ffn_gate_exps.weight"], state[f"{block}.ffn_up_exps.weight"] = value.chunk(2, dim=1)
            continue
        if found is None:
            continue
        if "_exps" in found:
            found = f"{found}.weight"
        if kind in PAIRED and (".attn_q." in found or ".attn_k." in found):
            value = pairs(value, HEADS if ".attn_q." in found else GROUPS)
        if kind.startswith(("gemma", "nemotron")) and "norm.weight" in found:
            value = value + 1
        if kind == "gpt2" and value.ndim == 2 and "embd" not in found and found != "output.weight":
            value = value.T
        if kind == "gpt_neox" and "attn_qkv" in found:  # head by head to one after the other
            value = value.unflatten(0, (HEADS, 3, -1)).transpose(0, 1).flatten(0, 2)
        state[found] = value
    config, prefix = model.config, gguf.MODEL_ARCH_NAMES[architecture]
    head_dim = getattr(config, "head_dim", None) or WIDTH // HEADS
    rotated = {"gpt_neox": head_dim // 2, "phi": head_dim // 2, "nemotron": head_dim // 2}.get(kind, head_dim)
    metadata = {
        "general.architecture": prefix, f"{prefix}.embedding_length": WIDTH, f"{prefix}.attention.head_count": HEADS,
        f"{prefix}.rope.dimension_count": rotated,
        f"{prefix}.attention.head_count_kv": getattr(config, "num_key_value_heads", HEADS),
    }  # fmt: skip
    return state, metadata


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_gguf(kind, tmp_path):
    model = random_model(kind)
    state, metadata = converted(kind, model)
    double = gguf.GGMLQuantizationType.F64
    path = tmp_path / "model.gguf"
    path.write_bytes(
        gguf_file({n: (tuple(t.shape), double, t.contiguous().numpy().tobytes()) for n, t in state.items()}, metadata)
    )
    expected, found = spectra(model), spectra(path)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-9 * values.max()), key


META = {
    "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings", "lm_head": "output", "model.": "",
}  # fmt: skip


def meta(model):
    state = {}
    for name, value in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            value = pairs(value, HEADS if "q_proj" in name else GROUPS)
        for old, new in META.items():
            name = name.replace(old, new)
        state[name] = value.contiguous()
    return state


def write_meta(folder, model, *, params=None, angles=False):
    state = meta(model)
    if angles:
        state["rope.freqs"] = torch.ones(8)
    torch.save(state, folder / "consolidated.00.pth")
    if params is not None:
        (folder / "params.json").write_text(params)
    return folder


@pytest.mark.parametrize("angles", [False, True])
def test_meta(angles, tmp_path):
    model = random_model("llama")
    params = None if angles else json.dumps({"dim": WIDTH, "n_heads": HEADS, "n_kv_heads": GROUPS, "vocab_size": -1})
    expected, found = spectra(model), spectra(write_meta(tmp_path, model, params=params, angles=angles))
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, abs=1e-9 * values.max()), key


@pytest.mark.parametrize("params", [None, "{", "[]", "{}", '{"dim": true, "n_heads": "4"}', '{"n_heads": -4}'])
def test_meta_without_a_number_of_heads(params, tmp_path):
    folder = write_meta(tmp_path, random_model("llama"), params=params)
    report = specdiag.analyze(folder, function=True, device="cpu")
    assert any("neither the config nor a role map says how many heads" in n for n in report.provenance.notes)
    assert {row.role for row in report.function} == {"gate", "du"}
    roles = tmp_path / "roles.toml"
    roles.write_text(
        f'[[wiring]]\nholds = ["attention.wq"]\nnorm = "rms"\nattn_in = "attention_norm"\nmlp_in = "ffn_norm"\n'
        f'rope = "interleaved"\nheads = {HEADS}\n'
    )
    with_heads = specdiag.analyze(folder, function=True, role_map=roles, device="cpu")
    assert {row.role for row in with_heads.function} == {"gate", "du", "qk", "ov"}


def test_meta_in_one_safetensors_file(tmp_path):
    save_file(meta(random_model("llama")), tmp_path / "model.safetensors")
    (tmp_path / "params.json").write_text(json.dumps({"dim": WIDTH, "n_heads": HEADS}))
    assert {m.module.role for m in function_of(open_source(tmp_path)).rows} == {"qk", "ov", "gate", "du"}
