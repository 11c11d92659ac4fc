"""Reasons why layers of equal spectra and products may still compute something else, in sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.function.arrays import Array
from specdiag.function.parts import Attention, Block
from specdiag.function.stored import StoredNorm, Weight
from specdiag.kinship.agreement import Part, Side, agreement, attention_agreement, mlp_agreement, plain_values
from specdiag.kinship.alignment import Indices
from specdiag.kinship.distances import Logs, match_heads
from specdiag.kinship.fingerprint import Fingerprint, Place, place
from specdiag.kinship.models import Model
from specdiag.kinship.records import Thresholds
from specdiag.kinship.rounding import explained
from specdiag.kinship.signs import ranges, weights_of
from specdiag.kinship.stated import different_settings
from specdiag.kinship.turning import turn_between
from specdiag.text.counts import percent

_TOLD: Mapping[Part, str] = {
    "scores": "Queries and keys score otherwise at other distances, or by their biases",
    "outputs": "Values and outputs of attention differ, or their biases",
    "mlp": "The MLP answers the same inputs otherwise",
    "router": "The router sends tokens to other experts",
}

_ONLY_SPECTRA = (
    "Only the spectra agree: the residual stream may have been turned, and no embeddings of both models tell by how "
    "much."
)


def doubts(
    models: tuple[Model, Model],
    prints: tuple[Fingerprint, Fingerprint],
    places: Indices,
    limits: Thresholds,
    device: str,
    *,
    is_turned: bool,
) -> list[str]:
    """List what speaks against one function although spectra and products agree.

    Args:
        models: both.
        prints: their fingerprints.
        places: of the layers side by side.
        limits: of cosines.
        device: where they are computed.
        is_turned: whether the residual stream of one is turned; embeddings tell by how much.

    Raises:
        SourceError: a tensor cannot be read.
    """
    a, b = models
    found = [f"The configs differ: {', '.join(named)}." for named in [list(_settings(a, b))] if named]
    found += [f"{side.record.label} was not compared whole. {side.left_out[0]}" for side in models if side.left_out]
    turn = None
    if is_turned:
        of_one = len({block.component for model in models for block in model.blocks.values()}) == 1
        turn = turn_between(a.checkpoint, b.checkpoint, a.record.width) if of_one else None
        if turn is None:
            return [*found, _ONLY_SPECTRA]
    return found + list(_of_layers(models, prints, places, limits, device, turn))


def _settings(a: Model, b: Model) -> Iterator[str]:
    return different_settings(a.checkpoint.config, b.checkpoint.config)


def _of_layers(
    models: tuple[Model, Model],
    prints: tuple[Fingerprint, Fingerprint],
    places: Indices,
    limits: Thresholds,
    device: str,
    turn: Array | None,
) -> Iterator[str]:
    low: dict[str, dict[int | None, float]] = defaultdict(dict)
    least = 1.0
    parts = [_parts(model) for model in models]
    for pair in places:
        spectra = [held.blocks[i] for held, i in zip(prints, pair, strict=True)]
        (block_a, attention_a), (block_b, attention_b) = (
            known[s.component, s.layer] for known, s in zip(parts, spectra, strict=True)
        )
        rows, cols = match_heads(*(Logs.of(s) for s in spectra))
        sides = Side(block_a, attention_a, rows.tolist()), Side(block_b, attention_b, cols.tolist(), turn)
        values = attention_agreement(*sides, device)
        named = {_TOLD[part]: value for part, value in values.items()}
        if attention_a is block_a.attention:
            named |= {_TOLD[part]: value for part, value in mlp_agreement(*sides, device).items()}
            named |= _others(sides, models)
        for name, value in named.items():
            least = min(least, value)
            if not value > limits.same_cosine:
                low[name][spectra[1].layer] = value
    for name, by_layer in low.items():
        several = "s" if len(by_layer) > 1 else ""
        yield f"{name} (layer{several} {ranges(by_layer)}): cosine {min(by_layer.values()):.3f}."
    if not low:
        yield from _small_change(models, least, limits)


def _small_change(models: tuple[Model, Model], least: float, limits: Thresholds) -> Iterator[str]:
    """Tell of a difference that rounding to 8 bits could make, where nothing was rounded so."""
    change = (2 * max(1 - least, 0.0)) ** 0.5
    if change <= limits.same_change:
        return
    allowed, kind = explained(models, limits)
    if change > allowed:
        yield (
            f"The layers differ by up to {percent(change, 1)}, and rounding to {kind} explains {percent(allowed, 1)}: "
            "a small fine-tune or edit."
        )


def _parts(model: Model) -> dict[Place, tuple[Block, Attention]]:
    """Find attention and cross-attention of each layer by their places in a fingerprint."""
    found: dict[Place, tuple[Block, Attention]] = {}
    for block in model.blocks.values():
        for attention, is_cross in ((block.attention, False), (block.cross, True)):
            if attention is not None:
                found[place(block.component, block.layer, is_cross=is_cross)] = block, attention
    return found


def _others(sides: tuple[Side, Side], models: tuple[Model, Model]) -> dict[str, float]:
    """Compare the tensors of a block that its wiring does not fold, where both models have one of that name."""
    first, second = (_strange(side.block, model) for side, model in zip(sides, models, strict=True))
    found: dict[str, float] = {}
    if sides[0].block.wiring.stream == "post":
        found |= {
            f"{name} is in one model alone": 0.0
            for name in sorted(first.keys() ^ second.keys())
            if "norm" in name.lower()
        }
    for name in sorted(first.keys() & second.keys()):
        values = [_by_head(held[name], side) for held, side in zip((first, second), sides, strict=True)]
        one, other = values
        if one is not None and other is not None:
            found[f"{name} differs"] = agreement(one, other) if one.size == other.size else 0.0
    return found


def _by_head(tensor: StoredTensor, side: Side) -> Array | None:
    """Read a tensor, its columns in the order of heads where it has one for each, as tables of distances have."""
    values = plain_values(tensor)
    if values is None or len(tensor.shape) != 2 or tensor.shape[-1] != side.attention.heads:
        return values
    return values.reshape(tensor.shape)[:, list(side.order)].reshape(-1)


def _strange(block: Block, model: Model) -> dict[str, StoredTensor]:
    """List tensors of a block that are neither its matrices and their biases nor norms in front of them, by name."""
    known = {weight.matrix.name for weight in _weights(block)}
    modules = {name.rpartition(".")[0] for name in known}
    known |= {weight.bias.name for weight in _weights(block) if weight.bias is not None}
    for norm in _norms(block):
        known |= {norm.gain.name} | (set() if norm.bias is None else {norm.bias.name})
    wiring, start = block.wiring, f"{block.path}."
    named = {wiring.post_attn: "the norm behind attention", wiring.post_mlp: "the norm behind the MLP"}
    found: dict[str, StoredTensor] = {}
    for tensor in model.checkpoint.stored or ():
        if tensor.name.startswith(start) and tensor.name not in known:
            if tensor.name.rpartition(".")[0] in modules:  # codes of a quantised matrix
                continue
            path, _, leaf = tensor.name[len(start) :].rpartition(".")
            leaf = {"gamma": "weight", "beta": "bias"}.get(leaf, leaf)
            found[f"{named.get(path, path)}.{leaf}".lstrip(".")] = tensor
    return found


def _weights(block: Block) -> Iterator[Weight]:
    yield from weights_of(block)
    for mlp in block.mlps[1:]:
        yield from (weight for weight in (mlp.gate, mlp.up, mlp.down) if weight is not None)
    if block.cross is not None:
        yield from (block.cross.q, block.cross.k, block.cross.v, block.cross.o)
    if block.router is not None:
        yield block.router[0]


def _norms(block: Block) -> Sequence[StoredNorm]:
    found: list[StoredNorm | None] = []
    for attention in (block.attention, block.cross):
        if attention is not None:
            found += [attention.norm, attention.kv_norm, attention.out, *(attention.head_norms or ())]
    for mlp in block.mlps:
        found += [mlp.norm, mlp.out]
    found += [block.router[1]] if block.router is not None else []
    return [norm for norm in found if norm is not None]
