"""The numbers of one model before and after its form changes: what moves, and what does not.

    python benchmarks/forms.py

SmolLM2-135M (`tests/assets.py`) gets another form that computes the same: the gains of its norms are folded into the
matrices that they feed, values of each group are mixed, rotary planes and neurons are rescaled. Writes the table
of docs/function.md to stdout, and how far the logits moved to stderr. Takes two minutes on one core.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import specdiag
from specdiag.records import ModuleRecord

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from assets import fetch

ROLES = ("q", "k", "v", "o", "gate", "up", "down", "qk", "ov", "du")
SEED = 0


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
    for name in ("alpha", "square_alpha", "stable_rank"):
        values = [v for r in held if (v := getattr(r, name)) is not None]
        found.append(f"{median(values):.3f}" if values else "")
    return found


def main() -> None:
    """Print the table."""
    model = load()
    first = logits(model)
    before = specdiag.analyze(model, function=True, device="cpu")
    change(model)
    moved = float((logits(model) - first).abs().max() / first.abs().max())
    after = specdiag.analyze(model, function=True, device="cpu")
    sys.stdout.write(
        "| role | alpha | after | square_alpha | after | stable rank | after |\n|---|---|---|---|---|---|---|\n"
    )
    for role in ROLES:
        pairs = zip(*(medians((*r.records, *r.function), role) for r in (before, after)), strict=True)
        sys.stdout.write(f"| {role} | {' | '.join(value for pair in pairs for value in pair)} |\n")
    sys.stderr.write(f"The logits moved by {moved:.1e} of the largest.\n")


if __name__ == "__main__":
    main()
