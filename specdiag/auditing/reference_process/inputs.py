"""Tiny inputs of a model, from the signature of its forward pass and the sizes of its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_LENGTH, _LONG = 8, 48
MASKED = " with masks"
"""End of the name of inputs that have masks, as a tokenizer gives them, beside those of the same name without."""
_MOST = 12
"""Sets of inputs that are tried."""
_SPECIAL = ("token_id", "token_index", "token_ids")
TEXT = {"input_ids", "decoder_input_ids", "text_input_ids"}
"""Names of inputs that are token ids, and of the sets that hold them alone."""
_SENSES = ("pixel_values", "input_features", "input_values", "audio_values", "audio", "waveform", "speech_values")
_MASKS = ("attention_mask", "input_features_mask", "padding_mask", "past_observed_mask", "pixel_mask")
_BINS = ("num_mel_bins", "input_feat_per_channel", "feature_size", "feature_projection_input_dim", "n_mels",
         "input_dim")  # fmt: skip
_POSITIONS = 1500
_WAVE = 16000
_PARTS = ("vision_config", "text_config", "audio_config", "encoder", "decoder", "backbone_config", "image_encoder",
          "encoder_config", "audio_encoder_config")  # fmt: skip
Inputs = dict[str, torch.Tensor]


def candidates(model: PreTrainedModel) -> Iterator[tuple[str, Inputs]]:
    """Yield sets of inputs with their names, the likeliest first. Which of them a class takes is for a run to tell.

    Args:
        model: on the meta device.
    """
    seen: set[str] = set()
    for label, given in _candidates(model):
        shapes = str({name: value.shape for name, value in given.items()})
        if given and shapes not in seen and len(seen) < _MOST:
            seen.add(shapes)
            yield label, given


def _candidates(model: Any) -> Iterator[tuple[str, Inputs]]:
    parameters = inspect.signature(model.forward).parameters
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    main = model.main_input_name if model.main_input_name in parameters else next(iter(parameters), "input_ids")
    text = {name: ids(model) for name in ("input_ids", "decoder_input_ids") if name in parameters}
    needed = {n: one for n in required if n != main and (one := _required(model, n)) is not None}
    decoder = {name: value for name, value in text.items() if name == "decoder_input_ids"}
    for label, values in _values(model, main):
        yield label, decoder | needed | {main: values}
    if text:
        others = [name for name in _SENSES if name in parameters and name != main]
        for label, values in (found for name in others for found in _values(model, name)):
            yield f"text and {label}", text | needed | {label.partition(" ")[0]: values}
        yield "text", text | needed
    if main in TEXT:  # a multiple of the lengths of usual chunks
        yield "long text", needed | {name: ids(model, _LONG) for name in text}
    for label, values in _values(model, main):
        length = values.shape[-1] if "over time" in label else values.shape[1]
        masks = {n: torch.ones(1, length, dtype=torch.long) for n in parameters if n in _MASKS}
        if masks:
            yield f"{label}{MASKED}", decoder | needed | masks | {main: values}
    dummy = cast("Inputs", model.dummy_inputs)
    yield "dummy", {n: v.to("meta") if v.is_floating_point() else v for n, v in dummy.items() if torch.is_tensor(v)}


def ids(model: PreTrainedModel, length: int = _LENGTH) -> torch.Tensor:
    """Token ids of one text, none of them special but the last, which ends a text where an id does that."""
    special = set(_special_ids(model.config.to_dict()))
    try:
        rows = cast("Any", model.get_input_embeddings()).weight.shape[0]
    except (AttributeError, NotImplementedError):
        rows = _find(model.config, ("vocab_size",), 100)
    plain = list(islice((i for i in range(3, rows) if i not in special), length))
    plain = (plain or [0]) * length
    end = _find(model.config, ("eos_token_id",), None)
    if isinstance(end, int) and 0 <= end < rows:
        plain[length - 1] = end
    return torch.tensor([plain[:length]])


def _special_ids(part: Any) -> Iterator[int]:
    for key, value in part.items() if isinstance(part, dict) else ():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif str(key).endswith(_SPECIAL):
            yield from (i for i in (value if isinstance(value, list | tuple) else [value]) if isinstance(i, int))


def _values(model: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield values of an input by its name, in the shapes that models take, each with a label that begins with it."""
    config = model.config
    if name in TEXT or name.endswith("input_ids"):
        yield name, ids(model)
        return
    shapes: Iterator[tuple[str, Sequence[int]]] = iter(())
    width = _find(config, ("hidden_size", "d_model", "n_embd"), 64)
    if "pixel" in name or name in ("images", "image"):
        shapes = _images(config, name)
    elif name in ("inputs_embeds", "hidden_states"):
        shapes = iter([("of the width", (1, _LENGTH, _one(width)))])
    elif name in _SENSES:
        shapes = _sounds(config)
    elif name == "past_values":
        lags = _find(config, ("lags_sequence",), [0])
        length = _one(_find(config, ("context_length",), 32)) + max(lags)
        shapes = iter([("channels", (1, length, _one(_find(config, ("num_input_channels", "input_size"), 1)))),
                       ("one", (1, length))])  # fmt: skip
    yield from ((f"{name} {kind}", torch.empty(tuple(shape), device="meta")) for kind, shape in shapes)


