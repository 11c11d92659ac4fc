"""What config.json promises, and whether the checkpoint keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from specdiag.architecture.config import speaking_of
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord, Skipped

_LAYERS = re.compile(r"(\w+_)?(n_)?(layers?|hidden_groups)(_\w+)?|depths")
_EXTRA = re.compile(r"num_nextn_predict_layers")
_WIDTHS = re.compile(r"hidden_size|d_model|n_embd|dim|(\w+_)?embed(ding|dings)?_(\w+_)?(size|dim|width|rank)")
_VOCABULARY = re.compile(r"vocab_size|n_vocab")
_TOKENS = re.compile(
    r"(.*\.)?(embed_tokens|embed_in|wte|shared|word_embeddings|tok_embeddings|token_embedding)(\.weight)?"
)
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|predictions\.decoder)(\.weight)?")
_CODEBOOKS = "codebook"
"""Models of sound have several vocabularies, stacked in ways of their own."""
_GENERATES = re.compile(r".*(ForCausalLM|LMHeadModel)")

CONFIG_CHECKS = ("layers", "vocabulary", "hidden_size", "tied", "head")


def expectations(
    records: Sequence[ModuleRecord], skipped: Sequence[Skipped], config: Mapping[str, Any], architecture: str | None
) -> Iterator[Observation]:
    """Layers, embeddings and heads against config.json. What it does not say is not checked."""
    yield from _layers(records, config)
    yield from _embeddings(records, config)
    yield from _tied(records, config)
    if _promises_head(config, architecture) and not _has_head(records, skipped):
        yield Observation("head", None, "tie_word_embeddings is false")


def unsaid(config: Mapping[str, Any], architecture: str | None) -> dict[str, str]:
    """The checks that this config.json says too little for, with the reason."""
    if not config:
        return dict.fromkeys(CONFIG_CHECKS, "there is no config.json")
    silent = {"layers": _LAYERS, "vocabulary": _VOCABULARY, "hidden_size": _WIDTHS}
    reasons = {check: "config.json does not say it" for check, keys in silent.items() if not _said(config, keys)}
    if _tie(config) is not True:
        reasons["tied"] = "config.json does not say tie_word_embeddings: true"
    if not _promises_head(config, architecture):
        reasons["head"] = "config.json does not promise a head of its own"
    return reasons


def _layers(records: Sequence[ModuleRecord], config: Mapping[str, Any]) -> Iterator[Observation]:
    """Only of models of one piece and of encoders with decoders: others number the blocks of their pieces freely."""
    found: dict[str | None, set[int]] = {}
    for r in records:
        if r.layer is not None and (r.family in ("attention", "mlp") or r.role in ("ssm", "router")):
            found.setdefault(r.component, set()).add(r.layer)
    if found.keys() != {None} and not (found.keys() == {"encoder", "decoder"} and config.get("is_encoder_decoder")):
        return
    said = _said(config, _LAYERS)
    allowed = said | {layers + extra for layers in said for extra in _said(config, _EXTRA)}
    for component, present in found.items():
        yield from _unless(allowed, "layers", component, len(present))


def _embeddings(records: Sequence[ModuleRecord], config: Mapping[str, Any]) -> Iterator[Observation]:
    if any(_CODEBOOKS in str(key) for key in config):
        return
    for r in records:
        if (r.role == "embed" and _TOKENS.fullmatch(r.name)) or (r.role == "head" and _HEAD.fullmatch(r.name)):
            said = _said(config, _VOCABULARY)
            has_parts = any(isinstance(value, Mapping) for value in config.values())
            if not has_parts or r.rows < min(said, default=0):  # beside pictures, tokens are added to the text's
                yield from _unless(said, "vocabulary", r.key, r.rows)
            yield from _unless(_said(config, _WIDTHS), "hidden_size", r.key, r.cols)


def _unless(allowed: set[int], check: str, module: str | None, value: int) -> Iterator[Observation]:
    """An observation where config.json says numbers of this kind, and not this one: the nearest is expected."""
    if allowed and value not in allowed:
        yield Observation(check, module, value, min(allowed, key=lambda number: abs(number - value)))


def _said(config: Mapping[str, Any], keys: re.Pattern[str]) -> set[int]:
    """Every positive integer under such a key, in the parts of config.json too, and the sum of a list of them."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _said(cast("Mapping[str, Any]", value), keys)
        elif keys.fullmatch(str(key)):  # a live configuration has numbers for keys too
            numbers = cast("list[Any]", value) if isinstance(value, list) else [value]
            found.add(sum(number for number in numbers if type(number) is int))
    return {number for number in found if number > 0}


def _tied(records: Sequence[ModuleRecord], config: Mapping[str, Any]) -> Iterator[Observation]:
    """Embedding and head that the model will share although they hold different values."""
    if _tie(config) is not True:
        return
    tokens = [r for r in records if r.role == "embed" and _TOKENS.fullmatch(r.name)]
    for head in records:
        if head.role == "head":
            for embedding in tokens:
                same_shape = (embedding.rows, embedding.cols) == (head.rows, head.cols)
                if same_shape and embedding.storage_dtype == head.storage_dtype and embedding.digest != head.digest:
                    yield Observation("tied", head.key, f"differs from {embedding.key}")


def _tie(config: Mapping[str, Any]) -> bool | None:
    """What is said of tie_word_embeddings, the part on text before the whole."""
    said = [value for part in speaking_of(config, "text") if isinstance(value := part.get("tie_word_embeddings"), bool)]
    return said[0] if said else None


def _has_head(records: Sequence[ModuleRecord], skipped: Sequence[Skipped]) -> bool:
    """Whether there is a head, or a tensor left out that may be one."""
    return any(r.role == "head" for r in records) or any("head" in s.name or "tied to" in s.reason for s in skipped)


def _promises_head(config: Mapping[str, Any], architecture: str | None) -> bool:
    return _tie(config) is False and _GENERATES.fullmatch(architecture or "") is not None
