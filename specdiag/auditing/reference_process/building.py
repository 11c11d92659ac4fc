"""Building the model of a configuration on the meta device. Nothing that it names is imported or run."""

from __future__ import annotations

import importlib
import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NoReturn, cast

from specdiag.auditing.reference_process import confinement
from specdiag.auditing.reference_process.failures import OURS, NoModelError, RefusedError, in_a_line, is_newer, version

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel


def load_transformers() -> None:
    """Import what every model needs.

    Raises:
        NoModelError: transformers is missing, or a version without the parts that are used here.
    """
    try:
        importlib.import_module("torch")
        from transformers import conversion_mapping, core_model_loading, modeling_utils, utils
        from transformers.models.auto import configuration_auto, modeling_auto

        utils.logging.set_verbosity_error()
        _ = (
            conversion_mapping.get_model_conversion_mapping,
            core_model_loading.convert_and_load_state_dict_in_model,
            modeling_utils.LoadStateDictConfig,
            configuration_auto.CONFIG_MAPPING,
            modeling_auto.MODEL_MAPPING,
        )
    except (ImportError, AttributeError) as error:
        raise NoModelError(f"transformers could not be used: {error}") from error


def build(
    config: dict[str, object], dtype: object = None, *, whole: bool = True, own_code: bool = False
) -> PreTrainedModel:
    """Build the model of a configuration on the meta device.

    Args:
        config: a checked copy of config.json.
        dtype: the type of values that config.json states; None where it states none.
        whole: whether the copy has every entry that a model may be built from.
        own_code: whether the repository brings code of its own, which is not run: a type that transformers has is built
            from transformers' own class, as its Auto classes do without trust_remote_code.

    Raises:
        RefusedError: transformers refuses the configuration.
        NoModelError: transformers has no such model, or it cannot be built.
    """
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str):
        _refuse_nameless(config)
    if kind == "mistral" and "layer_types" in config and "ministral" in CONFIG_MAPPING:
        kind = "ministral"  # as AutoConfig does
    if kind not in CONFIG_MAPPING:
        if own_code:
            raise NoModelError("config.json has auto_map: the model is code of the repository, which is not run")
        if kind.lower() in CONFIG_MAPPING:
            raise RefusedError(f"transformers {version()} has no model_type '{kind}'; it is '{kind.lower()}'")
        raise NoModelError(f"transformers {version()} has no model_type '{kind[:100]}'")
    guessed = False
    try:
        settings = CONFIG_MAPPING[kind].from_dict(deepcopy(cast("dict[str, Any]", config)))  # it changes nested entries
        _require_type(dtype)
        guessed = True
        model_class = _model_class(settings, config.get("architectures"))
        guessed = model_class.__name__ not in (config.get("architectures") or ())
        with torch.device("meta"):
            return model_class._from_config(settings, attn_implementation="eager")
    except NoModelError:
        raise
    except Exception as error:
        is_ours = isinstance(error, OURS) or bool(confinement.attempts) or guessed or not whole or is_newer(config)
        if is_ours:
            raise NoModelError(f"transformers {version()} cannot build it ({in_a_line(error)})") from error
        raise RefusedError(f"transformers {version()} refuses config.json ({in_a_line(error)})") from error


def _refuse_nameless(config: dict[str, object]) -> NoReturn:
    """Refuse a configuration without a model_type: as transformers does, where it names one of its classes."""
    import transformers

    stated = config.get("model_type")
    if stated is not None:
        raise RefusedError(f"model_type of config.json is {repr(stated)[:100]}, which is no name")
    names = config.get("architectures")
    if isinstance(names, list) and names and names[0] in dir(transformers):
        raise RefusedError("config.json has no model_type: transformers' Auto classes refuse it")
    raise NoModelError("config.json names no model_type")


def _require_type(dtype: object) -> None:
    """Take a type of values as transformers does before it builds a model."""
    import torch

    if dtype is None:
        return
    found = vars(torch).get(dtype) if isinstance(dtype, str) else None
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch has no dtype {dtype!r}")
    if not found.is_floating_point:
        raise ValueError(f"a model cannot be instantiated under dtype={found}, which is no floating-point type")
    before = torch.get_default_dtype()
    torch.set_default_dtype(found)
    torch.set_default_dtype(before)


def _model_class(settings: Any, architectures: object) -> Any:
    """Find the class that `architectures` names: in the module of its model type, or where an Auto class has it for it.

    Where it names none, or that of another model type, the base model: Auto classes go by the model type.
    """
    from transformers.modeling_utils import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    names = architectures if isinstance(architectures, list) else []
    if names:
        name = str(names[0])
        module = importlib.import_module(type(settings).__module__.replace(".configuration_", ".modeling_"))
        found = vars(module).get(name)
        transformers = importlib.import_module("transformers")
        if found is None and _is_mapped(settings.model_type, name):  # Sam2Model for sam2_video
            found = getattr(transformers, name)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
        if names[0] not in dir(transformers):
            raise NoModelError(f"transformers {version()} has no {name[:100]} for this model_type")
    base: Any = MODEL_MAPPING.get(type(settings), None)
    if base is None:
        raise NoModelError("config.json names no architecture, and its model_type has no base model")
    return base[0] if isinstance(base, tuple) else base


def _is_mapped(kind: str, name: str) -> bool:
    """Tell whether an Auto class with a head makes a class of a model type, or of one that it is a part of."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tables = [table for key, table in vars(modeling_auto).items() if re.fullmatch(r"MODEL_FOR_\w+_MAPPING_NAMES", key)]
    kinds = {of for table in tables for of, classes in table.items() if name == classes or name in _several(classes)}
    parts = (part for of in kinds for part in getattr(CONFIG_MAPPING[of], "sub_configs_defaults", {}).values())
    return kind in kinds or any(part.model_type == kind for part in parts)


def _several(classes: object) -> tuple[object, ...]:
    return cast("tuple[object, ...]", classes) if isinstance(classes, tuple) else ()