def _required(model: Any, name: str) -> torch.Tensor | None:
    """Make an input that a forward pass cannot do without, beside its main one."""
    if name.endswith("mask"):
        return torch.ones(1, _LENGTH, dtype=torch.long)
    if name.endswith("position_ids"):
        return torch.arange(_LENGTH)[None]
    return next((values for _, values in _values(model, name)), None)


def _images(config: Any, name: str) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield shapes of images or videos, of the stated size and of usual ones."""
    channels = _one(_find(config, ("num_channels", "in_channels", "in_chans", "num_input_channels"), 3))
    frames = _find(config, ("num_frames", "tubelet_size"), None)
    stated = _find(config, ("image_size", "img_size", "input_size", "crop_size"), None)
    sizes = {"stated": stated, "224": 224, "512": 512}
    for label, size in sizes.items():
        if size is None:
            continue
        height, width = size[-2:] if isinstance(size, list | tuple) and len(size) > 1 else (_one(size),) * 2
        if frames is not None or "video" in name:
            many = max(2, _one(frames or 8))
            yield f"{label} frames", (1, many, channels, height, width)
            yield f"{label} frames inside", (1, channels, many, height, width)
        yield label, (1, channels, height, width)
        yield f"{label} tiles", (1, 1, channels, height, width)
    patch = _one(_find(config, ("patch_size",), 14))
    yield "patches", (1, 16, channels * patch * patch)


def _sounds(config: Any) -> Iterator[tuple[str, Sequence[int]]]:
    """Yield shapes of sounds: features over time, time over features, or a wave."""
    bins = _one(_find(config, _BINS, 80))
    length = _find(config, ("max_source_positions",), None)
    if isinstance(length, int) and 0 <= length <= _POSITIONS:
        yield "bins over time", (1, bins, 2 * length)
    yield "stated length", (1, _one(_find(config, ("max_length",), 128)), bins)
    yield "128 steps", (1, 128, bins)
    yield "bins over time, 128", (1, bins, 128)
    yield "wave", (1, _WAVE)
    yield "wave of a channel", (1, 1, _WAVE)
    yield "picture", (1, 1, 1024, bins)


def _find(config: Any, names: tuple[str, ...], default: Any) -> Any:
    """Read the first of these entries that a configuration or one of its parts states."""
    parts = [config, *(part for key in _PARTS if (part := getattr(config, key, None)) is not None)]
    parts += [inner for part in parts[1:] for key in _PARTS if (inner := getattr(part, key, None)) is not None]
    found = (value for part in parts for name in names if (value := _entry(part, name)) is not None)
    return next(found, default)


def _entry(part: Any, name: str) -> Any:
    return part.get(name) if isinstance(part, dict) else getattr(part, name, None)


def _one(value: Any) -> int:
    return int(value[0]) if isinstance(value, list | tuple) else int(value)
