"""Slices of tensor parallelism that are given as models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from audited_models import found
from models import llama_shapes
from safetensors.torch import save_file

import specdiag

WIDTH, HIDDEN, VOCABULARY = 64, 192, 160


def meta(width: int = WIDTH, heads: int = WIDTH) -> dict[str, torch.Tensor]:
    """A model under Meta's names."""
    state = {"tok_embeddings.weight": torch.randn(VOCABULARY, width), "norm.weight": torch.ones(width),
             "output.weight": torch.randn(VOCABULARY, width)}  # fmt: skip
    for layer in range(3):
        path = f"layers.{layer}."
        state |= {f"{path}attention.{n}.weight": torch.randn(heads, width) for n in ("wq", "wk", "wv")}
        state[f"{path}attention.wo.weight"] = torch.randn(width, heads)
        state |= {f"{path}feed_forward.{n}.weight": torch.randn(HIDDEN, width) for n in ("w1", "w3")}
        state[f"{path}feed_forward.w2.weight"] = torch.randn(width, HIDDEN)
        state |= {f"{path}{n}.weight": torch.ones(width) for n in ("attention_norm", "ffn_norm")}
    return state


def half(state: dict[str, torch.Tensor], by_columns: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Slices of one of two processes: columns of some matrices, rows of the others, vectors whole."""
    return {
        key: value if value.ndim == 1 else value.chunk(2, int(any(part in key for part in by_columns)))[0].clone()
        for key, value in state.items()
    }


def llama(heads: int = WIDTH) -> dict[str, torch.Tensor]:
    state = {
        key: torch.randn(shape) if len(shape) > 1 else torch.ones(shape)
        for key, shape in llama_shapes(3, WIDTH, HIDDEN, whole=True).items()
    }
    return {
        k: v[:, :heads].clone() if "o_proj" in k else v[:heads].clone() if "self_attn" in k else v
        for k, v in state.items()
    }


def put(folder: Path, file: str, state: dict[str, torch.Tensor]) -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".safetensors"):
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path.parent


OF_LLAMA_2, OF_LLAMA_3 = ("wo.", "w2.", "tok_embeddings"), ("wo.", "w2.")


@pytest.mark.parametrize(
    ("file", "state"),
    [
        ("consolidated.00.safetensors", half(meta(), OF_LLAMA_2)),
        ("consolidated.00.safetensors", half(meta(), OF_LLAMA_3)),
        ("model.safetensors", half(meta(), OF_LLAMA_2)),
        ("weights.pth", half(meta(), OF_LLAMA_2)),
        ("mp_rank_00.pt", half(meta(), OF_LLAMA_3)),
        ("model-rank-0-part-0.safetensors", half(llama(), ("o_proj", "down_proj"))),
        ("tp_rank_00.safetensors", half(llama(), ("o_proj", "down_proj"))),
    ],
)  # fmt: skip
def test_a_slice_is_no_model(tmp_path, file, state):
    audit = specdiag.audit(put(tmp_path, file, state), device="cpu")
    (module,) = [module for check, module in found(audit) if check == "slice"]
    assert module.endswith(("layers.0.attention.wo.weight", "layers.0.self_attn.o_proj.weight"))
    assert ("slice", module) in found(audit)
    assert audit.verdict == "fail"


@pytest.mark.parametrize(
    ("file", "state"),
    [
        ("consolidated.00.pth", meta()),
        ("consolidated.00.safetensors", meta()),
        ("consolidated.safetensors", meta(heads=48)),  # as Mistral Nemo: heads narrower than the width
        ("model.safetensors", llama(heads=48)),
        ("model-rank-0-part-0.safetensors", llama()),
        ("ranker.safetensors", llama(heads=48)),
    ],
)  # fmt: skip
def test_models_of_narrow_heads_are_none(tmp_path, file, state):
    assert not [pair for pair in found(specdiag.audit(put(tmp_path, file, state), device="cpu")) if pair[0] == "slice"]
