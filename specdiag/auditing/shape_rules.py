"""Rules on completeness from names and shapes alone, where there is no model of transformers to compare with.

They name only what no architecture leaves out: on the shapes of every model type of transformers they are silent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from specdiag.auditing.few_layers import odd_experts
from specdiag.auditing.heads import HEAD, TOKENS
from specdiag.auditing.stacks import Layer, Member
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord
from specdiag.report import SpectralReport

_USUAL = 0.5
"""A kind of layer is usual where at least this share of the layers is of it."""
_RARE = 0.1
"""Layers that lack something, or have another shape, are a fault where at most this share of them does."""
_LEAST = 3
"""Layers of the usual kind that there must be."""
_EMBEDS = re.compile(r"(.*\.)?(wte|shared|(word|tok|vocab|char|byte)\w*)(\..*)?")
_WRITES = re.compile(r".*(ForCausalLM|LMHeadModel|ForMaskedLM)")
_LEAST_VOCABULARY = 64
_ALMOST = 0.9
"""Rows of an embedding for each of the vocabulary, at least."""
_BEFORE = ("input_layernorm.weight", "attention_norm.weight")
"""A norm that stands before the attention of a layer: after the last layer such models have one more."""
_NOT_IN_THE_FIRST = ("attn_norm.weight",)
"""ModernBERT's embedding is normalised already."""
_NORM = re.compile(r"(.*[._])?(\w*norm\w*|ln\w*)\.(weight|scale|gamma)")
_PLACE = re.compile(r"[0-9]{1,9}(?=\.)")
_PLACED = re.compile(r"[0-9]{1,9}\.weight")
"""The name of a norm in a pipeline: its place in the list of all modules, embeddings and layers among them."""
_GAIN_OR_BIAS = re.compile(r"(.*[._])?(\w*norm\w*|ln\w*)\.(weight|scale|gamma)|(.*\.)?\w*bias")
_FEED_FORWARD = re.compile(r"\.(mlp|feed_forward)\.(\w+_proj|w[123])\.")
_BLOCK = ("gate", "up", "down")
_ATTENTION = ("q", "k", "v", "o")
_JOINED = frozenset({"q", "k", "v", "kv", "o", "gate", "up", "down"})


def missing(subject: Subject) -> Iterator[Observation]:
    """Find a token embedding, norms, and matrices of every layer that are missing.

    Args:
        subject: a whole checkpoint.
    """
    report, found = subject.report, subject.stacks
    writes = _WRITES.fullmatch(report.provenance.architecture or "") is not None
    if writes and _lacks_embedding(subject):
        yield Observation("missing_tensor", None, "no token embedding")
    for stem, layers in found.items():
        yield from _lacking_norms(stem, layers)
        if writes:
            yield from _lacking_everywhere(stem, layers)
    if len(found) == 1 and any(HEAD.fullmatch(r.name) or TOKENS.fullmatch(r.name) for r in report):
        yield from _lacking_final_norm(report, *next(iter(found.items())))


def reshaped(subject: Subject) -> Iterator[Observation]:
    """Find matrices that do not fit the others of their layer, and are shaped differently in the other layers.

    Args:
        subject: a whole checkpoint.
    """
    for layers in subject.stacks.values():
        odd = dict(_odd(layers))
        for layer in layers.values():
            if not any(r.key in odd for r in layer.matrices.values()):
                odd |= dict(_unlike_partner(layer)) | dict(odd_experts(layer))
        yield from (Observation("other_shape", key, said) for key, said in odd.items())


def _lacks_embedding(subject: Subject) -> bool:
    """Tell whether nothing but heads has a row for each token, although there is a vocabulary."""
    report = subject.report
    heads = [r for r in report if r.role == "head" and HEAD.fullmatch(r.name)]
    stated = subject.config.get("vocab_size")
    vocabulary = max((r.rows for r in heads), default=stated if isinstance(stated, int) else 0)
    if vocabulary < _LEAST_VOCABULARY or not subject.stacks:
        return False
    shapes = [(r.rows, r.cols) for r in report if not HEAD.fullmatch(r.name)] + [s.shape for s in report.skipped]
    if any(len(shape) > 1 and max(shape) >= _ALMOST * vocabulary for shape in shapes):
        return False
    return not any(_EMBEDS.fullmatch(name) for name in (*(r.name for r in report), *(s.name for s in report.skipped)))


def _lacking_norms(stem: str, layers: Mapping[int, Layer]) -> Iterator[Observation]:
    """Find norm gains and biases that a few layers lack and their like have."""
    if not any(layer.small for layer in layers.values()):
        return
    kinds = {number: (frozenset(layer.matrices), frozenset(layer.small)) for number, layer in layers.items()}
    (matrices, usual), n = Counter(kinds.values()).most_common(1)[0]
    poorer = [number for number, (m, small) in kinds.items() if m == matrices and small < usual]
    if n < max(_LEAST, _USUAL * len(layers)) or len(poorer) > max(1, _RARE * len(layers)):
        return
    for number in sorted(poorer):
        for name in sorted(usual - kinds[number][1]):
            if not _GAIN_OR_BIAS.fullmatch(name) or (number == 0 and name in _NOT_IN_THE_FIRST):
                continue
            yield Observation("missing_tensor", f"{stem}{number}.{name}", "not there")


