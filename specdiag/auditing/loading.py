"""Checks of what `from_pretrained` of transformers takes: files and tensors by their names, and quantised weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import cast

from specdiag.architecture.config import sections
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.checkpoint.loaded_names import LOADED
from specdiag.files import shortened
from specdiag.text.names import listed
from specdiag.text.printable import printable

_NAMES = ("wrapped", "quantised", "index")
_FILES = ("not_loaded", "only_variant")
_ONE = "needs a whole folder or repository, of which no file was picked"
_SETTINGS = ("quantization_config", "compression_config")
_SUFFIXES = (".safetensors", ".bin")
_WRITTEN = ("architectures", "transformers_version", "auto_map")
"""Entries of every config.json that transformers wrote, at least one."""
_MLX = "quantization"
_EXPLICIT = "transformers_weights"
"""The entry of config.json that names the file of the weights."""
_RUN = re.compile(r"random_states_\d+\.pkl")
"""The state of a run of accelerate, which is no model to be loaded by its folder."""
_VARIANTS = tuple(
    re.compile(rf"{re.escape(stem)}\.(?P<variant>\w+)\.{suffix}")
    for stem, _, suffix in (n.rpartition(".") for n in LOADED)
)
_WRAPPED = tuple(
    (re.compile(pattern, re.DOTALL), words)
    for pattern, words in (
        (r"Took the wrapper prefix '(?P<what>.*)' off the names\.", "names with the wrapper prefix '{}'"),
        (r"Took the weights under '(?P<what>.*?)' of .*\.bin\b.*", "the weights lie in a dictionary under '{}'"),
        (r"The (?P<what>\d+) layers of .* lie in one tensor each: .*", "{} layers lie in one tensor each"),
        (r"Objects of (?P<what>.*) in .*\.bin were not made, .*", "the file holds objects of {} beside tensors"),
        (r"Read the tensors of the (?P<what>.*) in .*\.bin; it was not made, .*", "the file holds a {}"),
    )
)
"""Remarks that reading a checkpoint leaves where its tensors do not lie as their names say."""
_INDEX = re.compile(
    r"(?P<index>\S+\.index\S*\.json) "
    r"(?P<what>has no (dictionary as its )?metadata|is written in .*, not in plain UTF-8)\."
)
_MISNAMED = re.compile(r"(?:.*/)?(?P<file>[^/]+) holds (?P<format>.*), which its name does not say\.", re.DOTALL)
_DEQUANTISED = re.compile(r"Dequantised \d+ tensors? from .*", re.DOTALL)
_CODES = re.compile(r"quantised or packed weights.*|scale of a quantised tensor", re.DOTALL)
_INTEGER_CODES = frozenset({"bitsandbytes", "gptq", "awq", "auto-round", "aqlm", "spqr", "vptq"})
"""Methods whose modules hold codes alone: plain weights find no place in them."""


def files(subject: Subject) -> Iterator[Observation]:
    """Find weights under names that transformers does not look for.

    Args:
        subject: the subject of the audit.
    """
    misnamed = (_MISNAMED.fullmatch(note) for note in subject.report.provenance.notes)
    yield from (Observation("not_loaded", None, f"{m['file']} holds {m['format']}") for m in misnamed if m)
    names, explicit = subject.names or (), subject.config.get(_EXPLICIT)
    if isinstance(explicit, str):
        if explicit not in names:
            said = printable(shortened(explicit))
            yield Observation("not_loaded", None, f"config.json names {said} as its weights, which is not there")
        return
    if any(name in names for name in LOADED):
        return
    variants = [match for name in names for pattern in _VARIANTS if (match := pattern.fullmatch(name))]
    if variants:
        said = listed((f"{match[0]} (variant={match['variant']!r})" for match in variants), 3)
        yield Observation("only_variant", None, f"only {said}")
    else:
        yield Observation("not_loaded", None, f"only {listed(subject.report.source.files, 3)}")


def configuration(subject: Subject) -> Iterator[Observation]:
    """Find weights of transformers without a config.json.

    Args:
        subject: the subject of the audit.
    """
    names, notes = subject.names or (), subject.report.provenance.notes
    is_damaged = any(note.startswith("Went on without a configuration") for note in notes)
    is_run = any(map(_RUN.fullmatch, names))
    if subject.config or is_damaged or is_run or subject.adapter is not None:
        return
    if any(name in names for name in LOADED):
        yield Observation("no_config", None, "config.json is " + ("empty" if "config.json" in names else "not there"))


def tensors(subject: Subject) -> Iterator[Observation]:
    """Find tensors whose names, or whose place in the file, are not those that transformers looks for.

    Args:
        subject: the subject of the audit.
    """
    for note in subject.report.provenance.notes:
        for pattern, words in _WRAPPED:
            if match := pattern.fullmatch(note):
                yield Observation("wrapped", None, words.format(match["what"]))
        if match := _INDEX.fullmatch(note):
            yield Observation("index", match["index"], match["what"])


def quantisation(subject: Subject) -> Iterator[Observation]:
    """Find codes that config.json does not announce, and an announcement without codes.

    Args:
        subject: the subject of the audit.
    """
    report = subject.report
    unread = [s.name for s in report.skipped if _CODES.fullmatch(s.reason)]
    codes = [*(r.name for r in report if r.dequantized), *unread]
    stated = [part for part in sections(subject.config, "text") if any(part.get(key) is not None for key in _SETTINGS)]
    if not stated:
        if unread or any(map(_DEQUANTISED.fullmatch, report.provenance.notes)):
            yield Observation("quantised", None, f"{codes[0]} is quantised, and config.json has no quantization_config")
        return
    settings = stated[0].get(_SETTINGS[0])
    method = _method(settings)
    if settings is not None and method is None:
        lacks = "names no quant_method" if isinstance(settings, Mapping) else "is no dictionary"
        yield Observation("quantised", None, f"quantization_config of config.json {lacks}")
    elif method in _INTEGER_CODES and not codes:
        yield Observation("quantised", None, f"plain weights, and quantization_config of config.json says {method}")


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if not subject.is_checkpoint:
        return {}
    reason = _other_loader(subject)
    reasons: dict[str, str] = {}
    if subject.names is None:
        reasons |= dict.fromkeys(("no_config", *_FILES), _ONE)
    if reason is not None:
        reasons |= dict.fromkeys((*_NAMES, *_FILES), reason)
    return reasons


def _other_loader(subject: Subject) -> str | None:
    """Explain why nothing is expected of the names: transformers does not load this checkpoint by itself."""
    source, config = subject.report.source, subject.config
    if subject.adapter is not None:
        return "an adapter is loaded by PEFT"
    if source.part is not None or source.kind == "memory":
        return "needs the files of one whole model"
    other = next((name for name in source.files if not name.endswith(_SUFFIXES)), None)
    if other is not None:
        return f"transformers does not load {other} by its name"
    if not isinstance(config.get("model_type"), str) or not any(key in config for key in _WRITTEN):
        return "config.json is not one of transformers"
    return "config.json is one of MLX" if _MLX in config else None


def _method(settings: object) -> str | None:
    """Read the method of a quantization_config as transformers does; None where it refuses it."""
    if not isinstance(settings, Mapping):
        return None
    entries = cast("Mapping[str, object]", settings)
    if entries.get("load_in_4bit") or entries.get("load_in_8bit"):
        return "bitsandbytes"
    method = entries.get("quant_method")
    return method.lower() if isinstance(method, str) else None
