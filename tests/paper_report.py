"""The exponents of the paper's LLaMA-60M as a report, records to change it with, and a small model of its names."""

from __future__ import annotations

from models import PLACES
from saved_reports import made
from torch import nn

from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport
from specdiag.spectra.null import alpha_null
from specdiag.spectra.tails import hill

# Figure 1b of the paper: LLaMA-60M after training, layers 1 to 8, columns q k v o gate up down.
FIGURE_1B = [
    [1.747, 1.735, 3.169, 2.667, 2.266, 2.290, 2.490], [1.718, 1.706, 2.064, 1.951, 2.269, 2.349, 2.490],
    [1.725, 1.749, 2.049, 1.939, 2.357, 2.443, 2.390], [1.725, 1.738, 1.972, 1.903, 2.390, 2.453, 2.408],
    [1.718, 1.741, 1.905, 1.895, 2.393, 2.475, 2.455], [1.724, 1.759, 1.942, 1.854, 2.373, 2.492, 2.411],
    [1.682, 1.704, 1.848, 1.839, 2.351, 2.428, 2.520], [1.712, 1.713, 1.951, 1.900, 2.256, 2.309, 2.543],
]  # fmt: skip
ROLES = ("q", "k", "v", "o", "gate", "up", "down")


def record(name: str, role: str, layer: int | None, alpha: float | None, shape=(512, 512), **more) -> ModuleRecord:
    family = {"embed": "embedding", "head": "embedding", "router": "other"}.get(
        role, "attention" if role in ("q", "k", "v", "kv", "o") else "mlp"
    )
    values = {
        "status": "ok" if alpha is not None else "degenerate", "alpha": alpha, "tail": "hill", "method": "gram",
        "alpha_null": alpha_null(lambda e: hill(e, 0.5), shape), "storage_dtype": "F32", "compute_dtype": "float64",
    }  # fmt: skip
    return ModuleRecord(
        name=name, role=role, family=family, layer=layer, rows=shape[0], cols=shape[1], **(values | more)
    )


def llama(alphas, width=512, hidden=1376) -> SpectralReport:
    """A LLaMA with the given exponents by layer and role, embeddings and head beside."""
    shapes = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden)]
    records = [record("model.embed_tokens.weight", "embed", None, 5.0, (32000, width))]
    for layer, row in enumerate(alphas):
        records += [
            record(f"model.layers.{layer}.{place}.weight", role, layer, alpha, shape)
            for place, role, alpha, shape in zip(PLACES, ROLES, row, shapes, strict=True)
        ]
    return made([*records, record("lm_head.weight", "head", None, 4.0, (32000, width))])


PAPER = llama(FIGURE_1B)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({f"{r}_proj": nn.Linear(width, width, bias=False) for r in "qkvo"})
        shapes = {"gate_proj": (width, hidden), "down_proj": (hidden, width), "up_proj": (width, hidden)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*shape, bias=False) for name, shape in shapes.items()})
        self.input_layernorm = nn.LayerNorm(width)


class Llama(nn.Module):
    def __init__(self, width: int = 64, hidden: int = 171, layers: int = 2) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(300, width)
        self.model.layers = nn.ModuleList(Block(width, hidden) for _ in range(layers))
        self.lm_head = nn.Linear(width, 300, bias=False)
