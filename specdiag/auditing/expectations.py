"""What config.json promises, and whether the checkpoint keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from specdiag.architecture.config import number, speaking_of
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord, Skipped

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIDES = {
    "encoder": ("encoder_layers", "num_encoder_layers", "num_layers", "num_hidden_layers"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_layers"),
}
_SHARED = "num_hidden_groups"
_EXTRA = "num_nextn_predict_layers"
_WIDTHS = ("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "dim")
_VOCABULARY = ("vocab_size", "n_vocab")
_TOKENS = re.compile(r"(^|.*[._])(embed_tokens|embed_in|wte|shared|tok(en)?s?_emb\w*|word_emb\w*)(\.weight)?")
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
    said = speaking_of(config, "text")
    missing = {
        "layers": number(said, (*_LAYERS, *_SIDES["encoder"], *_SIDES["decoder"])) is None,
        "vocabulary": number(said, _VOCABULARY) is None,
        "hidden_size": number(said, _WIDTHS) is None,
        "tied": _tie(config) is not True,
        "head": not _promises_head(config, architecture),
    }
    if not config:
        return dict.fromkeys(missing, "there is no config.json")
    return {
        check: {
            "tied": "config.json does not say tie_word_embeddings: true",
            "head": "config.json does not promise a head of its own",
        }.get(check, "config.json does not say it")
        for check, absent in missing.items()
        if absent
    }


def _layers(records: Sequence[ModuleRecord], config: Mapping[str, Any]) -> Iterator[Observation]:
    found: dict[str | None, set[int]] = {}
    for r in records:
        if r.layer is not None and (r.family in ("attention", "mlp") or r.role in ("ssm", "router")):
            found.setdefault(r.component, set()).add(r.layer)
    for component, present in found.items():
        expected = _n_layers(config, component, alone=len(found) == 1)
        extra = number(speaking_of(config, "text"), (_EXTRA,)) or 0
        if expected is not None and not expected <= len(present) <= expected + extra:
            yield Observation("layers", component, len(present), expected)


def _n_layers(config: Mapping[str, Any], component: str | None, *, alone: bool) -> int | None:
    """How many layers a piece of the model has; of a piece beside others only what is said of it by name."""
    side = (component or "").rpartition(".")[2]
    if side in _SIDES:
        return number([config], _SIDES[side]) if config.get("is_encoder_decoder") else None
    chain = speaking_of(config, component)
    if not alone and component not in (None, "text"):
        chain = [part for part in chain if part is not config]
    return number(chain, (_SHARED,)) or number(chain, _LAYERS)


def _embeddings(records: Sequence[ModuleRecord], config: Mapping[str, Any]) -> Iterator[Observation]:
    for r in records:
        if r.family != "embedding" or r.component not in (None, "text", "encoder", "decoder"):
            continue
        chain = speaking_of(config, "text")
        vocabulary = number(chain, _VOCABULARY)
        is_tokens = r.role == "embed" and _TOKENS.fullmatch(r.name) is not None
        if vocabulary is not None and (is_tokens or r.role == "head") and r.rows != vocabulary:
            yield Observation("vocabulary", r.key, r.rows, vocabulary)
        widths = {width for key in _WIDTHS if (width := number(chain, (key,))) is not None}
        if widths and (is_tokens or r.role == "head") and r.cols not in widths:
            yield Observation("hidden_size", r.key, r.cols, max(widths))


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
