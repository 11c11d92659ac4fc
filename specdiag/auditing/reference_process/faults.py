"""The entries of config.json that stop a forward pass, found by exchanging one after the other for the default's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

from specdiag.auditing.reference_process.forward import TooSlowError, default, failure, of_class
from specdiag.auditing.reference_process.inputs import candidates

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

if TYPE_CHECKING:
    pass

_FEW_LAYERS = 2
_KEPT = (
    "architectures", "model_type", "id2label", "num_hidden_layers", "layer_types", "first_k_dense_replace",
    "mlp_only_layers", "decoder_sparse_step",
)  # fmt: skip
"""Entries that are not exchanged: they name the model, or leave out the layers that stop it."""
_SIZE = 3
"""Suspicion of sizes, of which several may not fit each other."""
_ABSENT = object()
Path = tuple[str, ...]


def at_fault(
    model_class: type[PreTrainedModel], config: dict[str, object], label: str, exchanges: int
) -> Iterator[dict[str, object]]:
    """Exchange one entry after the other with that of the default configuration, and find those that make it run.

    Args:
        model_class: of transformers.
        config: a checked configuration, with which it stops.
        label: of the inputs at which it stops.
        exchanges: entries that are tried.

    Yields:
        The path, the value, and the value with which it runs: one entry, or several sizes that do not fit each other.

    Raises:
        TooSlowError: the time is over.
    """
    if not exchanges:
        return
    config = _shallow(model_class, config, label)
    differing = sorted(_differences(config, default(config), ()), key=lambda found: _suspicion(found[1]))
    for path, stated, usual in differing[:exchanges]:
        for other in dict.fromkeys((usual, _ABSENT)) if isinstance(stated, int) else (usual,):
            try:
                model = of_class(model_class, _exchanged(config, path, other))
                given = dict(candidates(model)).get(label)
                runs = given is not None and failure(model, given) is None
            except TooSlowError:
                raise
            except Exception:  # noqa: BLE001 - this exchange makes no model
                continue
            if runs:
                yield {"path": ".".join(path), "stated": _written(stated), "usual": _written(other)}
                if _suspicion(stated) < _SIZE:
                    return
                break


def _shallow(model_class: Any, config: dict[str, object], label: str) -> dict[str, object]:
    """Leave out all layers but two, where the model stops as well with these."""
    depth = config.get("num_hidden_layers")
    if not isinstance(depth, int) or depth <= _FEW_LAYERS:
        return config
    changed = config | {"num_hidden_layers": _FEW_LAYERS}
    try:
        model = of_class(model_class, changed)
    except Exception:  # noqa: BLE001 - entries that list all layers
        return config
    given = dict(candidates(model)).get(label)
    return config if given is None or failure(model, given) is None else changed


def _exchanged(config: dict[str, object], path: Path, other: object) -> dict[str, object]:
    changed = deepcopy(config)
    part: Any = changed
    for key in path[:-1]:
        part = part[key]
    if other is _ABSENT:
        del part[path[-1]]
    else:
        part[path[-1]] = other
    return changed


def _differences(config: dict[str, object], default: dict[str, object], above: Path) -> Iterator[tuple[Path, Any, Any]]:
    for key, value in config.items():
        usual = default.get(key, _ABSENT)
        if key in _KEPT or (type(usual) is type(value) and usual == value):
            continue
        if isinstance(value, dict) and isinstance(usual, dict):
            yield from _differences(cast("Any", value), cast("Any", usual), (*above, key))
        else:
            yield (*above, key), value, usual


def _suspicion(value: object) -> int:
    """Sort values by how likely they stop a model: none and words, numbers of 0 and less, fractions, sizes."""
    if value is None or isinstance(value, str | bool):
        return 0
    if isinstance(value, int | float):
        return 1 if not value > 0 else _SIZE - 1 if isinstance(value, float) else _SIZE
    return _SIZE - 1


def _written(value: object) -> str | None:
    return None if value is _ABSENT else json.dumps(value, default=repr)[:80]
