"""Reads nanoGPT's ckpt.pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from specdiag.errors import SourceError, UsageError
from specdiag.train.checkpoints.unread_optimizer import optimizer_file, optimizer_key
from specdiag.train.foreign.building import dtype_of, load
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.layouts import OLD_NANOGPT, assign
from specdiag.train.foreign.load import saved_optimizer
from specdiag.train.foreign.moments import decay_differences, moments_of
from specdiag.train.foreign.opening import SavedDict
from specdiag.train.foreign.reported_settings import ReportedSettings, plain
from specdiag.train.foreign.schedules import cosine, cosine_then_flat, rate
from specdiag.train.models.nano_gpt import NanoGPTConfig, NanoGPTForCausalLM

KIND = "nanoGPT checkpoint"
_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_KNOWN = {*_SIZES, "bias", "dropout"}
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""Linear layers that transformers' GPT-2 keeps transposed."""
_END_OF_TEXT = 50256


def is_nanogpt(content: SavedDict) -> bool:
    """True if nanoGPT's train.py wrote the content of a file."""
    return isinstance(content.get("model_args"), Mapping) and "iter_num" in content and "model" in content


def read_nanogpt(path: Path, content: SavedDict, layout: str | None) -> Foreign:
    """Read a checkpoint of nanoGPT.

    A model with biases becomes transformers' GPT-2. One without biases, which GPT-2 cannot have, becomes a model of
    specdiag.

    Args:
        path: the file.
        content: its content.
        layout: required layout of the optimizer; None to find it.

    Raises:
        UsageError: a changed nanoGPT wrote it, or it has no optimizer that can be continued.
        SourceError: its parts do not fit together.
    """
    label = path.name
    saved = saved_optimizer(
        content.get("optimizer"), label, optimizer_key(content) or optimizer_file(path.parent, own=True)
    )
    config = plain(content.get("config"))
    arguments = _arguments(content["model_args"], config, label)
    weights = cast("Mapping[str, torch.Tensor]", content["model"])
    own = _model(NanoGPTForCausalLM, NanoGPTConfig(**arguments), dtype_of(weights))
    loaded = load(own, weights, label)
    assigned, layout_name, note = assign(saved, own, [{"": loaded.order}], layout)
    old = layout_name == OLD_NANOGPT
    own.config.activation = "gelu_tanh" if old else "gelu"
    model: nn.Module = own
    transposed: set[str] = set()
    if arguments["bias"]:
        model = _gpt2(own)
        transposed = {name for name in loaded.order if name.endswith(CONV1D)}
    elif old:
        model = _model(NanoGPTForCausalLM, own.config, own.dtype, own.state_dict())
    reported = ReportedSettings()
    reported.optimizer(saved, label)
    _add_settings(reported, config, f"config in {label}")
    step = saved.step
    sentences = [
        note,
        *loaded.notes,
        *decay_differences(saved, assigned, model),
        _network(arguments, old),
        *_steps(int(content["iter_num"]), step),
        *_warm_up(reported, config, cast("float | None", saved.common("lr")), step),
        "nanoGPT draws its blocks at random and saves no random numbers: which it saw is not known.",
    ]
    return Foreign(
        kind=KIND,
        model=model,
        moments=moments_of(saved, assigned, transposed),
        optimizer=saved.kind or "adamw",
        step=step,
        settings=reported.settings,
        block_size=int(arguments["block_size"]),
        steps_total=reported.steps_total,
        notes=sentences,
    )


def _arguments(model_args: Mapping[str, Any], config: SavedDict, label: str) -> dict[str, Any]:
    unknown = [name for name in model_args if name not in _KNOWN]
    if unknown:
        raise UsageError(
            f"{label} is of a changed nanoGPT, with {', '.join(unknown)} in its model_args, whose network is not known "
            "here: go on in its own script, with specdiag.optim.AlphaDecay"
        )
    missing = [name for name in _SIZES if not isinstance(model_args.get(name), int)]
    if missing:
        raise SourceError(f"{label} has no {missing[0]} in its model_args")
    dropout = model_args.get("dropout", config.get("dropout", 0.0))
    return {
        **{name: int(model_args[name]) for name in _SIZES},
        "bias": bool(model_args.get("bias", True)),  # before 2023 there was no choice
        "dropout": float(dropout),
    }


