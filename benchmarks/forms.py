"""The numbers of one model before and after its form changes: what moves, and what does not.

    python benchmarks/forms.py

SmolLM2-135M (`tests/assets.py`) gets another form that computes the same: the gains of its norms are folded into the
matrices that they feed, values of each group are mixed, rotary planes and neurons are rescaled. Writes the tables
of docs/function.md and README to stdout, docs/figures/forms.png, and how far the logits moved to stderr. Takes two
minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import torch

import specdiag
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from assets import fetch

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "qk", "ov", "du")
METRICS = ("alpha", "square_alpha", "stable_rank", "pl_alpha")
SEED = 0
FIGURE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "forms.png"


def load() -> Any:
    """The model in float32 as transformers dequantises it."""
    import transformers

    folder = fetch("smollm2-gguf")
    (file,) = folder.glob("*.gguf")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()


@torch.no_grad()
def change(model: Any) -> None:
    """Change the form in place: fold gains, mix values, rescale rotary planes and neurons."""
    rng = torch.Generator().manual_seed(SEED)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng)

    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        heads, groups, h = model.config.num_attention_heads, model.config.num_key_value_heads, attention.head_dim
        for norm, readers in (
            (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight *= norm.weight
            norm.weight.fill_(1)
        o = attention.o_proj.weight.view(-1, heads, h)
        for group, v in enumerate(attention.v_proj.weight.view(groups, h, -1)):
            mix = normal(h, h) + 2 * h**0.5 * torch.eye(h)
            served = slice(group * heads // groups, (group + 1) * heads // groups)
            v.copy_(mix @ v)
            o[:, served] = o[:, served] @ torch.linalg.inv(mix)
        planes = torch.exp(0.5 * normal(groups, h // 2)).repeat(1, 2)
        attention.k_proj.weight.view(groups, h, -1).mul_(planes[..., None])
        attention.q_proj.weight.view(groups, -1, h, model.config.hidden_size).div_(planes[:, None, :, None])
        neurons = torch.exp(0.5 * normal(len(mlp.up_proj.weight)))
        mlp.up_proj.weight.mul_(neurons[:, None])
        mlp.down_proj.weight.div_(neurons)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Logits of fixed tokens."""
    return model(torch.arange(1000, 1064)[None]).logits


def medians(rows: Iterable[ModuleRecord], role: str) -> list[str]:
    """The median of each number of a role."""
    held = [r for r in rows if r.role == role and r.form == ("function" if role in ("qk", "ov", "du") else "stored")]
    found = []
    for name in METRICS:
        values = [v for r in held if (v := getattr(r, name)) is not None]
        found.append(f"{median(values):.3f}" if values else "")
    return found


def draw(before: SpectralReport, after: SpectralReport) -> None:
    """Draw alpha of each matrix and product by layer, before and after: stored roles above, the function below."""
    shown = (("q", "v", "up"), ("qk", "ov", "du"))
    figure, grid = plt.subplots(2, 3, figsize=(10, 5.2), sharex=True, layout="constrained")
    for axes, role in zip(grid.flat, (role for row in shown for role in row), strict=True):
        for report, label, look in ((before, "as released", "o"), (after, "after a change of form", "x")):
            rows = report.function if role in shown[1] else report.records
            layers = sorted({r.layer for r in rows if r.role == role and r.layer is not None})
            values = [
                median(r.alpha for r in rows if r.role == role and r.layer == layer and r.alpha is not None)
                for layer in layers
            ]
            axes.plot(layers, values, look, markersize=5 if look == "x" else 6, label=label, fillstyle="none")
        axes.set_title(f"{role} ({'function' if role in shown[1] else 'stored'})")
    for axes in grid[:, 0]:
        axes.set_ylabel("alpha")
    for axes in grid[1]:
        axes.set_xlabel("layer")
    grid[0, 0].legend()
    figure.suptitle("SmolLM2-135M before and after a change of form that changes no output")
    figure.savefig(FIGURE, dpi=90)


def main() -> None:
    """Print the table."""
    model = load()
    first = logits(model)
    before = specdiag.analyze(model, function=True, device="cpu")
    change(model)
    moved = float((logits(model) - first).abs().max() / first.abs().max())
    after = specdiag.analyze(model, function=True, device="cpu")
    heads = " | ".join(f"{name.replace('_', ' ') if name == 'stable_rank' else name} | after" for name in METRICS)
    sys.stdout.write(f"| role | {heads} |\n|{'---|' * (1 + 2 * len(METRICS))}\n")
    for role in ROLES:
        pairs = zip(*(medians((*r.records, *r.function), role) for r in (before, after)), strict=True)
        sys.stdout.write(f"| {role} | {' | '.join(value for pair in pairs for value in pair)} |\n")
    draw(before, after)
    sys.stderr.write(f"The logits moved by {moved:.1e} of the largest.\n")


if __name__ == "__main__":
    main()
