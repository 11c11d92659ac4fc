"""A real training run, small enough for a test: a byte-level transformer on Python's own library, Adam, 60 steps."""

from __future__ import annotations

import json
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from models import write_checkpoint
from torch import nn

D, HEADS, LENGTH, BATCH = 64, 4, 32, 8


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(D, D, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (
            p(x).view(*x.shape[:2], HEADS, D // HEADS).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(x.shape))


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x)))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = _Attention(), _Mlp()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class TinyModel(nn.Module):
    """Two layers, 256 bytes in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(256, D), nn.Embedding(LENGTH, D)
        self.layers = nn.ModuleList(_Layer() for _ in range(2))
        self.norm, self.lm_head = nn.LayerNorm(D), nn.Linear(D, 256, bias=False)

    def forward(self, tokens):
        x = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def stdlib_bytes() -> torch.Tensor:
    """The first half megabyte of the standard library's modules, in the order of their names."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    data = b"".join(path.read_bytes() for path in files[:40])[: 1 << 19]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def train(folder: Path, steps: int = 60, every: int = 20, lr: float = 3e-3) -> list[float]:
    """Train on one thread, saving `checkpoint-N` as a Trainer does; the loss of every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, model = stdlib_bytes(), TinyModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    draws = torch.Generator().manual_seed(0)
    history: list[dict[str, float]] = []
    save(model, folder / "checkpoint-0", [], 0)
    for step in range(1, steps + 1):
        starts = torch.randint(len(data) - LENGTH - 1, (BATCH,), generator=draws)
        batch = torch.stack([data[s : s + LENGTH + 1] for s in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
        history.append({"step": step, "loss": loss.item(), "learning_rate": lr})
        if step % every == 0:
            save(model, folder / f"checkpoint-{step}", history, step)
    torch.set_num_threads(threads)
    return [entry["loss"] for entry in history]


def save(model: nn.Module, folder: Path, history: list[dict[str, float]], step: int) -> None:
    write_checkpoint(folder, model.state_dict())
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
