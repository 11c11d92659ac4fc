"""Small models to train, and what an optimizer sees while it steps."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

Q = "layers.0.self_attn.q_proj.weight"
"""A matrix of `Decoder`."""


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=n == "q") for n in "qkv")
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        return self.o_proj(nn.functional.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class Mlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(torch.relu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.self_attn, self.mlp = Attention(width), Mlp(width, inner)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        x = x + self.dropout(self.self_attn(x))
        return x + self.dropout(self.mlp(x))


class Decoder(nn.Module):
    """LLaMA's names, 1 k to 100 k values a matrix, dropout."""

    def __init__(self, layers=2, width=64, mlp=128, tied=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed_tokens = nn.Embedding(80, width)
        self.layers = nn.ModuleList(Block(width, mlp) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 80, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids, labels=None):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits.flatten(0, 1), input_ids.flatten()))


class ForTrainer(Decoder):
    def forward(self, input_ids, labels=None):
        return {"loss": super().forward(input_ids).loss}


def train(model, optimizers, steps, scheduler=None, decay=None, start=0):
    """`steps` steps of a plain loop; batches and dropout depend on the step number alone."""
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    for step in range(start, start + steps):
        torch.manual_seed(step)
        model(torch.randint(80, (2, 8))).loss.backward()
        if decay is not None:
            decay.step(step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def alike(first, second):
    """Tell whether all tensors of the first dict are the same in the second."""
    return all(torch.equal(first[name], second[name]) for name in first)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def decays_of_a_step(optimizer, model):
    """A dict that each step fills with the decay of every Parameter that is in force."""
    from specdiag.live.attaching import decays_in_force

    names = {p: name for name, p in model.named_parameters()}
    seen = {}
    optimizer.register_step_pre_hook(
        lambda held, *_: seen.update({names[p]: d for p, d in decays_in_force(held).items()})
    )
    return seen


def float32_errors(model, **options):
    """Bounds on the change by float32, of an exponent and of a ratio from 0.67 to 3."""
    import specdiag

    records = [r for r in specdiag.analyze(model, dtype="float32", **options) if r.alpha is not None]
    error = max(r.alpha_error for r in records)
    live = [r.alpha for r in records if r.family in ("attention", "mlp")]
    return error, 2 * error * (3 - 0.67) / (max(live) - min(live))
