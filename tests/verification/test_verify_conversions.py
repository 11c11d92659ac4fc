"""Conversions between formats: names and layouts are matched, every tensor is compared, wrong layouts are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from adapter_files import LORA
from adapter_files import write as write_adapter
from converted_models import CONFIG, HEADS, LAYERS, PAIRS, D, decoder, gguf_names, in_pairs, litgpt, meta
from gguf.constants import GGMLQuantizationType
from gguf_writer import model, write
from models import write_checkpoint
from quantised_files import ALL

import specdiag
from specdiag.checkpoint.memory import from_state_dict
from specdiag.verification.wording import sentences

METADATA = {
    "general.architecture": "llama", "llama.block_count": LAYERS, "llama.embedding_length": D,
    "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": PAIRS,
}  # fmt: skip
F16, Q8_0, Q4_0 = GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0


def tensors(state: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)).to(dtype) for name, value in state.items()}


def hf(state: dict[str, Any], config: dict[str, Any] | None = None):
    return from_state_dict(tensors(state), config=CONFIG if config is None else config)


def gguf_file(path: Path, state: dict[str, Any], kind: GGMLQuantizationType, architecture: str = "llama") -> Path:
    """Matrices in a type of ggml, vectors in F32."""
    held = {}
    for name, value in state.items():
        of = kind if value.ndim == 2 and value.shape[1] % 32 == 0 else GGMLQuantizationType.F32
        held[name] = (value.shape, int(of), gguf.quantize(np.ascontiguousarray(value), of).tobytes())
    metadata = {key.replace("llama.", f"{architecture}."): value for key, value in METADATA.items()}
    return write(path, model(held, metadata | {"general.architecture": architecture}))


def verified(found: specdiag.Verification) -> specdiag.Verification:
    assert found.verdict == "verified", (found.reason, [(f.name, f.cause) for f in found.faults])
    assert not found.not_compared
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_meta_and_back(dtype: torch.dtype) -> None:
    state = decoder()
    there = from_state_dict(tensors(meta(state), dtype))
    found = verified(specdiag.verify(hf(state), there))
    assert {t.layout for t in found.tensors if ".q_proj" in t.name} == {"rotary halves to pairs"}
    assert {t.layout for t in found.tensors if ".v_proj" in t.name} == {"as stored"}
    back = verified(specdiag.verify(from_state_dict(tensors(meta(state))), hf(state)))
    assert {t.layout for t in back.tensors if t.name.endswith("wk.weight")} == {"rotary pairs to halves"}


def test_equal_tensors_are_counted_apart_from_rounded_ones() -> None:
    """A norm of ones is the same in any type; everything else is equal only once it is rounded."""
    state = decoder()
    ones = next(name for name, value in state.items() if value.ndim == 1)
    state[ones] = np.ones_like(state[ones])
    n = len(state)
    half = from_state_dict(tensors(state, torch.float16), config=CONFIG)
    found = verified(specdiag.verify(hf(state), half))
    assert found[ones].outcome == "equal"
    assert found.reason == f"1 of {n} tensors equal, {n - 1} equal once rounded to F16"
    assert f"{n - 1} equal once rounded" in sentences(found)[0]
    assert specdiag.verify(hf(state), hf(state)).reason == f"{n} tensors equal"


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_0], ids=lambda kind: kind.name)
def test_gguf(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    state = decoder()
    found = verified(specdiag.verify(hf(state), gguf_file(tmp_path / "m.gguf", gguf_names(state), kind)))
    assert found["model.layers.1.self_attn.q_proj.weight"].layout == "rotary halves to pairs"
    assert found["model.layers.1.input_layernorm.weight"].name_after == "blk.1.attn_norm.weight"


def test_rows_that_were_not_permuted_are_named(tmp_path: Path) -> None:
    """The converter's classic fault: a llama in GGUF whose q and k keep Hugging Face's order, or one of them does."""
    state = decoder()
    from converted_models import GGUF, renamed

    found = specdiag.verify(hf(state), gguf_file(tmp_path / "m.gguf", renamed(state, GGUF), Q8_0))
    assert found.verdict == "not verified"
    assert [f.cause for f in found.faults] == ["rotary order"] * 2 * LAYERS
    twice = renamed(in_pairs(in_pairs(state)), GGUF)
    found = specdiag.verify(hf(state), gguf_file(tmp_path / "n.gguf", twice, F16))
    assert len(found.faults) == 2 * LAYERS
    assert all(".q_proj" in f.name or ".k_proj" in f.name for f in found.faults)
    found = specdiag.verify(hf(state), hf(in_pairs(state)))
    assert [f.cause for f in found.faults] == ["rotary order"] * 2 * LAYERS


def test_other_architectures_of_gguf_keep_the_order(tmp_path: Path) -> None:
    from converted_models import GGUF, renamed

    state = decoder(biased=True)
    path = gguf_file(tmp_path / "m.gguf", renamed(state, GGUF), F16, "qwen2")
    found = verified(specdiag.verify(hf(state, CONFIG | {"model_type": "qwen2"}), path))
    assert found["model.layers.2.self_attn.k_proj.bias"].name_after == "blk.2.attn_k.bias"


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_litgpt_fuses_q_k_and_v(grouped: bool, biased: bool) -> None:
    state = decoder(biased=biased)
    fused = from_state_dict(
        tensors(litgpt(state, grouped=grouped)), config={"n_head": HEADS, "n_query_groups": PAIRS, "n_embd": D}
    )
    found = verified(specdiag.verify(hf(state), fused))
    assert len(found.tensors) == len(state)
    verified(specdiag.verify(fused, hf(state)))


def test_gpt2_is_transposed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state, other = {}, {}
    shapes = {
        "attn.c_attn": ("attn_qkv", (D, 3 * D)), "attn.c_proj": ("attn_output", (D, D)), "mlp.c_fc": ("ffn_up", (D, 4 * D)),
        "mlp.c_proj": ("ffn_down", (4 * D, D)), "ln_1": ("attn_norm", (D,)), "ln_2": ("ffn_norm", (D,)),
    }  # fmt: skip
    for i in range(LAYERS):
        for name, (theirs, shape) in shapes.items():
            state[f"h.{i}.{name}.weight"] = w = rng.standard_normal(shape).astype("f4")
            other[f"blk.{i}.{theirs}.weight"] = w.T if w.ndim == 2 else w
            bias = rng.standard_normal(shape[-1:]).astype("f4")
            state[f"h.{i}.{name}.bias"] = other[f"blk.{i}.{theirs}.bias"] = bias
    state["wte.weight"] = other["token_embd.weight"] = rng.standard_normal((V := 64, D)).astype("f4")
    state["ln_f.weight"] = other["output_norm.weight"] = rng.standard_normal(D).astype("f4")
    config = {"model_type": "gpt2", "n_head": HEADS, "n_embd": D, "vocab_size": V}
    path = gguf_file(tmp_path / "m.gguf", other, F16, "gpt2")
    found = verified(specdiag.verify(hf(state, config), path))
    assert found["h.0.attn.c_proj.weight"].layout == "transposed"
    other["blk.1.attn_output.weight"] = other["blk.1.attn_output.weight"].T
    found = specdiag.verify(hf(state, config), gguf_file(tmp_path / "n.gguf", other, F16, "gpt2"))
    assert [(f.name, f.cause) for f in found.faults] == [("h.1.attn.c_proj.weight", "transposed")]


def test_names_that_say_nothing_are_matched_by_content() -> None:
    state = decoder()
    random = np.random.default_rng(1).permutation(len(state))
    blank = {f"tensor_{n}": state[list(state)[i]] for n, i in enumerate(random)}
    found = verified(specdiag.verify(hf(state), from_state_dict(tensors(blank, torch.bfloat16))))
    assert {t.matched_by for t in found.tensors} == {"content"}
    found = specdiag.verify(hf(state), from_state_dict(tensors(blank | {"tensor_3": 2 * blank["tensor_3"]})))
    assert sorted(n.cause for n in found.not_compared) == ["added", "missing"]


def test_tied_tables_and_buffers_do_not_count(tmp_path: Path) -> None:
    state = decoder()
    state["lm_head.weight"] = state["model.embed_tokens.weight"].copy()
    untied = {n: w for n, w in state.items() if n != "lm_head.weight"}
    found = specdiag.verify(hf(state), hf(untied | {"model.rotary_emb.inv_freq": np.ones(4, "f4")}))
    assert found.verdict == "verified"
    assert [(n.name, n.cause) for n in found.not_compared] == [
        ("lm_head.weight", None),
        ("model.rotary_emb.inv_freq", None),
    ]
    assert specdiag.verify(hf(untied), hf(state)).verdict == "verified"
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    assert [n.cause for n in specdiag.verify(hf(state), hf(untied)).not_compared] == ["missing"]


@pytest.mark.parametrize("name", ALL)
def test_every_format_of_codes_is_verified(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((128, 512)).astype("f4") * 0.02
    stem = "layers.0.self_attn.q_proj"
    made = ALL[name].quantise(stem, weight)
    found = specdiag.verify(
        {f"{stem}.weight": torch.from_numpy(weight)}, from_state_dict(made.tensors, config=ALL[name].config)
    )
    assert (found.verdict, found.faults) == ("verified", ())
    error = np.linalg.norm(made.values - weight) / np.linalg.norm(weight)
    assert found.tensors[0].residual == pytest.approx(error, rel=1e-3)
    wrong = ALL[name].quantise(stem, weight[np.random.default_rng(1).permutation(128)])
    found = specdiag.verify(
        {f"{stem}.weight": torch.from_numpy(weight)}, from_state_dict(wrong.tensors, config=ALL[name].config)
    )
    assert found.verdict == "not verified"


@pytest.mark.parametrize("name", ["fp8-block", "int8", "gptq8", "mlx6", "ct8"])
def test_codes_made_of_coarser_codes_are_named(name: str) -> None:
    """A model quantised by another scheme first."""
    weight = np.random.default_rng(0).standard_normal((128, 512)).astype("f4") * 0.02
    stem = "layers.0.self_attn.q_proj"
    made = ALL[name].quantise(stem, ALL["mlx4"].quantise(stem, weight).values)
    found = specdiag.verify(
        {f"{stem}.weight": torch.from_numpy(weight)}, from_state_dict(made.tensors, config=ALL[name].config)
    )
    assert [f.cause for f in found.faults] == ["coarser than its storage"]


def test_floats_that_were_codes_are_named() -> None:
    weight = np.random.default_rng(0).standard_normal((128, 512)).astype("f4") * 0.02
    values = ALL["mlx4"].quantise("q_proj", weight).values
    found = specdiag.verify({"q_proj.weight": torch.from_numpy(weight)}, {"q_proj.weight": torch.from_numpy(values)})
    assert [f.cause for f in found.faults] == ["coarser than its storage"]


def test_a_conversion_that_cuts_off_or_overflows(tmp_path: Path) -> None:
    state = tensors(decoder())
    cut = {n: (w.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16) for n, w in state.items()}
    found = verified(specdiag.verify(state, cut))
    assert {t.arithmetic for t in found.tensors if t.outcome == "within rounding"} == {"cut off instead of rounded"}
    state["lm_head.weight"][0, 0] = 1e5
    found = specdiag.verify(state, {n: w.half() for n, w in state.items()})
    assert [(f.name, f.cause) for f in found.faults] == [("lm_head.weight", "not finite")]


def test_an_interrupted_or_wrong_call(tmp_path: Path) -> None:
    state = decoder()
    folder = write_checkpoint(tmp_path / "a", state)
    with pytest.raises(specdiag.UsageError, match="is no adapter"):
        specdiag.verify(folder, folder, folder)
    with pytest.raises(specdiag.UsageError, match="takes two models"):
        specdiag.verify(folder)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        specdiag.verify(folder, folder, progress=stop)


def test_experts_of_their_own_and_stacked(tmp_path: Path) -> None:
    """Mixtral in Hugging Face's names, and as GGUF stacks it."""
    rng = np.random.default_rng(0)
    state = {n: w for n, w in decoder().items() if ".mlp." not in n}
    other = gguf_names(state)
    for i in range(LAYERS):
        state[f"model.layers.{i}.block_sparse_moe.gate.weight"] = router = rng.standard_normal((4, D)).astype("f4")
        other[f"blk.{i}.ffn_gate_inp.weight"] = router
        for ours, theirs, shape in (("w1", "gate", (48, D)), ("w3", "up", (48, D)), ("w2", "down", (D, 64))):
            stack = rng.standard_normal((4, *shape)).astype("f4")
            other[f"blk.{i}.ffn_{theirs}_exps.weight"] = stack
            for e in range(4):
                state[f"model.layers.{i}.block_sparse_moe.experts.{e}.{ours}.weight"] = stack[e]
    config = CONFIG | {"model_type": "mixtral", "num_local_experts": 4}
    found = verified(specdiag.verify(hf(state, config), gguf_file(tmp_path / "m.gguf", other, F16)))
    assert len(found.tensors) == len(state)
    other["blk.1.ffn_up_exps.weight"] = other["blk.1.ffn_up_exps.weight"][[1, 0, 2, 3]]
    found = specdiag.verify(hf(state, config), gguf_file(tmp_path / "n.gguf", other, F16))
    assert len(found.faults) == 2, "two experts changed places"


