"""Loading names and shapes into transformers' own model, without values. Runs as a process of its own, by its path.

It reads {"config", "dtype", "whole", "generation", "tensors", "memory", "seconds"} from stdin and writes an answer to
stdout: what the loader missed, refused and left over, or the reason why there is no model. Nothing that config.json
names is imported or run: classes come from transformers' own tables, and once its modules are loaded the process can
neither connect nor start another.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

_FORBIDDEN = re.compile(r"socket\.(connect|getaddrinfo|bind|sendto)|subprocess\..*|os\.(exec|fork|posix_spawn|system)")
_LAYER = re.compile(r"(.*?\.[0-9]{1,9})\..+")
"""A name with the number of a layer, up to which the name is that of a module."""
_SMALL_FILE = 1 << 16
"""Libraries try whether a folder for temporary files can be written."""


_OURS = (ImportError, MemoryError, RecursionError, NotImplementedError, OSError)
"""Failures of this machine, and of building without values: they say nothing of a configuration."""
_attempts: list[str] = []
"""Events that were refused since the process was locked: a failure after one may come from it."""


class NoModelError(Exception):
    """There is no model to compare with; the message says why."""


class RefusedError(NoModelError):
    """Transformers makes no model of this configuration."""


def confine(memory: int, seconds: int) -> None:
    """Limit the memory and the time of this process, and keep it from writing large files.

    Args:
        memory: bytes that it may hold.
        seconds: processor time.
    """
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _SMALL_FILE),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (allowed, allowed))


def lock() -> None:
    """Refuse connections and further processes from here on."""

    def refuse(event: str, _: object) -> None:
        if _FORBIDDEN.fullmatch(event):
            _attempts.append(event)
            raise NoModelError(f"building it would need {event}")

    sys.addaudithook(refuse)


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


def build(config: dict[str, object], dtype: object = None, *, whole: bool = True) -> PreTrainedModel:
    """Build the model of a configuration on the meta device.

    Args:
        config: a checked copy of config.json.
        dtype: the type of values that config.json states; None where it states none.
        whole: whether the copy has every entry that a model may be built from.

    Raises:
        RefusedError: transformers refuses the configuration.
        NoModelError: transformers has no such model, or it cannot be built.
    """
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str):
        _refuse_nameless(config)
    if kind not in CONFIG_MAPPING:
        if kind.lower() in CONFIG_MAPPING:
            raise RefusedError(f"transformers {_version()} has no model_type '{kind}'; it is '{kind.lower()}'")
        raise NoModelError(f"transformers {_version()} has no model_type '{kind[:100]}'")
    guessed = False
    try:
        settings = CONFIG_MAPPING[kind].from_dict(cast("dict[str, Any]", dict(config)))
        _require_type(dtype)
        guessed = True
        model_class = _model_class(settings, config.get("architectures"))
        guessed = model_class.__name__ not in (config.get("architectures") or ())
        with torch.device("meta"):
            return model_class._from_config(settings, attn_implementation="eager")
    except NoModelError:
        raise
    except Exception as error:
        is_ours = isinstance(error, _OURS) or bool(_attempts) or guessed or not whole or _is_newer(config)
        if is_ours:
            raise NoModelError(f"transformers {_version()} cannot build it ({_said(error)})") from error
        raise RefusedError(f"transformers {_version()} refuses config.json ({_said(error)})") from error


def _refuse_nameless(config: dict[str, object]) -> NoReturn:
    """Refuse a configuration without a model_type: as transformers does, where it names one of its classes."""
    import transformers

    names = config.get("architectures")
    if isinstance(names, list) and names and names[0] in dir(transformers):
        raise RefusedError("config.json has no model_type: transformers' Auto classes refuse it")
    raise NoModelError("config.json names no model_type")


def refused_generation(model: PreTrainedModel, generation: object) -> str | None:
    """Explain why the content of generation_config.json stops the loader; None where it does not.

    Args:
        model: one that reads it where it can generate.
        generation: the content.
    """
    if not model.can_generate():
        return None
    try:
        _read_generation(generation)
    except RefusedError as error:
        return str(error)
    except NoModelError:
        return None
    return None


def _read_generation(generation: object) -> None:
    """Take the content of generation_config.json as transformers does."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(cast("dict[str, Any]", generation))
    except Exception as error:
        said = f"transformers {_version()} refuses generation_config.json ({_said(error)})"
        is_newer = isinstance(generation, dict) and _is_newer(cast("dict[str, object]", generation))
        raise (NoModelError if isinstance(error, _OURS) or _attempts or is_newer else RefusedError)(said) from error


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


def _is_newer(config: dict[str, object]) -> bool:
    """Tell whether a later version of transformers wrote a configuration."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(str(config.get("transformers_version", "0"))) > Version(_version())
    except InvalidVersion:
        return False


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


def _model_class(settings: Any, architectures: object) -> Any:
    """Find the class that `architectures` names in the module of its model type.

    Where it names none, or that of another model type, the base model: Auto classes go by the model type.
    """
    from transformers.modeling_utils import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    names = architectures if isinstance(architectures, list) else []
    if names:
        module = importlib.import_module(type(settings).__module__.replace(".configuration_", ".modeling_"))
        found = vars(module).get(str(names[0]))
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
        if names[0] not in dir(importlib.import_module("transformers")):
            raise NoModelError(f"transformers {_version()} has no {str(names[0])[:100]} for this model_type")
    base: Any = MODEL_MAPPING.get(type(settings), None)
    if base is None:
        raise NoModelError("config.json names no architecture, and its model_type has no base model")
    return base[0] if isinstance(base, tuple) else base


def _version() -> str:
    import transformers

    return transformers.__version__


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def answer(request: dict[str, object]) -> dict[str, object]:
    """Answer one request.

    Args:
        request: as read from stdin.
    """
    try:
        load_transformers()
        lock()
        config = cast("dict[str, object]", request["config"])
        model = build(config, request["dtype"], whole=bool(request["whole"]))
        said = refused_generation(model, request["generation"]) if "generation" in request else None
        try:
            found = compare(model, cast("dict[str, list[int]]", request["tensors"]))
            return {"transformers": _version(), "refused_generation": said, **found}
        except Exception as error:
            raise NoModelError(f"transformers {_version()} could not load its names ({_said(error)})") from error
    except RefusedError as error:
        return {"reason": str(error), "refused_config": str(error)}
    except NoModelError as error:
        return {"reason": str(error)}


def _main() -> None:
    out: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    request = json.load(sys.stdin)
    confine(request["memory"], request["seconds"])
    json.dump(answer(request), out)
    out.flush()
    os._exit(0)


if __name__ == "__main__":
    _main()
