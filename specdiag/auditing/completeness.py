"""Checks of what a loader needs: tensors that are missing, have another shape, or are not taken.

Transformers' own model of config.json decides, where it could be built; else the rules from names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from specdiag.architecture.names import numbered
from specdiag.auditing import few_layers, heads, shape_rules, shards, structure
from specdiag.auditing.buffers import is_buffer
from specdiag.auditing.reference import CHECKS, Reference
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_OPTIONAL = re.compile(r"(.*\.)?(\w*bias|(q|k|query|key)_?(layer_?)?norm\.weight|pooler\..*)")
_FIXED = re.compile(r".*(inv_freq|mask(ed)?(_bias)?)")
"""Buffers of rotary positions and masks, which the model makes itself."""


def missing(subject: Subject) -> Iterator[Observation]:
    """Find tensors that the model needs and the files lack. Those that other checks name are left to them.

    Args:
        subject: the subject of the audit.
    """
    found = _answer(subject)
    if found is None:
        yield from shape_rules.missing(subject)
        if not subject.updates:
            yield from few_layers.differing(subject)
        return
    named = {o.module for o in structure.layers(subject)}
    has_head = heads.lacks_head(subject) is None
    optional = set(_optional(found, subject))
    for name, shape in found.missing.items():
        is_named = name in named or any(place and name.startswith(f"{place}.") for place in named)
        if not is_named and (has_head or not heads.HEAD.fullmatch(name)):
            check = "missing_optional" if name in optional else "missing_tensor"
            yield Observation(check, name, f"not there; the model's is {_written(shape)}")


def reshaped(subject: Subject) -> Iterator[Observation]:
    """Find tensors of another shape than the model has.

    Args:
        subject: the subject of the audit.
    """
    found = _answer(subject)
    if found is None:
        yield from shape_rules.reshaped(subject)
        return
    for name, stored, wanted in found.reshaped:
        if 0 not in stored:  # nothing is stored: the check `empty` says so
            yield Observation("other_shape", name, f"{_written(stored)}, not {_written(wanted)}")
    for name, words in found.refused.items():
        yield Observation("other_shape", name, f"the loader cannot put it together: {words[:200]}")


def unused(subject: Subject) -> Iterator[Observation]:
    """Find tensors that transformers' own model does not take, and those of them in layers that it has.

    Args:
        subject: the subject of the audit.
    """
    found = _answer(subject)
    if found is None:
        return
    is_quantised = "quantization_config" in subject.config  # its scales are no weights
    dropped = {n for n in found.dropped if not (is_quantised or is_buffer(n) or _FIXED.fullmatch(n))}
    for name in found.unused:
        yield Observation("dropped_tensor" if name in dropped else "unused_tensor", name, f"not in {found.model}")


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if reason := shards.partial(subject.report):
        return dict.fromkeys((*CHECKS, "layers_differ"), reason)
    if _answer(subject) is not None:
        return {"layers_differ": "transformers' own model decides"}
    reason = "a report does not carry config.json" if subject.reference is None else subject.reference.reason
    is_refused = subject.reference is not None and subject.reference.refused_config is not None
    checks = ("missing_optional", "unused_tensor", "dropped_tensor", *(() if is_refused else ("config_refused",)))
    return dict.fromkeys(checks, f"needs transformers' own model: {reason}")


def _answer(subject: Subject) -> Reference | None:
    found = subject.reference
    return found if found is not None and found.reason is None else None


def _optional(found: Reference, subject: Subject) -> Iterator[str]:
    """Find missing biases, norms of queries and keys, and poolers, of which no layer of the files has any."""
    report = subject.report
    stored = {_tail(name) for name in (*(r.name for r in report), *(s.name for s in report.skipped))}
    yield from (name for name in found.missing if _OPTIONAL.fullmatch(name) and _tail(name) not in stored)


def _tail(name: str) -> str:
    """Cut a name after the number of its layer, where it has one."""
    return numbered(name).partition("#.")[2] or name


def _written(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a number"