@pytest.mark.parametrize("kind", [F16, Q8_0], ids=lambda kind: kind.name)
def test_a_merge_that_was_converted(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    """Merged in Hugging Face's names, then written as GGUF with its rows of q and k in pairs."""
    state, rng = decoder(), np.random.default_rng(3)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(LAYERS)]
    pairs = {
        n: (rng.standard_normal((4, D)).astype("f4"), rng.standard_normal((D, 4)).astype("f4") * 0.003) for n in names
    }
    factors = {
        f"base_model.model.{n}.lora_{x}.weight": f for n, pair in pairs.items() for x, f in zip("AB", pair, strict=True)
    }
    adapter = write_adapter(tmp_path / "a", factors, LORA | {"r": 4, "lora_alpha": 8})
    base = write_checkpoint(tmp_path / "b", state, CONFIG)
    merged = dict(state)
    for name, (a, b) in pairs.items():
        merged[f"{name}.weight"] = (state[f"{name}.weight"] + 2.0 * b.astype("f8") @ a).astype("f4")
    found = verified(specdiag.verify(base, adapter, gguf_file(tmp_path / "m.gguf", gguf_names(merged), kind)))
    assert {t.layout for t in found.tensors if t.updated} == {"rotary halves to pairs"}
    found = specdiag.verify(base, adapter, gguf_file(tmp_path / "n.gguf", gguf_names(state), kind))
    assert [f.cause for f in found.faults] == ["not applied"] * LAYERS
