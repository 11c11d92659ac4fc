"""Checks of a checkpoint against its config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from specdiag.architecture.config import sections
from specdiag.auditing import shards
from specdiag.auditing.config_damage import damage
from specdiag.auditing.heads import HEAD, TOKENS
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_LAYERS = re.compile(r"(\w+_)?(n|num)_(\w+_)?(layers?|hidden_groups)(_\w+)?|(en|de)coder_layers")
_DEPTH = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_SIDES = {side: re.compile(rf"((n|num)_)?(hidden_)?{side}_layers?") for side in ("encoder", "decoder")}
"""Names under which a configuration counts the layers of one side, such as T5's num_decoder_layers."""
_STAGES = "depths"
_EXTRA = re.compile(r"num_nextn_predict_layers")
_WIDTHS = re.compile(r"hidden_size|d_model|n_embd|dim|(\w+_)?embed(ding|dings)?_(\w+_)?(size|dim|width|rank)")
_VOCABULARY = re.compile(r"vocab_size|n_vocab")
_CODEBOOKS = "codebook"
"""Models of sound have several vocabularies, stacked in ways of their own."""

_CHECKS = ("layers", "vocabulary", "hidden_size", "tied", "head")
_ENCODED = re.compile(r"\S*config\.json is written in .*, not in plain UTF-8\.")
"""The note on a config.json that only this reader understands."""


def damaged(subject: Subject) -> Iterator[Observation]:
    """Find a config.json that could not be read, or that loaders do not read.

    Args:
        subject: the subject of the audit.
    """
    if note := damage(subject.report.provenance.notes):
        yield Observation("config", None, note)
    encoded = (note for note in subject.report.provenance.notes if _ENCODED.fullmatch(note))
    yield from (Observation("config", None, note.removesuffix(".")) for note in encoded)


def refused(subject: Subject) -> Iterator[Observation]:
    """Find a config.json of which transformers makes no model, and a generation_config.json that it refuses.

    Args:
        subject: the subject of the audit.
    """
    found = subject.reference
    if found is not None:
        said = (found.refused_config, found.refused_generation)
        yield from (Observation("config_refused", None, words) for words in said if words is not None)


def expectations(subject: Subject) -> Iterator[Observation]:
    """Compare numbers of layers and the shapes of embeddings with config.json. Entries that it lacks are not checked.

    Args:
        subject: the subject of the audit.

    Yields:
        Numbers that differ from those of config.json.
    """
    records, config = subject.report.records, subject.config
    yield from _layers(records, config)
    yield from _embeddings(records, config)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks that cannot run on this source or config.json, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if partial := shards.partial(subject.report):
        return dict.fromkeys(_CHECKS, partial)
    if not subject.is_checkpoint:
        return {}
    if not subject.config:
        return dict.fromkeys(_CHECKS, subject.without_config)
    records, config = subject.report.records, subject.config
    reasons: dict[str, str] = {}
    if not _blocks(records, config):
        reasons["layers"] = "several pieces, stages, or no attention: their blocks are not counted"
    if not _over_tokens(records, config):
        reasons |= dict.fromkeys(("vocabulary", "hidden_size"), "no token embedding or head that is understood")
    silent = {"layers": _LAYERS, "vocabulary": _VOCABULARY, "hidden_size": _WIDTHS}
    unsaid = f"{subject.config_name} does not say it"
    reasons |= {check: unsaid for check, keys in silent.items() if not _integers(config, keys)}
    if reasons.get("layers") == unsaid and _without_layers(config) is not None:
        del reasons["layers"]
    return reasons


def _layers(records: Sequence[ModuleRecord], config: Mapping[str, object]) -> Iterator[Observation]:
    none = _without_layers(config)
    for component, present in _blocks(records, config).items():
        counts = {none} if none is not None else _layer_counts(config, component)
        allowed = counts | {layers + extra for layers in counts for extra in _integers(config, _EXTRA)}
        yield from _unless(allowed, "layers", component, len(present))


def _without_layers(config: Mapping[str, object]) -> int | None:
    """Read a number of layers of 0 or less, of which transformers makes a model without any."""
    stated = (part.get(key) for part in sections(config, "text") for key in _DEPTH)
    return next((n for n in stated if type(n) is int and n <= 0), None)


def _layer_counts(config: Mapping[str, object], component: str | None) -> set[int]:
    """Collect the numbers of layers that a piece may have: those of its own side, where the configuration has any."""
    if component not in _SIDES:
        return _integers(config, _LAYERS)
    other = _SIDES["encoder" if component == "decoder" else "decoder"]
    common = re.compile(rf"(?!(?:{other.pattern})$)(?:{_LAYERS.pattern})")
    return _integers(config, _SIDES[component]) or _integers(config, common)


def _blocks(records: Sequence[ModuleRecord], config: Mapping[str, object]) -> dict[str | None, set[int]]:
    """Collect the block numbers of a transformer of one piece, or of encoder and decoder, by piece.

    Other models number their blocks in their own ways, or several lists of them in one piece: none are given.
    """
    blocks: dict[str | None, set[int]] = {}
    lists: dict[str | None, set[str]] = {}
    for r in records:
        if r.layer is not None and (r.family in ("attention", "mlp") or r.role in ("ssm", "router")):
            blocks.setdefault(r.component, set()).add(r.layer)
            lists.setdefault(r.component, set()).add(re.split(rf"(?<![^.]){r.layer}(?![^.])", r.name, maxsplit=1)[0])
    if _STAGES in config or not any(r.family == "attention" or r.role == "ssm" for r in records):
        return {}
    is_pair = blocks.keys() == {"encoder", "decoder"} and config.get("is_encoder_decoder")
    if is_pair and any(len(of_piece) > 1 for of_piece in lists.values()):
        return {}
    return blocks if blocks.keys() == {None} or is_pair else {}


def _embeddings(records: Sequence[ModuleRecord], config: Mapping[str, object]) -> Iterator[Observation]:
    sizes = _integers(config, _VOCABULARY)
    parts = [cast("Mapping[str, object]", part) for part in config.values() if isinstance(part, Mapping)]
    has_parts = any(_integers(part, _VOCABULARY) for part in parts)
    for r in _over_tokens(records, config):
        if not has_parts or r.rows < min(sizes):  # models of images add tokens to those of the text
            yield from _unless(sizes, "vocabulary", r.key, r.rows)
        yield from _unless(_integers(config, _WIDTHS), "hidden_size", r.key, r.cols)


def _over_tokens(records: Sequence[ModuleRecord], config: Mapping[str, object]) -> list[ModuleRecord]:
    """Find embeddings and heads with a row for each token of the text."""
    if any(_CODEBOOKS in str(key) for key in config):
        return []
    patterns = {"embed": TOKENS, "head": HEAD}
    return [r for r in records if r.role in patterns and patterns[r.role].fullmatch(r.name)]


def _unless(allowed: set[int], check: str, module: str | None, value: int) -> Iterator[Observation]:
    """Observe a value that config.json does not allow; the nearest of its numbers is the expected one."""
    if allowed and value not in allowed:
        yield Observation(check, module, value, min(allowed, key=lambda number: abs(number - value)))


def _integers(config: Mapping[str, object], keys: re.Pattern[str]) -> set[int]:
    """Collect every positive integer under such a key of a configuration, in its sections too."""
    integers: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            integers |= _integers(cast("Mapping[str, object]", value), keys)
        elif type(value) is int and value > 0 and keys.fullmatch(str(key)):  # a live one may have other keys
            integers.add(value)
    return integers
