"""Legacy checkpoints of Megatron: a folder for each tensor-parallel rank and pipeline stage, with one torch file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from specdiag.checkpoint.layouts.megatron_args import (
    GROUPED_SINCE,
    SHARED,
    describe_model,
    is_grouped,
    padding_notes,
    read_args,
)
from specdiag.checkpoint.layouts.megatron_slices import join_ranks
from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.one_save import require_same
from specdiag.checkpoint.layouts.parallel import Tensors, join
from specdiag.checkpoint.layouts.pieces import Place, TorchPart
from specdiag.checkpoint.listing import Listing
from specdiag.errors import SourceError
from specdiag.files import Table

_FILE = re.compile(r"mp_rank_(?P<tensor>\d+)(_(?P<stage>\d+))?(_(?P<expert>\d+))?/model_(optim_)?(rng|states)\.pt")
_MODEL = re.compile(r"model(?P<chunk>\d{0,4})")
_LAYER = re.compile(r"(?P<before>(.*?\.)?layers\.)(?P<layer>\d{1,6})(?P<after>\..*)")
_VOCABULARY = re.compile(r"(.*\.)?word_embeddings\.weight")
_FINAL_NORM = re.compile(r"(.*\.)?final_(layer)?norm\.weight")
_OUTPUT = re.compile(r"(.*\.)?output_layer\.weight")
_FETCH = "fetch all of its mp_rank folders"


@dataclass(frozen=True, slots=True)
class _Rank:
    """The file of one process.

    Attributes:
        file: opened.
        tensor: its place among the slices of each matrix.
        stage: its place in the pipeline.
        chunks: the weights of its model, or of its chunks where stages are virtual, by number.
        args: the arguments of the run, empty where the file has none.
    """

    file: TorchPart
    tensor: int
    stage: int
    chunks: dict[int, Tensors]
    args: Table


def read_megatron(place: Place) -> Listing:
    """Join the slices and the stages of a model.

    Args:
        place: the folder of one iteration.

    Returns:
        The tensors with layers numbered through all stages, notes, and what the run's arguments say of the model.

    Raises:
        SourceError: a rank is missing or damaged, ranks are not of one save, experts are cut too, or the version orders
            fused weights otherwise.
    """
    by_place = {
        (tensor, stage): _open(place, name, tensor, stage)
        for (tensor, stage, _), name in by_numbers(place, _FILE, "tensor", "stage", "expert").items()
    }
    ranks = list(by_place.values())
    described = next((rank for rank in ranks if rank.args), ranks[0])
    args = described.args
    _require_one_save(ranks)
    tensor_world, stage_world = 1 + max(r.tensor for r in ranks), 1 + max(r.stage for r in ranks)
    _refuse_experts(place, ranks)
    _require_all(place, ranks, args, tensor_world, stage_world)
    if len(ranks) > 1:
        _require_version(ranks[0].file)
    tensors: Tensors = {}
    begins: dict[str, int] = {}
    for chunk in sorted({chunk for rank in ranks for chunk in rank.chunks}):
        for stage in range(stage_world):
            slices = [_chunk(by_place[tensor, stage], chunk) for tensor in range(tensor_world)]
            _add_stage(join_ranks(slices, place.where), begins, tensors, place.where)
    _require_layers(place, begins, args)
    joined = [f"Joined {tensor_world} tensor-parallel ranks and {stage_world} pipeline stages."]
    rows = next((tensor.shape[0] for name, tensor in tensors.items() if _VOCABULARY.fullmatch(name)), None)
    config, doubts = describe_model(described.file.content)
    notes = (
        *(joined if len(ranks) > 1 else ()),
        *padding_notes(rows, args, tensor_world),
        *_missing_ends(tensors, begins, args),
        *doubts,
    )
    return Listing(list(tensors.values()), notes, config)


def _open(place: Place, name: str, tensor: int, stage: int) -> _Rank:
    file = place.open(name)
    keys: dict[int, str] = {}
    for key in file.content:
        if not isinstance(key, str) or not (match := _MODEL.fullmatch(key)):
            continue
        chunk = int(match["chunk"] or 0)
        if chunk in keys:
            raise SourceError(f"'{file.label}' holds both '{keys[chunk]}' and '{key}': save the model to analyse alone")
        keys[chunk] = key
    if not keys:
        raise SourceError(f"'{file.label}' holds no 'model', as Megatron's files do: name the file to read with file=")
    chunks = {chunk: _weights(file, file.content[key]) for chunk, key in keys.items()}
    return _Rank(file, tensor, stage, chunks, read_args(file.content.get("args")))


def _weights(file: TorchPart, model: object) -> Tensors:
    """List the weights of a model, without the state that layers of fp8 keep beside them."""
    found = file.tensors(model)
    return {name: found[name] for name in found if not name.rpartition(".")[2].startswith("_extra_state")}


def _chunk(rank: _Rank, chunk: int) -> Tensors:
    if chunk not in rank.chunks:
        raise SourceError(f"'{rank.file.label}' lacks 'model{chunk}', which other ranks hold: fetch it again")
    return rank.chunks[chunk]


def _add_stage(joined: Tensors, begins: dict[str, int], tensors: Tensors, where: str) -> None:
    """Add the tensors of a stage, whose layers begin at 0 in every stack, such as an encoder's and a decoder's.

    Args:
        joined: the tensors of the stage.
        begins: the number of the stage's first layer, by the names before it; moved on to the next stage's.
        tensors: of the model, to add to.
        where: the checkpoint, for messages.
    """
    counts: dict[str, int] = {}
    for name, tensor in joined.items():
        full, match = name, _LAYER.fullmatch(name)
        if match is not None:
            layer, stack = int(match["layer"]), match["before"]
            counts[stack] = max(counts.get(stack, 0), layer + 1)
            full = f"{stack}{begins.get(stack, 0) + layer}{match['after']}"
        both = [tensors[full], tensor] if full in tensors else [tensor]
        tensors[full] = replace(join(both, full, None, where), name=full)
    for stack, count in counts.items():
        begins[stack] = begins.get(stack, 0) + count


def _require_one_save(ranks: Sequence[_Rank]) -> None:
    files = [rank.file for rank in ranks]
    for name in ("iteration", "checkpoint_version"):
        require_same(files, (file.content.get(name) for file in files), name)
    for name in SHARED:
        require_same(files, (rank.args.get(name) for rank in ranks), name)


def _refuse_experts(place: Place, ranks: Sequence[_Rank]) -> None:
    world = ranks[0].args.get("expert_model_parallel_size", 1)
    named = any((match := _FILE.fullmatch(name)) and match["expert"] for name in place.names)
    names = {name for rank in ranks for chunk in rank.chunks.values() for name in chunk}
    unclear = not ranks[0].args and any(r.stage for r in ranks) and any("experts." in name for name in names)
    if (type(world) is int and world > 1) or named or unclear:
        raise SourceError(
            f"{place.where} divides its experts among processes, which is not joined: save it as torch_dist, or merge "
            "it with Megatron's tools/checkpoint/convert.py"
        )


def _require_all(place: Place, ranks: Sequence[_Rank], args: Table, tensor_world: int, stage_world: int) -> None:
    worlds = {"tensor_model_parallel_size": tensor_world, "model_parallel_size": tensor_world}
    worlds["pipeline_model_parallel_size"] = stage_world
    for name, world in worlds.items():
        said = args.get(name, world)
        if type(said) is int and said != world:
            raise SourceError(f"{place.where} holds {world} ranks where its {name} is {said}: {_FETCH}")
    there = {(rank.tensor, rank.stage) for rank in ranks}
    if len(there) < tensor_world * stage_world:
        rows = range(min(tensor_world, len(there) + 1))
        missing = next((t, s) for t in rows for s in range(min(stage_world, len(there) + 1)) if (t, s) not in there)
        stage = f"_{missing[1]:03d}" if stage_world > 1 else ""
        raise SourceError(f"{place.where} lacks mp_rank_{missing[0]:02d}{stage}: {_FETCH}")


def _require_layers(place: Place, begins: Mapping[str, int], args: Table) -> None:
    """Refuse fewer layers than the run had, where a stage is missing or another run's arguments lie beside them."""
    said, there = args.get("num_layers"), max(begins.values(), default=0)
    if type(said) is int and begins and there < said:
        raise SourceError(f"{place.where} holds {there} layers where num_layers in its args is {said}: {_FETCH}")


def _missing_ends(tensors: Tensors, begins: Mapping[str, int], args: Table) -> Iterator[str]:
    """Note a model without the tensors that Megatron keeps in its last stage."""
    if begins and not any(map(_FINAL_NORM.fullmatch, tensors)):
        yield "No final norm is there, which the last stage holds: a stage may be missing, or the run had none."
    if args.get("untie_embeddings_and_output_weights") is True and not any(map(_OUTPUT.fullmatch, tensors)):
        yield "No output_layer is there, which untie_embeddings_and_output_weights in the args promises."


def _require_version(file: TorchPart) -> None:
    if not is_grouped(file.content):
        version = file.content.get("checkpoint_version", 0)
        raise SourceError(
            f"'{file.label}' is of checkpoint_version {version!r:.20}, which orders queries, keys and values otherwise "
            f"than version {GROUPED_SINCE:g}: its parts are not joined; load and save it with a newer Megatron"
        )
