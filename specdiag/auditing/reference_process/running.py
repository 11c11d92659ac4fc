"""Running a model without values: whether a forward pass of it ends, and the entry of config.json that stops it.

A failure counts where the same class with transformers' default configuration of the type runs on inputs that are made
in the same way. Integers are computed and floats are not, so that a failure which needs their values is not seen.
"""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from specdiag.auditing.reference_process.failures import in_a_line, version
from specdiag.auditing.reference_process.faults import at_fault
from specdiag.auditing.reference_process.forward import Failure, TooSlowError, default, failure, limited, of_class
from specdiag.auditing.reference_process.inputs import MASKED, TEXT, Inputs, candidates

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

SECONDS = 20.0
"""Processor time of all forward passes together, those that look for the entry at fault included."""
_NAMED = 3
"""Entries that are named where sizes do not fit each other."""
_EXCHANGES = 40
"""Entries of config.json that are tried."""
_PLACEHOLDERS = tuple(f"{kind}_token_{end}" for kind in ("image", "video", "audio") for end in ("id", "index"))


def trial(
    model: PreTrainedModel, config: dict[str, object], seconds: float = SECONDS, *, exchanges: int = _EXCHANGES
) -> dict[str, object]:
    """Run a forward pass without values.

    Args:
        model: on the meta device, of this configuration.
        config: a checked copy of config.json.
        seconds: processor time that it may take.
        exchanges: entries that are exchanged for the default's, where it stops.

    Returns:
        Nothing where it ends; `stopped`, the words of the error, with `faults`, entries each of which alone stops it,
        as path, value and the default with which it runs; else `not_run`, why nothing can be said.
    """
    found: dict[str, object] = {"not_run": f"no forward pass without values ended within {seconds:g} s"}
    with contextlib.suppress(TooSlowError), limited(seconds):
        known = of_class(type(model), config)
        failures = _failures(known)
        if failures is None:
            return _placeholder(known)
        found = _judged(type(model), config, failures)
        if "stopped" in found:
            found["faults"] = faults = list[dict[str, object]]()
            for fault in islice(at_fault(type(model), config, cast("str", found["label"]), exchanges), _NAMED):
                faults.append(fault)
    found.pop("label", None)
    return found


def _judged(model_class: Any, config: dict[str, object], failures: dict[str, Failure]) -> dict[str, object]:
    """Hold failures against a model of the default configuration."""
    masked = next((name for name in failures if len(failures) == 1 and name.endswith(MASKED)), None)
    try:
        control = of_class(model_class, default(config))
        tried = ((name, given) for name, given in candidates(control) if name == masked or not masked)
        label = next((name for name, given in tried if failure(control, given) is None), None)
    except TooSlowError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the control raises, nothing can be said
        return {"not_run": f"{model_class.__name__} of the default configuration cannot be built ({in_a_line(error)})"}
    if label is None or label not in failures:
        first = next(iter(failures.values()), None)
        why = "no input is known" if first is None else first.words
        return {"not_run": f"{model_class.__name__} of transformers {version()} does not run without values ({why})"}
    if failures[label].is_ours:
        return {"not_run": f"its forward pass cannot run without values ({failures[label].words})"}
    return {"stopped": failures[label].words, "label": label}


def _placeholder(model: Any) -> dict[str, object]:
    """Find an id that stands for an image, a video or a sound, and that the model looks up beyond its table."""
    given = next((found for _, found in candidates(model) if "input_ids" in found), None)
    if given is None:
        return {}
    text = {name: value.clone() for name, value in given.items() if not value.is_floating_point()}
    for key in _PLACEHOLDERS:
        place = getattr(model.config, key, None)
        if not isinstance(place, int):
            continue
        rows = model.get_input_embeddings().weight.shape[0]
        if place >= rows and failure(model, text) is None:
            text["input_ids"][0, 0] = place
            met = failure(model, text)
            if met is not None and met.words.startswith(f"IndexError: index {place} "):
                fault = {"path": key, "stated": str(place), "usual": f"{rows - 1} or less"}
                return {"stopped": met.words, "faults": [fault]}
    return {}


def _failures(model: Any) -> dict[str, Failure] | None:
    """Try the inputs in turn; None where a forward pass ends."""
    failures: dict[str, Failure] = {}
    sets = dict(candidates(model))
    for label, given in sets.items():
        met = failure(model, given)
        if met is None:
            return _masked(model, sets, label)
        failures[label] = met
    return failures


def _masked(model: Any, sets: dict[str, Inputs], label: str) -> dict[str, Failure] | None:
    """Try a text that ran without a mask with one: positions may be counted from it alone."""
    masked = f"{label}{MASKED}"
    if label not in TEXT or masked not in sets or (met := failure(model, sets[masked])) is None or met.is_ours:
        return None
    return {masked: met}
