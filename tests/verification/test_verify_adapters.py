"""Adapters of every kind: rsLoRA, DoRA, embeddings, convolutions, saved modules, quantised bases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import LORA, lora, random, write
from merged_models import ALPHA, CONFIG, RANK, base_state, cast, factors, merged, modules, save, save_adapter
from models import write_checkpoint
from quantised_files import ALL

import specdiag

Q = "model.layers.0.self_attn.q_proj"


def right(found: specdiag.Verification) -> specdiag.Verification:
    assert found.verdict == "verified", (found.reason, [(f.name, f.cause) for f in found.faults])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rslora(tmp_path: Path, dtype: torch.dtype) -> None:
    state = base_state()
    pairs = factors(state)
    base, adapter = save(tmp_path / "b", state), save_adapter(tmp_path / "a", pairs, use_rslora=True)
    right(specdiag.verify(base, adapter, save(tmp_path / "m", merged(state, pairs, ALPHA / RANK**0.5), dtype)))
    wrong = specdiag.verify(base, adapter, save(tmp_path / "w", merged(state, pairs), dtype))
    assert {f.cause for f in wrong.faults} == {"wrong scale"}
    assert "alpha over the rank instead of over its root" in wrong.faults[0].detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dora(tmp_path: Path, dtype: torch.dtype) -> None:
    state = base_state()
    pairs = factors(state)
    plain = merged(state, pairs)
    magnitudes = {m: np.linalg.norm(state[f"{m}.weight"], axis=1) * 1.1 for m in pairs}
    tensors = {
        f"base_model.model.{m}.lora_{x}.weight": f for m, pair in pairs.items() for x, f in zip("AB", pair, strict=True)
    }
    tensors |= {f"base_model.model.{m}.lora_magnitude_vector": norms for m, norms in magnitudes.items()}
    adapter = write(
        tmp_path / "a",
        {n: v.astype("f4") for n, v in tensors.items()},
        LORA | {"r": RANK, "lora_alpha": ALPHA, "use_dora": True},
    )
    base = save(tmp_path / "b", state)
    model = dict(plain)
    for m, norms in magnitudes.items():
        v = plain[f"{m}.weight"]
        model[f"{m}.weight"] = norms.astype("f4")[:, None] * v / np.linalg.norm(v, axis=1, keepdims=True)
    right(specdiag.verify(base, adapter, save(tmp_path / "m", model, dtype)))
    found = specdiag.verify(base, adapter, save(tmp_path / "w", plain, dtype))
    assert [f.cause for f in found.faults] == ["magnitudes left out"] * 6
    found = specdiag.verify(base, adapter, base)
    assert [f.cause for f in found.faults] == ["not applied"] * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_convolutions_and_saved_modules(tmp_path: Path, dtype: torch.dtype) -> None:
    table, conv, a, b = random(96, 64, seed=5), random(12, 6, 3, 3, seed=3), random(8, 96), random(64, 8)
    head, norm = random(96, 64, seed=8), random(64, seed=9)
    down, up = random(8, 6, 3, 3, seed=6), random(12, 8, 1, 1, seed=7)
    embed = "base_model.model.model.embed_tokens"
    tensors = {f"{embed}.lora_embedding_A": a, f"{embed}.lora_embedding_B": b, "base_model.model.lm_head.weight": head}
    tensors |= {"base_model.model.conv1.lora_A.weight": down, "base_model.model.conv1.lora_B.weight": up}
    tensors |= lora(Q, 64, 64)
    adapter = write(tmp_path / "a", tensors, LORA)
    state = {
        "model.embed_tokens.weight": table,
        "conv1.weight": conv,
        "lm_head.weight": random(96, 64),
        f"{Q}.weight": random(64, 64),
        "model.norm.weight": norm,
    }
    base = write_checkpoint(tmp_path / "b", cast(state, torch.float32), CONFIG)
    model = {n: v.astype("f8") for n, v in state.items()} | {"lm_head.weight": head}
    model["model.embed_tokens.weight"] += 2 * (b.astype("f8") @ a).T
    model["conv1.weight"] += 2 * np.einsum("or,rikl->oikl", up[:, :, 0, 0].astype("f8"), down)
    pair = [tensors[f"base_model.model.{Q}.lora_{x}.weight"].astype("f8") for x in "AB"]
    model[f"{Q}.weight"] += 2 * pair[1] @ pair[0]
    found = right(specdiag.verify(base, adapter, save(tmp_path / "m", model, dtype)))
    assert sum(t.updated for t in found.tensors) == 3
    found = specdiag.verify(
        base, adapter, save(tmp_path / "w", model | {"lm_head.weight": state["lm_head.weight"]}, dtype)
    )
    assert [f.name for f in found.faults] == ["lm_head.weight"], "a module of modules_to_save that was lost"


def test_a_module_that_the_base_lacks(tmp_path: Path) -> None:
    state = base_state()
    pairs = factors(state)
    more = pairs | {"model.layers.7.self_attn.q_proj": pairs[Q]}
    base, adapter = save(tmp_path / "b", state), save_adapter(tmp_path / "a", more)
    found = specdiag.verify(base, adapter, save(tmp_path / "m", merged(state, pairs)))
    assert [(f.name, f.cause) for f in found.faults] == [("model.layers.7.self_attn.q_proj", "module missing")]


def test_a_base_that_has_none_of_the_modules_is_the_answer(tmp_path: Path) -> None:
    """More tensors differ than are missing, for want of the updates."""
    state = base_state()
    pairs = {Q: factors(state)[Q]}
    other = {name.replace("self_attn.q_proj", "self_attn.other"): values for name, values in state.items()}
    model = {name: values * 1.3 for name, values in merged(other, {}).items()}
    found = specdiag.verify(
        save(tmp_path / "b", other), save_adapter(tmp_path / "a", pairs), save(tmp_path / "m", model)
    )
    assert found.reason == (
        "the adapter changes modules that the base model does not have (1 tensor, and 1 more kind of fault)"
    )


def quantised(state, name):
    """Targets in codes, everything else in float32; the values that the tensors stand for beside them."""
    tensors, values = dict(cast(state, torch.float32)), {n: v.astype("f8") for n, v in state.items()}
    for module in modules():
        made = ALL[name].quantise(module, state[f"{module}.weight"].astype("f4"))
        del tensors[f"{module}.weight"]
        tensors |= made.tensors
        values[f"{module}.weight"] = made.values.astype("f8")
    return tensors, values


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_quantised_base_is_not_its_float_original(tmp_path: Path, name: str) -> None:
    state = base_state()
    tensors, values = quantised(state, name)
    pairs = factors(state)
    base, full = write_checkpoint(tmp_path / "q", tensors, CONFIG | ALL[name].config), save(tmp_path / "f", state)
    adapter = save_adapter(tmp_path / "a", pairs)
    model = save(tmp_path / "m", merged(values, pairs), torch.bfloat16)
    right(specdiag.verify(base, adapter, model))
    found = specdiag.verify(full, adapter, model)
    assert [f.cause for f in found.faults] == ["other base"] * 6


@pytest.mark.parametrize("name", ["int8", "ct4"])
def test_a_merge_that_was_quantised(tmp_path: Path, name: str) -> None:
    state = base_state()
    pairs = factors(state)
    base, adapter = save(tmp_path / "b", state), save_adapter(tmp_path / "a", pairs)
    for what, scale in (("right", 2.0), ("unscaled", 1.0), ("none", 0.0)):
        tensors, _ = quantised(merged(state, pairs, scale), name)
        found = specdiag.verify(base, adapter, write_checkpoint(tmp_path / what, tensors, CONFIG | ALL[name].config))
        causes = [f.cause for f in found.faults]
        assert causes == {"right": [], "unscaled": ["wrong scale"] * 6, "none": ["not applied"] * 6}[what]
    tiny = factors(state, 1e-4)
    adapter = save_adapter(tmp_path / "tiny", tiny)
    tensors, _ = quantised(merged(state, tiny), name)
    found = specdiag.verify(base, adapter, write_checkpoint(tmp_path / "t", tensors, CONFIG | ALL[name].config))
    assert found.verdict == "cannot be told"


def test_the_bias_of_an_update_is_added_to_its_module(tmp_path: Path) -> None:
    tensors = lora(Q, 64, 64) | {f"base_model.model.{Q}.lora_B.bias": random(64, seed=4)}
    adapter = write(tmp_path / "a", tensors, LORA | {"lora_bias": True})
    state = {f"{Q}.weight": random(64, 64), f"{Q}.bias": random(64, seed=2)}
    base = save(tmp_path / "b", state)
    a, b = (tensors[f"base_model.model.{Q}.lora_{x}.weight"].astype("f8") for x in "AB")
    weight = state[f"{Q}.weight"] + 2 * b @ a
    bias = state[f"{Q}.bias"] + 2.0 * tensors[f"base_model.model.{Q}.lora_B.bias"].astype("f8")
    found = right(specdiag.verify(base, adapter, save(tmp_path / "m", {f"{Q}.weight": weight, f"{Q}.bias": bias})))
    assert not found.not_compared
    without = save(tmp_path / "w", {f"{Q}.weight": weight, f"{Q}.bias": state[f"{Q}.bias"]})
    assert [f.name for f in specdiag.verify(base, adapter, without).faults] == [f"{Q}.bias"]


def test_dora_with_another_scale_or_in_another_module(tmp_path: Path) -> None:
    state = base_state()
    pairs = factors(state)
    magnitudes = {m: np.linalg.norm(state[f"{m}.weight"], axis=1) * 1.1 for m in pairs}
    tensors = {
        f"base_model.model.{m}.lora_{x}.weight": f for m, pair in pairs.items() for x, f in zip("AB", pair, strict=True)
    } | {f"base_model.model.{m}.lora_magnitude_vector": norms for m, norms in magnitudes.items()}
    settings = LORA | {"r": RANK, "lora_alpha": ALPHA, "use_dora": True}
    adapter = write(tmp_path / "a", {n: v.astype("f4") for n, v in tensors.items()}, settings)
    base = save(tmp_path / "b", state)

    def model(folder: str, scale: float, to: dict[str, str]) -> Path:
        made = {name: values.astype("f8") for name, values in state.items()}
        for m, (a, b) in pairs.items():
            v = made[f"{to.get(m, m)}.weight"] + scale * b @ a
            norms = magnitudes[m].astype("f4")[:, None]
            made[f"{to.get(m, m)}.weight"] = norms * v / np.linalg.norm(v, axis=1, keepdims=True)
        return save(tmp_path / folder, made)

    found = specdiag.verify(base, adapter, model("scaled", 3.0, {}))
    assert {(f.cause, f.detail) for f in found.faults} == {("wrong scale", "the scale was about 3 instead of 2")}
    other = Q.replace("s.0", "s.1")
    found = specdiag.verify(base, adapter, model("moved", 2.0, {Q: other, other: Q}))
    assert [f.cause for f in found.faults] == ["wrong module"] * 2


def test_a_module_that_the_adapter_lost(tmp_path: Path) -> None:
    state = base_state()
    pairs = factors(state)
    base = save(tmp_path / "b", state)
    adapter = save_adapter(tmp_path / "a", pairs, modules_to_save=["lm_head"])
    found = specdiag.verify(base, adapter, save(tmp_path / "m", merged(state, pairs)))
    assert [(f.name, f.cause) for f in found.faults] == [("lm_head", "lost by the adapter")]


def test_trained_tokens_alone(tmp_path: Path) -> None:
    state = base_state()
    rows = random(2, 64, seed=3)
    settings = {"peft_type": "TRAINABLE_TOKENS", "token_indices": [3, 7], "target_modules": ["embed_tokens"]}
    name = "base_model.model.model.embed_tokens.trainable_tokens_delta"
    adapter = write(tmp_path / "a", {name: rows}, settings)
    base, table = save(tmp_path / "b", state), state["model.embed_tokens.weight"].copy()
    found = specdiag.verify(base, adapter, base)
    assert [(f.name, f.cause) for f in found.faults] == [("model.embed_tokens.weight", "not applied")]
    same = write(tmp_path / "s", {name: table[[3, 7]]}, settings)
    assert specdiag.verify(base, same, base).verdict == "cannot be told"
    table[[3, 7]] = rows
    right(specdiag.verify(base, adapter, save(tmp_path / "m", state | {"model.embed_tokens.weight": table})))


def test_a_tied_head_that_training_took_apart(tmp_path: Path) -> None:
    """PEFT trains a copy of the embedding, and leaves the head with the base's."""
    state = base_state()
    del state["lm_head.weight"]
    pairs, table = factors(state), random(*state["model.embed_tokens.weight"].shape, seed=4)
    base = save(tmp_path / "b", state)
    adapter = save_adapter(tmp_path / "a", pairs, modules_to_save=["embed_tokens"])
    from safetensors.numpy import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    save_file(load_file(file) | {"base_model.model.model.embed_tokens.weight": table}, file)
    model = merged(state, pairs)
    head = {"lm_head.weight": model["model.embed_tokens.weight"], "model.embed_tokens.weight": table}
    right(specdiag.verify(base, adapter, save(tmp_path / "m", model | head, torch.bfloat16)))
    wrong = {"lm_head.weight": random(*table.shape, seed=9), "model.embed_tokens.weight": table}
    found = specdiag.verify(base, adapter, save(tmp_path / "w", model | wrong))
    assert [(f.name, f.cause) for f in found.faults] == [("lm_head.weight", "added")]
