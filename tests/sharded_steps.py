"""A small LLaMA, whole or in shards, and steps whose gradients follow from the weights, value by value."""

from types import SimpleNamespace

import torch
from torch import nn

from specdiag.optim import NormWatch

SETTINGS = {
    "model_type": "llama", "hidden_size": 36, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
    "intermediate_size": 54, "num_hidden_layers": 2, "vocab_size": 81, "rms_norm_eps": 1e-6,
}  # fmt: skip


def whole_model(dtype=torch.float32):
    """Names and shapes of transformers' LLaMA, which no rank need import; it has no forward pass."""
    torch.manual_seed(0)
    sizes = {
        "q": (36, 40),
        "k": (36, 20),
        "v": (36, 20),
        "o": (40, 36),
        "gate": (36, 54),
        "up": (36, 54),
        "down": (54, 36),
    }
    layers = []
    for _ in range(2):
        linear = {f"{name}_proj": nn.Linear(*size, bias=False) for name, size in sizes.items()}
        layer = nn.Module()
        layer.self_attn, layer.mlp = nn.Module(), nn.Module()
        for i, (name, module) in enumerate(linear.items()):
            setattr(layer.self_attn if i < 4 else layer.mlp, name, module)
        layer.input_layernorm, layer.post_attention_layernorm = nn.RMSNorm(36), nn.RMSNorm(36)
        layers.append(layer)
    model = nn.Module()
    model.model = nn.Module()
    model.model.embed_tokens, model.model.layers = nn.Embedding(81, 36), nn.ModuleList(layers)
    model.model.norm, model.lm_head = nn.RMSNorm(36), nn.Linear(36, 81, bias=False)
    model.config = SimpleNamespace(to_dict=lambda: dict(SETTINGS))
    return model.to(dtype)


def steps(model, out=None, n=3, finish=True):
    """Take steps, the last at a rate that raises alerts; return what a norm watch says of all."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    taken = set(matrices)
    rest = [p for p in model.parameters() if p not in taken]
    optimizers = [torch.optim.AdamW(own, lr=1e-3, weight_decay=0.1, foreach=False) for own in (matrices, rest)]
    watch = NormWatch(model, optimizers, every=1, out=out)
    rows, alerts = [], []
    for step in range(n):
        for p in model.parameters():
            scaled = p.detach() * (37.0 + step)
            p.grad = scaled - scaled.round()
        watch.step(step)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.5 if step == 2 else 1e-3
            optimizer.step()
        rows += watch.latest
        alerts += [alert.message for alert in watch.alerts]
    if finish:
        watch.finish(n)
        rows += watch.latest
    return {
        "rows": [[row.step, row.module, row.metric, row.value] for row in rows],
        "alerts": alerts,
        "state": watch.state_dict(),
    }