def _gpt2(own: NanoGPTForCausalLM) -> nn.Module:
    settings = own.config
    end_of_text = _END_OF_TEXT if settings.vocab_size > _END_OF_TEXT else None
    config = GPT2Config(
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_embd=settings.n_embd,
        n_positions=settings.block_size,
        vocab_size=settings.vocab_size,
        activation_function="gelu" if settings.activation == "gelu" else "gelu_new",
        layer_norm_epsilon=1e-5,
        attn_pdrop=settings.dropout,
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    weights = own.state_dict().items()
    turned = {name: tensor.T if name.endswith(CONV1D) else tensor for name, tensor in weights}
    return _model(GPT2LMHeadModel, config, own.dtype, turned)


def _model(kind: Any, config: Any, dtype: torch.dtype, weights: Mapping[str, torch.Tensor] | None = None) -> Any:
    model = kind(config).to(dtype)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def _network(arguments: Mapping[str, Any], old: bool) -> str:
    kind = "transformers' GPT-2" if arguments["bias"] else "a nanoGPT without biases, which transformers' GPT-2 has not"
    gelu = "the GELU by tanh, as of its order, from before June 2023" if old else "the exact GELU, as since June 2023"
    return f"The model is {kind}: {arguments['vocab_size']} tokens with padding, {gelu}."


def _add_settings(reported: ReportedSettings, config: SavedDict, origin: str) -> None:
    reported.numbers(config, origin)
    peak = _number(config.get("learning_rate"))
    reported.add(origin, learning_rate=peak)
    if config.get("decay_lr") is False:
        reported.add(origin, lr_scheduler_type="constant")
    elif peak and all(_number(config.get(name)) is not None for name in ("warmup_iters", "lr_decay_iters", "min_lr")):
        warmup, end, total = int(config["warmup_iters"]), int(config["lr_decay_iters"]), reported.steps_total
        smallest = float(config["min_lr"])
        schedule = cosine(smallest, warmup) if end == total else cosine_then_flat(smallest / peak, warmup, end - warmup)
        reported.add(origin, **schedule)
    _precision(reported, config, origin)


def _precision(reported: ReportedSettings, config: SavedDict, origin: str) -> None:
    half = {"bfloat16": "bf16", "float16": "fp16"}.get(str(config.get("dtype")))
    if half is None or str(config.get("device", "cuda")).startswith("cpu"):  # nanoGPT computes in float32 on a CPU
        return
    if torch.cuda.is_available():
        reported.add(origin, **{half: True})
    else:
        reported.settings.notes.append(f"The run computed in {config['dtype']} on a GPU, and goes on in float32 here.")


def _steps(iterations: int, step: int) -> list[str]:
    if iterations == step:
        return []
    return [
        f"iter_num is {iterations} and the optimizer did {step} steps, as half precision skips some: {step} counts."
    ]


def _warm_up(reported: ReportedSettings, config: SavedDict, saved: float | None, step: int) -> list[str]:
    """Note if the lr of the next step differs, because nanoGPT's warm-up is not that of transformers."""
    values, peak = reported.settings.values, reported.settings.values.get("learning_rate")
    if saved is None or peak is None or "lr_scheduler_type" not in values:
        return []
    if values["lr_scheduler_type"] == "constant":
        return []
    ours = rate(peak, values, step, reported.steps_total or int(config["lr_decay_iters"]))
    if abs(ours - saved) <= 1e-6 * peak:
        return []
    warmup = int(config["warmup_iters"])
    where = f"in the warm-up of {warmup}, which is counted otherwise here" if step < warmup else "by its config"
    return [f"The lr of step {step + 1} is {saved:.4g} in the file and {ours:.4g} here, {where}."]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
