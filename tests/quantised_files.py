"""Checkpoints of quantised weights, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import write_checkpoint
from quantisers import FORMATS, NF4, VARIANTS, Tensors

from specdiag.checkpoint.memory import from_state_dict
from specdiag.checkpoint.tensors import Checkpoint

STEM = "layers.0.self_attn.q_proj"
QUERY = f"{STEM}.weight"
SCALE = "scale of a quantised tensor"
ALL = FORMATS | VARIANTS
I32, U8, I8 = torch.int32, torch.uint8, torch.int8


def weight(rows: int = 96, cols: int = 256) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32) * np.float32(0.02)


def written(folder: Path, tensors: Tensors, config: Mapping[str, Any], how: str = "safetensors") -> Path:
    write_checkpoint(folder, tensors, config)
    if how != "safetensors":
        (folder / "model.safetensors").unlink()
        torch.save(tensors, folder / "model.pt")
    return folder


def reasons(checkpoint: Checkpoint) -> dict[str, str]:
    return {entry.name: entry.reason for entry in checkpoint.skipped}


def opened(tensors: Tensors, config: Mapping[str, Any] | None = None) -> Checkpoint:
    return from_state_dict(tensors, config=config)


def nf4_of(state: object) -> Tensors:
    said = state if isinstance(state, bytes) else json.dumps(state).encode()
    return {
        QUERY: torch.zeros(2, 1, dtype=torch.uint8),
        f"{QUERY}.absmax": torch.tensor([2.0]),
        f"{QUERY}.quant_map": torch.from_numpy(NF4.copy()),
        f"{QUERY}.quant_state.bitsandbytes__nf4": torch.frombuffer(bytearray(said or b" "), dtype=torch.uint8),
    }
