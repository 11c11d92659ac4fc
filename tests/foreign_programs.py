"""Other programs that train, in a few lines each: what their checkpoints hold, and the step that they would do next."""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
from pathlib import Path

import torch
import transformers
from torch import nn
from torch.nn import functional

TIME, BATCH, CLIP = 16, 4, 1.0
BETAS = (0.9, 0.95)


def batches(n, vocabulary=256, seed=0):
    """Blocks of the standard library's text."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:10]
    text = torch.tensor(list(b"".join(file.read_bytes() for file in files)[:60_000])) % vocabulary
    random = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - TIME, (n, BATCH), generator=random).tolist()
    return [torch.stack([text[at : at + TIME] for at in row]) for row in starts]


def train(optimizer, loss_of, data, lr_of=None, clip=CLIP):
    for step, batch in enumerate(data):
        for group in optimizer.param_groups if lr_of is not None else ():
            group["lr"] = lr_of(step)
        loss_of(batch).backward()
        if clip:
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        optimizer.step()
        optimizer.zero_grad()


class Norm(nn.Module):
    """nanoGPT's LayerNorm, whose bias is optional."""

    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight
        return y if self.bias is None else y + self.bias


class Attention(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.c_attn = nn.Linear(a["n_embd"], 3 * a["n_embd"], bias=a["bias"])
        self.c_proj = nn.Linear(a["n_embd"], a["n_embd"], bias=a["bias"])
        self.heads = a["n_head"]

    def forward(self, x):
        width, heads = x.shape[-1], []
        for q, k, v in zip(
            *(part.split(width // self.heads, -1) for part in self.c_attn(x).split(width, -1)), strict=True
        ):
            scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v)
        return self.c_proj(torch.cat(heads, -1))


class MLP(nn.Module):
    def __init__(self, a, old):
        super().__init__()
        self.c_fc = nn.Linear(a["n_embd"], 4 * a["n_embd"], bias=a["bias"])
        self.c_proj = nn.Linear(4 * a["n_embd"], a["n_embd"], bias=a["bias"])
        self.old = old

    def forward(self, x):
        x = self.c_fc(x)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return self.c_proj(x * (0.5 * (1 + (inner.tanh() if self.old else torch.erf(x / math.sqrt(2))))))


class Block(nn.Module):
    def __init__(self, a, old):
        super().__init__()
        self.ln_1 = Norm(a["n_embd"], a["bias"])
        self.attn = Attention(a)
        self.ln_2 = Norm(a["n_embd"], a["bias"])
        self.mlp = MLP(a, old)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's network, written again; `old` is that of before June 2023."""

    def __init__(self, a, old=False):
        super().__init__()
        blocks = nn.ModuleList([Block(a, old) for _ in range(a["n_layer"])])
        parts = {
            "wte": nn.Embedding(a["vocab_size"], a["n_embd"]),
            "wpe": nn.Embedding(a["block_size"], a["n_embd"]),
            "drop": nn.Dropout(a["dropout"]),
            "h": blocks,
            "ln_f": Norm(a["n_embd"], a["bias"]),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(a["n_embd"], a["vocab_size"], bias=False)
        self.transformer.wte.weight = self.lm_head.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.05)
            else:
                nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.05)  # biases of 0 would hide mistakes

    def forward(self, tokens):
        parts = self.transformer
        x = parts.wte(tokens) + parts.wpe(torch.arange(tokens.shape[1]))
        for block in parts.h:
            x = block(x)
        return self.lm_head(parts.ln_f(x))

    def loss(self, block):
        logits = self(block[:, :-1]).float()  # as transformers does it
        return functional.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())

    def optimizer(self, config, old=False):
        named = dict(self.named_parameters())
        decay = [name for name, p in named.items() if p.dim() >= 2]
        if old:
            tables = ("wte.weight", "wpe.weight")
            decay = sorted(name for name in decay if not name.endswith(tables))
        rest = [name for name in named if name not in decay]
        rest = sorted(rest) if old else rest
        groups = [
            {"params": [named[name] for name in decay], "weight_decay": config["weight_decay"]},
            {"params": [named[name] for name in rest], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=config["learning_rate"], betas=(config["beta1"], config["beta2"]))


def nano_lr(config, it):
    """Its get_lr."""
    peak, least, warmup, end = (config[k] for k in ("learning_rate", "min_lr", "warmup_iters", "lr_decay_iters"))
    if it < warmup:
        return peak * (it + 1) / (warmup + 1)
    if it > end:
        return least
    return least + 0.5 * (1 + math.cos(math.pi * (it - warmup) / (end - warmup))) * (peak - least)


def nano_run(path, *, bias, steps=6, old=False, compiled=True, model_args=None, dtype=torch.float64, **config):
    """Train and save before the next step, as train.py does; the model and optimizer go on from there.

    float64, because the gradient of a key's bias is 0 but for rounding, of which Adam makes whole steps.
    """
    torch.manual_seed(0)
    a = {
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "block_size": TIME,
        "bias": bias,
        "vocab_size": 256,
        "dropout": 0.0,
    } | (model_args or {})
    config = {
        "batch_size": BATCH, "block_size": TIME, "gradient_accumulation_steps": 5, "learning_rate": 1e-2, "max_iters": 60, "weight_decay": 0.1,
        "beta1": BETAS[0], "beta2": BETAS[1], "grad_clip": CLIP, "decay_lr": True, "warmup_iters": 3, "lr_decay_iters": 60, "min_lr": 1e-3,
        "device": "cpu", "dtype": "bfloat16",
    } | config  # fmt: skip
    model = NanoGPT(a, old).to(dtype)
    optimizer = model.optimizer(config, old)
    train(optimizer, model.loss, batches(steps), lambda it: nano_lr(config, it))
    for group in optimizer.param_groups:
        group["lr"] = nano_lr(config, steps)
    weights = model.state_dict()
    if compiled:
        weights = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    content = {
        "model": weights, "optimizer": optimizer.state_dict(), "model_args": a, "iter_num": steps,
        "best_val_loss": torch.tensor(3.0), "config": config,
    }  # fmt: skip
    torch.save(content, path)
    return model, optimizer, content


def llama(seed=0, **options):
    torch.manual_seed(seed)
    config = {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": TIME, "bos_token_id": None, "eos_token_id": None,
        "architectures": ["LlamaForCausalLM"],
    } | options  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def next_token_loss(model):
    return lambda batch: model(input_ids=batch, labels=batch).loss


def alphadecay_order(model):
    """The released code's own Llama defines gate, down, up."""
    for layer in model.model.layers:
        layer.mlp._modules["up_proj"] = layer.mlp._modules.pop("up_proj")
    return model


def alphadecay_groups(model, decay, ratios=(0.67, 3.0)):
    """One group for every linear layer but the first and the last, then the rest; decays as if by exponents."""
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)][1:-1]
    linears = [m for m in linears if min(m.weight.shape) >= 50]
    held = {p for m in linears for p in m.parameters()}
    low, high = ratios
    own = [low + (high - low) * i / max(len(linears) - 1, 1) for i in range(len(linears))]
    groups = [{"params": list(m.parameters()), "weight_decay": decay * r} for m, r in zip(linears, own, strict=True)]
    return [*groups, {"params": [p for p in model.parameters() if p not in held], "weight_decay": decay}]


