"""Checks of embedding and head: tied where config.json says so, and there where it says that they are not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files

from msgspec import Struct

from specdiag.architecture.config import model_types, sections
from specdiag.auditing import shards
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.files import toml_decoder
from specdiag.records import ModuleRecord, Skipped

TOKENS = re.compile(
    r"(.*\.)?(embed_tokens|embed_in|wte|shared|word_embeddings|tok_embeddings|token_embedding|token_embd)(\.weight)?"
)
"""Names of embeddings of tokens."""
HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|predictions\.decoder)(\.weight)?")
"""Names of heads over the vocabulary."""
_GENERATES = re.compile(r".*(ForCausalLM|LMHeadModel)")


class _Ties(Struct, frozen=True, forbid_unknown_fields=True):
    untied: frozenset[str]
    tied: frozenset[str]


_decode = toml_decoder(_Ties)


def heads(subject: Subject) -> Iterator[Observation]:
    """Find tied weights that differ, and heads that are missing.

    Args:
        subject: the subject of the audit.
    """
    if subject.adapter is None:
        yield from _tied(subject.report.records, subject.config)
    if reason := lacks_head(subject):
        yield Observation("head", None, reason)


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    if partial := shards.partial(subject.report):
        return dict.fromkeys(("tied", "head"), partial)
    if not subject.config:
        return {}
    tie = ties(subject.config)
    if tie is None:
        unknown = f"{subject.config_name} does not say whether they are tied, and its model_type has no known default"
        return dict.fromkeys(("tied", "head"), unknown)
    if tie:
        reasons = {"head": "the head is tied to the token embedding"}
        return reasons if subject.adapter is None else reasons | {"tied": "an adapter may change one of the two alone"}
    reasons = {"tied": "the head is not tied to the token embedding"}
    if not _generates(subject):
        reasons["head"] = f"{subject.config_name} names no architecture that has a head of its own"
    return reasons


def lacks_head(subject: Subject) -> str | None:
    """Tell that there is no head although the configuration does not tie it to the embedding.

    Args:
        subject: the subject of the audit.

    Returns:
        The words of config.json that ask for one; None where nothing is missing.
    """
    config, report = subject.config, subject.report
    if ties(config) is not False or not _generates(subject) or _has_head(report.records, report.skipped):
        return None
    return "tie_word_embeddings is false" + ("" if _stated_tie(config) is False else " by default")


def _generates(subject: Subject) -> bool:
    return _GENERATES.fullmatch(subject.report.provenance.architecture or "") is not None


def _tied(records: Sequence[ModuleRecord], config: Mapping[str, object]) -> Iterator[Observation]:
    """Find embeddings and heads that the model will share although they hold different values."""
    if ties(config) is not True:
        return
    tokens = [r for r in records if r.role == "embed" and TOKENS.fullmatch(r.name)]
    for head in records:
        if head.role == "head":
            for embedding in tokens:
                same_shape = (embedding.rows, embedding.cols) == (head.rows, head.cols)
                if same_shape and embedding.storage_dtype == head.storage_dtype and embedding.digest != head.digest:
                    yield Observation("tied", head.key, f"differs from {embedding.key}")


def ties(config: Mapping[str, object]) -> bool | None:
    """Read tie_word_embeddings; where it is absent, the default of the model type, None for an unknown one.

    Args:
        config: config.json.
    """
    stated = _stated_tie(config)
    if stated is not None:
        return stated
    kinds = _defaults()
    known = (kind for kind in model_types(sections(config, "text")) if kind in kinds.tied | kinds.untied)
    kind = next(known, None)
    return None if kind is None else kind in kinds.tied


def _stated_tie(config: Mapping[str, object]) -> bool | None:
    """Read tie_word_embeddings, from the part on text before the whole."""
    flags = [value for part in sections(config, "text") if isinstance(value := part.get("tie_word_embeddings"), bool)]
    return flags[0] if flags else None


def _has_head(records: Sequence[ModuleRecord], skipped: Sequence[Skipped]) -> bool:
    """Tell whether there is a head, or a tensor left out that may be one."""
    return any(r.role == "head" for r in records) or any("head" in s.name or "tied to" in s.reason for s in skipped)


@cache
def _defaults() -> _Ties:
    return _decode((files("specdiag.auditing") / "ties.toml").read_bytes())
