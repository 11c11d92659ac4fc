"""Choice of the files that hold the model: one precedence for local and remote sources.

It never guesses between two different models of equal rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from specdiag.checkpoint.distributed.folders import accelerate_models, refuse_unfinished, slices_set
from specdiag.checkpoint.formats import FOREIGN_SUFFIXES, FORMATS, WEIGHT_SUFFIXES
from specdiag.checkpoint.parts import METADATA, refuse_part
from specdiag.errors import SourceError, UsageError
from specdiag.text.names import listed

_PRECEDENCE = tuple(re.compile(pattern) for format in FORMATS for pattern in format.precedence)
"""Names of files of models, the best first."""
_LISTED = 8
_UNSUPPORTED = "not supported yet: analyse the original in safetensors"
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states)[^/]*|.*_optim_states\.pt|__\d+\.metadata"
)
_ADAPTER = re.compile(r"adapter|pytorch_lora_weights")
_SHARD = re.compile(r"(?P<stem>.*[-_])(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.[^./]+)")
_VARIANT = re.compile(r"\.(?!safetensors|bin|index)\w+(?=(-\d+-of-\d+)?\.(safetensors|bin)$|\.json$)")
_PROJECTOR = re.compile(r"[^/]*mmproj[^/]*\.gguf", re.IGNORECASE)
_TENSOR_PARALLEL = re.compile(r"(consolidated\.\d+|.*mp_rank_\d+.*)\.(pth|pt)")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files that hold one model.

    Attributes:
        files: weight files, relative to the repository; empty where `index` lists them.
        index: the index file, or None.
        missing: shards that do not exist although the names of the others count them; the first nine.
    """

    files: tuple[str, ...]
    index: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that picks this model as `file`."""
        return self.index or self.files[0]


def _sound(name: str) -> str | None:
    """Answer that no file is a broken link, where nothing is known of links."""
    return None


def choose(
    names: Iterable[str], pick: str | None, where: str, broken: Callable[[str], str | None] = _sound
) -> ModelFiles:
    """Choose the model among the files of a repository or directory.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a file, or a folder to choose within, instead of the best file at the top.
        where: the repository or directory, for messages.
        broken: describes a name that is a link to no file, None for others; asked of models of equal rank.

    Returns:
        Its files.

    Raises:
        UsageError: `pick` names nothing, or several different models have the same rank.
        SourceError: no file holds weights of a supported kind, a shard is missing, or `pick` holds slices of matrices.
    """
    names = sorted(names)
    folder = f"{pick.strip('/')}/" if pick else ""
    if pick in names:
        refuse_part(pick, where if where.endswith(pick) else f"{where}/{pick}", names.__contains__)
        return ModelFiles((), index=pick) if is_index(pick) else ModelFiles((pick,))
    if folder and not any(name.startswith(folder) for name in names):
        raise UsageError(f"{where} has no file '{pick}'; it has {listed(weight_files(names) or names, _LISTED)}")
    inside = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    candidates = _candidates(inside)
    if all(_rank(candidate) > _rank(ModelFiles((METADATA,))) for candidate in candidates):
        refuse_unfinished(inside, where)
    candidates = candidates or [ModelFiles((name,)) for name in accelerate_models(names, folder)]
    if not candidates:
        raise SourceError(_nothing(names, inside, where))
    best = min(_rank(candidate) for candidate in candidates)
    return _only(_without_variants([candidate for candidate in candidates if _rank(candidate) == best]), where, broken)


def holds_files(names: Iterable[str], pick: str | None) -> bool:
    """Tell whether a folder holds weights in files of their own, not in folders below it.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a folder within, instead of the top.
    """
    folder = f"{pick.strip('/')}/" if pick else ""
    inside = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    return bool(_candidates(inside))


def is_index(name: str) -> bool:
    """Tell whether a file is an index of shards by its name, such as `model.safetensors.index.json`."""
    return name.endswith(".json") and ".index." in name


def weight_files(names: Iterable[str]) -> list[str]:
    """List the names that look like files of weights, in supported formats and others.

    Args:
        names: files of a repository or directory, relative to it.

    Returns:
        Those names in their order, without optimizer states and the like.
    """
    return [
        name
        for name in names
        if name.endswith(WEIGHT_SUFFIXES + FOREIGN_SUFFIXES) and not _NOT_WEIGHTS.match(_base(name))
    ]


def refuse_foreign(names: Iterable[str], where: str) -> None:
    """Refuse by its name what would be refused by its content, before it is downloaded.

    Args:
        names: the files that were chosen.
        where: the repository or directory, for messages.

    Raises:
        SourceError: a file is of a format that is not supported.
    """
    foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
    if foreign:
        raise SourceError(f"{where} stores {listed(foreign, _LISTED)} in a format {_UNSUPPORTED}")


def shard_notes(model: ModelFiles) -> list[str]:
    """Warn where one shard was picked out of a set.

    Args:
        model: the files that were chosen.

    Returns:
        One note, or none.
    """
    shard = _SHARD.fullmatch(model.files[0]) if len(model.files) == 1 else None
    if shard is None or int(shard["total"]) < 2:
        return []
    return [f"{model.files[0]} is one of {int(shard['total'])} shards: the others were not read."]


def projector_notes(model: ModelFiles, names: Iterable[str]) -> list[str]:
    """Name the multimodal projectors (images, sounds) that llama.cpp keeps in GGUF files beside that of the model.

    Args:
        model: the files that were chosen.
        names: every file of the repository or directory.

    Returns:
        One note, or none.
    """
    folder, _, base = model.name.rpartition("/")
    projectors = [
        name for name in sorted(names) if name.rpartition("/")[0] == folder and _PROJECTOR.fullmatch(_base(name))
    ]
    if not base.endswith(".gguf") or not projectors or model.name in projectors:
        return []
    what = "a multimodal projector" if len(projectors) == 1 else "multimodal projectors"
    return [f"Left out {listed(projectors, _LISTED)}, {what} beside the model: analyse one with file=."]


def _candidates(names: Sequence[str]) -> list[ModelFiles]:
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in weight_files(names):
        if name.endswith(WEIGHT_SUFFIXES):
            shard = _SHARD.fullmatch(name)
            key = slices_set(name) or (shard.group("stem", "total", "suffix") if shard else (name,))
            sets.setdefault(key, []).append(name)
    indices = [
        ModelFiles((), index=name) for name in names if is_index(name) and _rank(ModelFiles((name,))) < len(_PRECEDENCE)
    ]
    return indices + [ModelFiles(tuple(files), missing=_missing(files)) for files in sets.values()]


def _rank(model: ModelFiles) -> int:
    base = _base(model.name)
    if _ADAPTER.match(base):  # after every model: it is read only where there is none
        places = (place for place, format in enumerate(FORMATS) if base.endswith(format.suffixes))
        return len(_PRECEDENCE) + next(places, len(FORMATS))
    matching = (rank for rank, pattern in enumerate(_PRECEDENCE) if pattern.fullmatch(base))
    return next(matching, len(_PRECEDENCE))


def _without_variants(models: list[ModelFiles]) -> list[ModelFiles]:
    """Drop variants such as model.fp16.safetensors where the plain model.safetensors is there.

    diffusers gives such names to the same weights at lower precision.
    """
    names = {model.name for model in models}
    return [model for model in models if (plain := _VARIANT.sub("", model.name)) == model.name or plain not in names]


def _only(models: Sequence[ModelFiles], where: str, broken: Callable[[str], str | None]) -> ModelFiles:
    names = [model.name for model in models]
    if len(models) > 1 and all(_TENSOR_PARALLEL.fullmatch(_base(name)) for name in names):
        raise SourceError(
            f"{where} is cut for tensor parallelism ({listed(names, _LISTED)}), not supported: merge it first"
        )
    if len(models) > 1:
        _refuse_broken(models, where, broken)
        raise UsageError(f"{where} holds {len(names)} different models: {listed(names, _LISTED)}; pick one with file=")
    if models[0].missing:
        raise SourceError(f"{where} is incomplete: it lacks {listed(models[0].missing, _LISTED)}; fetch it again")
    return models[0]


def _refuse_broken(models: Sequence[ModelFiles], where: str, broken: Callable[[str], str | None]) -> None:
    """Refuse models of equal rank where a file of one of them is a link to nothing."""
    for name in (name for model in models for name in model.files or (model.name,)):
        link = broken(name)
        if link is not None:
            raise SourceError(f"{where} holds '{name}', {link}: delete it, or pick another file with file=")


def _missing(files: Sequence[str]) -> tuple[str, ...]:
    shard = _SHARD.fullmatch(files[0])
    if shard is None or slices_set(files[0]) is not None:  # of slices, a process may have none for a file
        return ()
    begin, end = shard.span("number")
    present = {int(name[begin:end]) for name in files}
    first = 0 if 0 in present else 1
    numbers = (number for number in range(first, first + int(shard["total"])) if number not in present)
    return tuple(f"{files[0][:begin]}{number:0{end - begin}d}{files[0][end:]}" for number in islice(numbers, 9))


def _nothing(names: Sequence[str], inside: Sequence[str], where: str) -> str:
    weights = weight_files(inside)
    if weights:
        return f"{where} holds weights only as {listed(weights, _LISTED)}, {_UNSUPPORTED}"
    folders = sorted({name.rpartition("/")[0] for name in weight_files(names)})
    if folders:
        contents = listed(folders, _LISTED)
        return f"{where} holds weights only in its folders {contents}: name one, or pick it with file="
    contents = f"only {listed(inside, _LISTED)}" if inside else "for it has no files that can be read"
    return f"{where} holds no weights, {contents}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]