def _lacking_everywhere(stem: str, layers: Mapping[int, Layer]) -> Iterator[Observation]:
    """Find the queries, or the matrix of a gated MLP, that no layer has although there are the others."""
    attention = {role for role in _ATTENTION for layer in layers.values() if layer.all_of(role)}
    if attention == {"k", "v", "o"}:
        yield Observation("missing_tensor", f"{stem}*", "query projection of attention in every layer")
    for experts in (False, True):
        roles = [{role for role in _BLOCK if layer.all_of(role, experts=experts)} for layer in layers.values()]
        there = set[str]().union(*roles)
        if there in ({"gate", "down"}, {"gate", "up"}):
            lost = "up" if "down" in there else "down"
            what = f"{lost} projection of {'the experts' if experts else 'the MLP'} in every layer"
            yield Observation("missing_tensor", f"{stem}*", what)


def _lacking_final_norm(report: SpectralReport, stem: str, layers: Mapping[int, Layer]) -> Iterator[Observation]:
    """Find that no norm follows layers which normalise before their attention."""
    if not all(any(name in layer.small for name in _BEFORE) for layer in layers.values()):
        return
    outside = (s.name for s in report.skipped if len(s.shape) == 1 and _number(s.name, stem) not in layers)
    if not any(_NORM.fullmatch(name) or _PLACED.fullmatch(name, len(stem)) for name in outside):
        yield Observation("missing_tensor", None, "no norm after the last layer")


def _number(name: str, stem: str) -> int | None:
    """Read the number after the name of a list of layers; None outside of the list."""
    match = _PLACE.match(name, len(stem)) if name.startswith(stem) else None
    return None if match is None else int(match[0])


def _odd(layers: Mapping[int, Layer]) -> Iterator[tuple[str, str]]:
    """Find matrices whose shape a few layers alone have, where no other matrix of the layer changed with them."""
    usual = _usual_shapes(layers)
    changed = {
        number: {member: r for member, r in layer.matrices.items() if member in usual and _shape(r) != usual[member]}
        for number, layer in layers.items()
    }
    few = max(1, _RARE * len(layers))
    for members in changed.values():
        for member, r in members.items():
            others = [(_shape(o), usual[m]) for m, o in members.items() if m != member]
            is_rare = sum(member in m for m in changed.values()) <= few
            if r.role in _JOINED and is_rare and not _follows((_shape(r), usual[member]), others):
                yield r.key, f"{_written(_shape(r))}, not {_written(usual[member])} as in the other layers"


def _usual_shapes(layers: Mapping[int, Layer]) -> dict[Member, tuple[int, int]]:
    """Find the shape that most layers give each matrix."""
    counts: dict[Member, Counter[tuple[int, int]]] = {}
    for layer in layers.values():
        for member, r in layer.matrices.items():
            counts.setdefault(member, Counter())[_shape(r)] += 1
    found = {member: shapes.most_common(1)[0] for member, shapes in counts.items()}
    return {member: shape for member, (shape, n) in found.items() if n >= max(_LEAST, _USUAL * len(layers))}


def _follows(
    change: tuple[tuple[int, int], tuple[int, int]], others: list[tuple[tuple[int, int], tuple[int, int]]]
) -> bool:
    """Tell whether a dimension changed in another matrix of the layer as it did in this one: a design."""
    new, old = change
    steps = {(was, now) for was, now in zip(old, new, strict=True) if was != now}
    return any(
        was != now and (was, now) in steps
        for theirs_new, theirs_old in others
        for was, now in zip(theirs_old, theirs_new, strict=True)
    )


def _unlike_partner(layer: Layer) -> Iterator[tuple[str, str]]:
    """Find gate and up projections of one MLP, or the down projection after them, that do not fit together."""
    gates, ups, downs = ([r for r in layer.all_of(role) if _FEED_FORWARD.search(r.name)] for role in _BLOCK)
    if len(gates) == len(ups) == len(downs) == 1:
        gate, up, down = gates[0], ups[0], downs[0]
        if _shape(gate) != _shape(up):
            odd = up if gate.rows == down.cols else gate
            other = gate if odd is up else up
            yield odd.key, f"{_written(_shape(odd))}, and {other.key} is {_written(_shape(other))}"
        elif (down.cols, down.rows) != _shape(gate):
            yield down.key, f"{_written(_shape(down))}, and {gate.key} is {_written(_shape(gate))}"


def _shape(r: ModuleRecord) -> tuple[int, int]:
    return r.rows, r.cols


def _written(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"
