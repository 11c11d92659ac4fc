"""Loading names and shapes into a model, without values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_LAYER = re.compile(r"(.*?\.[0-9]{1,9})\..+")
"""A name with the number of a layer, up to which the name is that of a module."""


def compare(model: PreTrainedModel, shapes: dict[str, list[int]]) -> dict[str, object]:
    """Load tensors without values by the loader of this version of transformers.

    Args:
        model: on the meta device. It is changed.
        shapes: the shape of each tensor of the files by its name.

    Returns:
        `missing` names with their shapes, `reshaped` names with the stored and the expected shape, `refused` names with
        the loader's words, `unused` names, those of them in layers that the model has as `dropped`, and the `model`
        class.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    own = {name: [*tensor.shape] for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    modules = {name for name, _ in model.named_modules()}
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    mapping: list[Any] = get_model_conversion_mapping(model)
    names = _renamed(model, mapping, shapes)
    how = LoadStateDictConfig(device_map={"": "meta"}, weight_mapping=mapping)
    loaded, _ = convert_and_load_state_dict_in_model(model, state, how)
    model.tie_weights(missing_keys=loaded.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(loaded)  # pyright: ignore[reportPrivateUsage] - no public way
    refused = {
        names.get(name, name): said.strip().rpartition("\n")[2] for name, said in loaded.conversion_errors.items()
    }
    return {
        "model": type(model).__name__,
        "missing": {n: own[n] for n in sorted(loaded.missing_keys - loaded.conversion_errors.keys()) if n in own},
        "reshaped": sorted((names.get(n, n), [*stored], [*wanted]) for n, stored, wanted in loaded.mismatched_keys),
        "refused": refused,
        "unused": sorted({names.get(name, name) for name in loaded.unexpected_keys}),
        "dropped": sorted(
            names.get(name, name)
            for name in loaded.unexpected_keys
            if (layer := _LAYER.fullmatch(name)) and layer[1] in modules
        ),
    }


def _renamed(model: Any, mapping: list[Any], shapes: dict[str, list[int]]) -> dict[str, str]:
    """Map the names of the model to those of the file, where one tensor becomes one."""
    from copy import deepcopy

    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    own, rules = model.state_dict(), deepcopy(mapping)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    found: dict[str, str] = {}
    for name in sorted(shapes):
        target, converter = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if converter is None:
            found.setdefault(target, name)
    return found
