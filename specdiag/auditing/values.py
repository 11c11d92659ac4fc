"""Checks of stored values, from the counts in a report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import cast

from specdiag.auditing import adapters
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_TINY = {"F64": 2.0**-1022, "F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}
"""Smallest normal value of each storage type."""
_NATURAL = 3.0
"""Allowed multiple of the share of denormals among normally distributed values. A choice: weights crowd around 0."""
_PARAMETRISED = ", which is parametrised in a way that the file does not tell"
_NOT_UNDERSTOOD = ("unsupported dtype", "quantised or packed", "quantised weights", "update of an unsupported")
_FINAL = re.compile(r"((model|transformer|gpt_neox|backbone|decoder|language_model|encoder)\.)*"
                    r"(norm|ln_f|norm_f|final_layer_?norm|final_norm)\.weight")  # fmt: skip
"""The norm after the last layer: every output goes through it."""
_FROM_ONE = (
    "gemma", "t5gemma", "vaultgemma", "recurrent_gemma", "minimax_m3", "muse_", "nemotron", "qwen3_5", "qwen3_next",
    "qwen4", "step3p7", "videoprism",
)  # fmt: skip
"""Types of transformers 5.23 with a norm that multiplies by 1 + gain."""
_OF_OTHERS = ("zero_gains", "zero_final_norm", "negative_variance")
_BUFFERS = ("integer buffer", "boolean buffer")


def values(subject: Subject) -> Iterator[Observation]:
    """Find bad values, and matrices without any.

    Args:
        subject: the subject of the audit.
    """
    is_empty = adapters.is_empty(subject)
    one_sided = {s.name for s in adapters.one_sided(subject)}
    for r in subject.report.records:
        if r.n_nonfinite:
            yield Observation("nonfinite", r.key, r.n_nonfinite)
        if r.n_saturated:
            yield Observation("saturated", r.key, r.n_saturated)
        if r.n_denormal:
            yield Observation("denormal", r.key, _unnatural_denormals(r))
        if r.status == "zero" and r.name not in one_sided and not (is_empty and r.key in subject.updates):
            yield Observation("zero", r.key, "all zero")
        if r.status == "failed":
            yield Observation("failed", r.key, "no spectrum")
        if not r.recognised:
            yield Observation("unrecognised", r.key, "no rule")
    for observed in subject.others:
        is_dead = observed.check == "zero_gains" and _FINAL.fullmatch(observed.module or "") is not None
        yield observed._replace(check="zero_final_norm") if is_dead and _multiplies(subject) else observed


def _multiplies(subject: Subject) -> bool:
    """Tell whether norms surely multiply by their gain: the type is one of transformers, and its gain counts from 0."""
    if subject.reference is None or subject.reference.reason is not None:
        return False
    return not any(kind.startswith(_FROM_ONE) for kind in _types(subject.config))


def _types(part: object) -> Iterator[str]:
    if isinstance(part, Mapping):
        for key, value in cast("Mapping[object, object]", part).items():
            if key == "model_type" and isinstance(value, str):
                yield value
            yield from _types(value)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    reason = "the values of norm gains and running variances are not seen here"
    return {} if subject.n_others is not None else dict.fromkeys(_OF_OTHERS, reason)


def incomplete(subject: Subject) -> Iterator[Observation]:
    """Find a report that an interruption cut short.

    Args:
        subject: the subject of the audit.
    """
    if not subject.report.complete:
        yield Observation("incomplete", None, f"{len(subject.report)} matrices")


def left_out(subject: Subject) -> Iterator[Observation]:
    """Find stored tensors that hold nothing, or nothing that could be read.

    Args:
        subject: the subject of the audit.
    """
    parametrised: set[str] = set()
    for s in subject.report.skipped:
        name = s.name if s.part is None else f"{s.name}[{s.part}]"
        if s.reason.startswith("empty"):
            yield Observation("empty", name, "x".join(map(str, s.shape)))
        elif s.reason.startswith(_NOT_UNDERSTOOD) or "not supported" in s.reason:
            yield Observation("unread", name, s.reason)
        elif s.reason in _BUFFERS and len(s.shape) > 1 and s.name.endswith(".weight"):
            yield Observation("unread", name, f"{s.dtype} values under the name of a weight")
        elif s.reason.endswith(_PARAMETRISED) and s.reason not in parametrised:
            parametrised.add(s.reason)  # the same for all parts of a weight, which it names
            weight = s.reason.removesuffix(_PARAMETRISED).removeprefix("part of ")
            yield Observation("unread", weight, "unknown parametrisation")


def _unnatural_denormals(r: ModuleRecord) -> float:
    """Compute the share of denormal values beyond that of healthy weights of this size in the storage type."""
    n = r.rows * r.cols * r.n_slices
    tiny = _TINY.get(r.storage_dtype, 0.0)
    natural, size = 0.0, (r.frobenius_norm or 0.0) / n**0.5
    if tiny and size > tiny:  # smaller weights are lost as a whole
        natural = math.erf(tiny / (size * 2**0.5))
    return max(0.0, r.n_denormal / n - _NATURAL * natural)
