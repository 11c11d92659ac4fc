"""Builds the model of a checkpoint by transformers from a config.json, and loads its weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from specdiag.architecture.wrapper_names import without_wrappers
from specdiag.errors import SourceError, UsageError
from specdiag.live.parameters import live_parameters, untied
from specdiag.train.models.nano_gpt import register

_MASKS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias")
"""Causal masks that older programs saved."""
_FREQUENCIES = "inv_freq"

register()


@dataclass(frozen=True)
class Loaded:
    """A model with its weights.

    Attributes:
        model: the model.
        order: names of its Parameters, each once, in the order of the file.
        notes: sentences on a prefix of the names and on weights that were left out.
    """

    model: nn.Module
    order: list[str]
    notes: list[str] = field(default_factory=list[str])


def build(config: str | Path | None, folder: Path | None, dtype: torch.dtype, label: str) -> nn.Module:
    """Build a causal language model with random weights.

    Args:
        config: folder, config.json or hub id; None for the config.json of `folder`.
        folder: folder of the checkpoint; None for none.
        dtype: dtype of the weights.
        label: name of the checkpoint, for messages.

    Raises:
        UsageError: there is no configuration, or it is not of a causal language model.
        SourceError: transformers does not know the model.
    """
    if config is None and folder is not None and (folder / "config.json").is_file():
        config = folder
    if config is None:
        raise UsageError(
            f"{label} does not say which model it is: name it as config=, a folder with config.json, that file, or a "
            "hub id"
        )
    try:
        configuration = AutoConfig.from_pretrained(str(config), trust_remote_code=False)
        factory: Any = AutoModelForCausalLM
        model = factory.from_config(configuration, trust_remote_code=False, dtype=dtype)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"transformers cannot build the model of {config} ({reason})") from error
    classes = [str(name) for name in configuration.architectures or []]
    if classes and type(model).__name__.lower() not in [name.lower() for name in classes]:
        raise UsageError(f"{config} is a {classes[0]}; causal language models are continued, and it is none")
    return cast("nn.Module", model)


def dtype_of(weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    """Return the dtype of all matrices; float32 if they have several."""
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point() and tensor.ndim > 1}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def unwrapped(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove from the names what torch.compile adds to them."""
    return {without_wrappers(name): tensor for name, tensor in weights.items()}


def load(model: nn.Module, weights: Mapping[str, torch.Tensor], label: str) -> Loaded:
    """Load weights by name, under the only prefix with which they are complete (`module.`, `model.`, `net.`).

    Args:
        model: model to load into.
        weights: tensors by the names of the file.
        label: name of the file, for messages.

    Raises:
        SourceError: a weight is missing, has another shape, or is not one of the model.
        UsageError: the file has the model under several prefixes.
    """
    parameters = live_parameters(model)
    first = {parameter: name for name, parameter in untied(parameters).items()}
    weights = unwrapped(weights)
    prefix = _prefix(list(weights), parameters, label)
    within = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    notes = [f"Took the prefix '{prefix}' off the names in {label}."] if prefix else []
    left_out = [name for name in weights if not name.startswith(prefix)]
    if left_out:
        more = f" and {len(left_out) - 1} more." if left_out[1:] else "."
        notes.append(f"Left out of {label}: {left_out[0]}{more}")
    buffers = dict(model.named_buffers())
    known = {name: tensor for name, tensor in within.items() if name in parameters or name in buffers}
    for name in within.keys() - known.keys():
        _check_extra(name, within[name], buffers, label)
    for name, tensor in known.items():
        target = parameters.get(name, buffers.get(name))
        if target is not None and target.shape != tensor.shape:
            raise SourceError(
                f"{name} has shape {tuple(tensor.shape)} in {label} and {tuple(target.shape)} in its configuration: "
                "they are of different models"
            )
        own = first.get(cast("Any", target))
        if own is not None and own != name and own in known and not torch.equal(known[own], tensor):
            raise SourceError(f"the configuration ties {name} to {own}, and {label} has two of them that differ")
    cast("Any", model).load_state_dict(known, strict=False)
    order = dict.fromkeys(first[parameters[name]] for name in known if name in parameters)
    return Loaded(model, list(order), notes)


def _prefix(names: list[str], parameters: Mapping[str, nn.Parameter], label: str) -> str:
    """Find the prefix under which the file has every parameter of the model."""
    aliases: dict[torch.Tensor, list[str]] = {}
    for name, parameter in parameters.items():
        aliases.setdefault(parameter, []).append(name)
    present = set(names)
    anchor = next(iter(aliases.values()))
    prefixes = dict.fromkeys(
        name.removesuffix(alias) for alias in anchor for name in names if f".{name}".endswith(f".{alias}")
    )
    complete: list[str] = []
    fewest_missing: list[str] | None = None
    for prefix in prefixes:
        missing = [same[0] for same in aliases.values() if not any(prefix + alias in present for alias in same)]
        if not missing:
            complete.append(prefix)
        if fewest_missing is None or len(missing) < len(fewest_missing):
            fewest_missing = missing
    if len(complete) > 1:
        listed = ", ".join(f"'{prefix}'" for prefix in complete)
        raise UsageError(f"{label} holds the model under several prefixes ({listed}): save the one that was trained")
    if not complete:
        lost = fewest_missing if fewest_missing is not None else [same[0] for same in aliases.values()]
        example = f"; it has names like {names[0]}" if names else ""
        raise SourceError(
            f"{label} lacks weights of its configuration, such as {lost[0]} ({len(lost)} of {len(aliases)}){example}"
        )
    return complete[0]


def _check_extra(name: str, tensor: torch.Tensor, buffers: Mapping[str, torch.Tensor], label: str) -> None:
    """Refuse a tensor that is no weight, unless it is a causal mask or the frequencies that the model has itself."""
    if name.endswith(_MASKS) and (tensor.ndim == 4 or tensor.numel() == 1):
        return
    if name.endswith(_FREQUENCIES):
        frequencies = [buffer for buffer_name, buffer in buffers.items() if buffer_name.endswith(_FREQUENCIES)]
        agrees = [h.shape == tensor.shape and torch.allclose(h.float(), tensor.float(), rtol=1e-2) for h in frequencies]
        if not frequencies or any(agrees):
            return
        raise SourceError(f"{name} in {label} is not what the configuration gives: its rope_theta is another")
    raise SourceError(f"{label} holds {name}, which the model of its configuration has not")
