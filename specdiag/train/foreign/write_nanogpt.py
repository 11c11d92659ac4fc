"""Writes a checkpoint of a run as nanoGPT's ckpt.pt, so that its train.py goes on from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.checkpoints.optimizer_state import Moments
from specdiag.train.foreign.layouts import NANOGPT, OLD_NANOGPT, Layout, layouts
from specdiag.train.foreign.load import MOMENTS
from specdiag.train.foreign.nanogpt import CONV1D
from specdiag.train.models.nano_gpt import NanoGPTConfig, NanoGPTForCausalLM

UNKNOWN_LOSS = 1e9
"""nanoGPT's best_val_loss before its first evaluation."""
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh"}
"""GPT-2's activations that nanoGPT's network has, by its name in NanoGPTConfig."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """State of a run beside its weights.

    Attributes:
        step: optimizer steps done.
        lr: learning rate of the next step.
        settings: arguments of the Trainer.
        steps_total: planned steps.
        moments: `step`, `exp_avg` and `exp_avg_sq` by the model's parameter name.
        best_loss: smallest loss on nanoGPT's val.bin; None if it was not measured.
        config: config of the ckpt.pt from which the run started; empty for none.
    """

    step: int
    lr: float
    settings: Mapping[str, Any]
    steps_total: int
    moments: Moments
    best_loss: float | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Network:
    """A model as nanoGPT's.

    Attributes:
        model: with nanoGPT's names and shapes.
        transposed: True if its linear layers were transposed for that.
    """

    model: NanoGPTForCausalLM
    transposed: bool

    @property
    def decayed(self) -> set[str]:
        """Names of the parameters that nanoGPT's optimizer decays."""
        return set(_layout(self.model).groups[0])


def nanogpt_content(network: Network, progress: Progress) -> Table:
    """Make the content of ckpt.pt: `model`, `optimizer`, `model_args`, `iter_num`, `best_val_loss` and `config`.

    Args:
        network: the model.
        progress: the run's state.
    """
    own = network.model
    arguments: Table = {
        name: getattr(own.config, name)
        for name in ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")
    }
    return {
        "model": own.state_dict(),
        "optimizer": _optimizer(network, progress),
        "model_args": arguments,
        "iter_num": progress.step,
        "best_val_loss": torch.tensor(UNKNOWN_LOSS if progress.best_loss is None else progress.best_loss),
        "config": {**progress.config, **arguments, **_config(progress)},
    }


def network_of(model: nn.Module) -> Network:
    """Return a model as nanoGPT's.

    Args:
        model: a nanoGPT of specdiag, or transformers' GPT-2.

    Raises:
        UsageError: nanoGPT has no such network.
    """
    if isinstance(model, NanoGPTForCausalLM):
        return Network(model, False)
    config = cast("Any", model).config
    kind = type(model).__name__
    if kind != "GPT2LMHeadModel":
        raise UsageError(
            f"ckpt.pt holds nanoGPT's network, and this is a {kind}: name a file that ends in .safetensors"
        )
    dropouts = {config.attn_pdrop, config.resid_pdrop, config.embd_pdrop}
    other = {
        "activation_function": config.activation_function not in _ACTIVATIONS,
        "n_inner": config.n_inner not in (None, 4 * config.n_embd),
        "layer_norm_epsilon": config.layer_norm_epsilon != 1e-5,
        "attn_pdrop, resid_pdrop and embd_pdrop": len(dropouts) > 1,
        "scale_attn_weights": not config.scale_attn_weights,
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
        "tie_word_embeddings": not config.tie_word_embeddings,
    }
    wrong = next((name for name, differs in other.items() if differs), None)
    if wrong is not None:
        raise UsageError(
            f"ckpt.pt holds nanoGPT's network, which has no such {wrong} as this GPT-2: name a file that ends in "
            ".safetensors"
        )
    own: Any = NanoGPTForCausalLM(
        NanoGPTConfig(
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            block_size=config.n_positions,
            vocab_size=config.vocab_size,
            dropout=dropouts.pop(),
            bias=True,
            activation=_ACTIVATIONS[config.activation_function],
        )
    ).to(cast("Any", model).dtype)
    own.load_state_dict({n: t.T if n.endswith(CONV1D) else t for n, t in model.state_dict().items()})
    return Network(own, True)


def _layout(own: NanoGPTForCausalLM) -> Layout:
    """Return the order of nanoGPT's AdamW: matrices, then vectors; before June 2023 in the order of their names."""
    wanted = OLD_NANOGPT if own.config.activation == "gelu_tanh" else NANOGPT
    return next(each for each in layouts(own, list(untied(live_parameters(own)))) if each.name == wanted)


def _optimizer(network: Network, progress: Progress) -> Table:
    """Make the state_dict of nanoGPT's AdamW."""
    parameters, layout = untied(live_parameters(network.model)), _layout(network.model)
    decays = (float(progress.settings["weight_decay"]), 0.0)
    betas = (float(progress.settings.get("adam_beta1", 0.9)), float(progress.settings.get("adam_beta2", 0.999)))
    groups: Sequence[Table] = [
        {"params": [parameters[name] for name in names], "weight_decay": decay}
        for names, decay in zip(layout.groups, decays, strict=True)
    ]
    eps = float(progress.settings.get("adam_epsilon", 1e-8))
    optimizer: Any = torch.optim.AdamW(groups, lr=progress.lr, betas=betas, eps=eps)
    for names in layout.groups:
        for name in names:
            moments = progress.moments[name]
            turned = network.transposed and name.endswith(CONV1D)
            optimizer.state[parameters[name]] = {"step": moments["step"]} | {
                key: cast("torch.Tensor", moments[key]).T.contiguous() if turned else moments[key] for key in MOMENTS
            }
    return optimizer.state_dict()


def _config(progress: Progress) -> Table:
    """Name the settings of the run as nanoGPT's train.py does."""
    settings, options = progress.settings, dict(progress.settings.get("lr_scheduler_kwargs") or {})
    warmup, peak = int(settings.get("warmup_steps", 0)), float(settings["learning_rate"])
    config: Table = {
        "learning_rate": peak,
        "max_iters": progress.steps_total,
        "weight_decay": float(settings["weight_decay"]),
        "beta1": float(settings.get("adam_beta1", 0.9)),
        "beta2": float(settings.get("adam_beta2", 0.999)),
        "grad_clip": float(settings.get("max_grad_norm", 1.0)),
        "batch_size": int(settings["per_device_train_batch_size"]),
        "gradient_accumulation_steps": int(settings.get("gradient_accumulation_steps", 1)),
        "decay_lr": settings["lr_scheduler_type"] != "constant",
        "warmup_iters": warmup,
    }
    kind = settings["lr_scheduler_type"]
    if kind in ("cosine", "cosine_with_min_lr"):
        config |= {"lr_decay_iters": progress.steps_total, "min_lr": float(options.get("min_lr", 0.0))}
    elif kind == "warmup_stable_decay" and not options.get("num_stable_steps"):
        config |= {
            "lr_decay_iters": warmup + int(options["num_decay_steps"]),
            "min_lr": peak * float(options.get("min_lr_ratio", 0.0)),
        }
    return config