def alphadecay_run(
    folder, *, optimizer="adam", safetensors=False, dtype=torch.float32, steps=5, ratios=(0.67, 3.0), **options
):
    model = alphadecay_order(llama(**options)).to(dtype)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    args = {
        "batch_size": BATCH, "total_batch_size": 4 * BATCH, "gradient_accumulation": 2, "world_size": 2, "num_training_steps": 40,
        "warmup_steps": 2, "weight_decay": 1e-2, "dtype": "float32", "scheduler": "cosine", "min_lr_ratio": 0.1, "max_length": TIME,
        "grad_clipping": 0.0, "seed": 3, "optimizer": optimizer, "use_modulewise_wd": True, "wd_min_ratio": 0.666, "wd_max_ratio": 3.0,
        "unbalancedWD_every": 500, "activation_checkpointing": False, "max_lr": 1e-2,
    }  # fmt: skip
    made = kinds[optimizer](alphadecay_groups(model, args["weight_decay"], ratios), lr=args["max_lr"])

    def factor(step):
        if step < 2:
            return step / 2
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 38))

    schedule = torch.optim.lr_scheduler.LambdaLR(made, factor)
    for batch in batches(steps):
        train(made, next_token_loss(model), [batch], clip=0)
        schedule.step()
    model.config.save_pretrained(folder)
    weights = dict(model.state_dict())
    for i in range(len(model.model.layers)):
        weights[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = model.model.rotary_emb.inv_freq
    if safetensors:
        model.save_pretrained(folder)
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    saved = {
        "optimizer": made.state_dict(), "scheduler": schedule.state_dict(), "update_step": steps,
        "global_step": 2 * steps, "config": args, "wandb": "/runs/wandb", "dtype": "float32",
    }  # fmt: skip
    torch.save(saved, folder / "optimizer.pt")
    state = {
        "global_step": 2 * steps,
        "update_step": steps,
        "tokens_seen": 1,
        "tokens_seen_before": 0,
        "update_time": 0.1,
    }
    (folder / "training_state.json").write_text(json.dumps(state))
    return model, made, schedule


def lightning_run(path, *, steps=4, schedule="cosine", prefix="model."):
    """A checkpoint as Lightning 2.6 writes it, of a LightningModule with the model as attribute."""
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.2)
    made = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20, eta_min=1e-4) if schedule == "cosine" else None
    if schedule == "lambda":
        made = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for batch in batches(steps):
        train(optimizer, next_token_loss(model), [batch])
        if made is not None:
            made.step()
    total = {"ready": 3 * steps, "completed": 3 * steps, "started": 3 * steps, "processed": 3 * steps}
    content = {
        "epoch": 0, "global_step": steps, "pytorch-lightning_version": "2.6.6",
        "state_dict": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.batch_progress": {"total": total, "current": total}}},
        "callbacks": {}, "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [] if made is None else [made.state_dict()],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-2, "batch_size": BATCH, "gradient_clip_val": CLIP},
    }  # fmt: skip
    torch.save(content, path)
    return model, optimizer, content


def script_run(path, *, steps=4, named=False, trainer_groups=False, **extra):
    """A dictionary as a training script writes it, with its argparse.Namespace; compiled and wrapped in DDP."""
    model = llama()
    named_parameters = list(model.named_parameters())
    if trainer_groups:
        first = [p for n, p in named_parameters if "norm" not in n]
        rest = [p for n, p in named_parameters if "norm" in n]
        groups = [{"params": first, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    else:
        groups = (
            [(f"module.{n}", p) for n, p in reversed(named_parameters)] if named else [p for _, p in named_parameters]
        )
    optimizer = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.2)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, decay], [2])
    for batch in batches(steps):
        train(optimizer, next_token_loss(model), [batch])
        schedule.step()
    content = {
        "model_state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict(), "scheduler_state_dict": schedule.state_dict(), "epoch": 1,
        "step": steps, "args": argparse.Namespace(batch_size=BATCH, seed=5, grad_clip=CLIP, max_seq_len=TIME),
    } | extra  # fmt: skip
    torch.save(content, path)
    return model, optimizer, schedule
