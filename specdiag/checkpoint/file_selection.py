"""Choice of the files that hold the model: one precedence for local and remote sources.

Two different models of equal rank are never guessed between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from specdiag.checkpoint.formats import FOREIGN_SUFFIXES, FORMATS, WEIGHT_SUFFIXES
from specdiag.checkpoint.parts import CONVERT, DISTRIBUTED, refuse_part
from specdiag.errors import SourceError, UsageError
from specdiag.text.names import listed

_PRECEDENCE = tuple(re.compile(pattern) for format in FORMATS for pattern in format.precedence)
"""Names of files of models, the best first."""
_LISTED = 8
_UNSUPPORTED = "not supported yet: analyse the original in safetensors"
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[^/]*|.*_optim_states\.pt"
)
_ADAPTER = re.compile(r"adapter|pytorch_lora_weights")
_SHARD = re.compile(r"(?P<stem>.*[-_])(?P<number>\d+)-of-(?P<total>\d+)(?P<suffix>\.[^./]+)")
_VARIANT = re.compile(r"\.(?!safetensors|bin|index)\w+(?=(-\d+-of-\d+)?\.(safetensors|bin)$|\.json$)")
_PROJECTOR = re.compile(r"[^/]*mmproj[^/]*\.gguf", re.IGNORECASE)
_TENSOR_PARALLEL = re.compile(r"(consolidated\.\d+|.*mp_rank_\d+.*)\.(pth|pt)")


@dataclass(frozen=True, slots=True)
class Choice:
    """The files that hold one model.

    Attributes:
        files: weight files, relative to the repository; empty where `index` lists them.
        index: the index file, or None.
        missing: the first shards that the names of the others promise and that are not there.
    """

    files: tuple[str, ...]
    index: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that picks this model as `file`."""
        return self.index or self.files[0]


def _sound(name: str) -> str | None:
    """Answer None: nothing is known of links."""
    return None


def choose(names: Iterable[str], pick: str | None, where: str, broken: Callable[[str], str | None] = _sound) -> Choice:
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
        return Choice((), index=pick) if is_index(pick) else Choice((pick,))
    if folder and not any(name.startswith(folder) for name in names):
        raise UsageError(f"{where} has no file '{pick}'; it has {listed(weight_files(names) or names, _LISTED)}")
    inside = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    candidates = _candidates(inside)
    if not candidates:
        raise SourceError(_nothing(names, inside, where))
    best = min(_rank(candidate) for candidate in candidates)
    return _only(_without_variants([candidate for candidate in candidates if _rank(candidate) == best]), where, broken)


def is_index(name: str) -> bool:
    """Tell whether a file lists shards by its name, such as `model.safetensors.index.json`."""
    return name.endswith(".json") and ".index." in name


def weight_files(names: Iterable[str]) -> list[str]:
    """List the names that look like files of weights, in supported formats and others."""
    return [
        name
        for name in names
        if name.endswith(WEIGHT_SUFFIXES + FOREIGN_SUFFIXES) and not _NOT_WEIGHTS.match(_base(name))
    ]


def refuse_foreign(names: Iterable[str], where: str) -> None:
    """Refuse by its name what would be refused by its content, before it is downloaded.

    Raises:
        SourceError: a file is of a format that is not supported.
    """
    foreign = [name for name in names if name.endswith(FOREIGN_SUFFIXES)]
    if foreign:
        raise SourceError(f"{where} stores {listed(foreign, _LISTED)} in a format {_UNSUPPORTED}")


def shard_notes(choice: Choice) -> list[str]:
    """Warn where one shard was picked out of a set."""
    shard = _SHARD.fullmatch(choice.files[0]) if len(choice.files) == 1 else None
    if shard is None or int(shard["total"]) < 2:
        return []
    return [f"{choice.files[0]} is one of {int(shard['total'])} shards: the others were not read."]


def projector_notes(choice: Choice, names: Iterable[str]) -> list[str]:
    """Name the projectors of images and sounds that llama.cpp keeps in GGUF files beside that of the model."""
    folder, _, base = choice.name.rpartition("/")
    beside = [name for name in sorted(names) if name.rpartition("/")[0] == folder and _PROJECTOR.fullmatch(_base(name))]
    if not base.endswith(".gguf") or not beside or choice.name in beside:
        return []
    what = "a multimodal projector" if len(beside) == 1 else "multimodal projectors"
    return [f"Left out {listed(beside, _LISTED)}, {what} beside the model: analyse one with file=."]


def _candidates(names: Sequence[str]) -> list[Choice]:
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in weight_files(names):
        if name.endswith(WEIGHT_SUFFIXES):
            shard = _SHARD.fullmatch(name)
            sets.setdefault(shard.group("stem", "total", "suffix") if shard else (name,), []).append(name)
    indices = [Choice((), index=name) for name in names if is_index(name) and _rank(Choice((name,))) < len(_PRECEDENCE)]
    return indices + [Choice(tuple(files), missing=_missing(files)) for files in sets.values()]


def _rank(choice: Choice) -> int:
    base = _base(choice.name)
    if _ADAPTER.match(base):  # after every model: an adapter beside one is something else to look at
        places = (place for place, format in enumerate(FORMATS) if base.endswith(format.suffixes))
        return len(_PRECEDENCE) + next(places, len(FORMATS))
    matching = (rank for rank, pattern in enumerate(_PRECEDENCE) if pattern.fullmatch(base))
    return next(matching, len(_PRECEDENCE))


def _without_variants(choices: list[Choice]) -> list[Choice]:
    """model.fp16.safetensors goes where model.safetensors is there: diffusers' name for the same at lower precision."""
    names = {choice.name for choice in choices}
    return [
        choice for choice in choices if (plain := _VARIANT.sub("", choice.name)) == choice.name or plain not in names
    ]


def _only(choices: Sequence[Choice], where: str, broken: Callable[[str], str | None]) -> Choice:
    names = [choice.name for choice in choices]
    if len(choices) > 1 and all(_TENSOR_PARALLEL.fullmatch(_base(name)) for name in names):
        raise SourceError(
            f"{where} is cut for tensor parallelism ({listed(names, _LISTED)}), not supported: merge it first"
        )
    if len(choices) > 1:
        _refuse_broken(choices, where, broken)
        raise UsageError(f"{where} holds {len(names)} different models: {listed(names, _LISTED)}; pick one with file=")
    if choices[0].missing:
        raise SourceError(f"{where} is incomplete: it lacks {listed(choices[0].missing, _LISTED)}; fetch it again")
    return choices[0]


def _refuse_broken(choices: Sequence[Choice], where: str, broken: Callable[[str], str | None]) -> None:
    """Refuse a tie that links to nothing are a part of: they are no models."""
    for name in (name for choice in choices for name in choice.files or (choice.name,)):
        link = broken(name)
        if link is not None:
            raise SourceError(f"{where} holds '{name}', {link}: delete it, or pick another file with file=")


def _missing(files: Sequence[str]) -> tuple[str, ...]:
    shard = _SHARD.fullmatch(files[0])
    if shard is None:
        return ()
    begin, end = shard.span("number")
    present = {int(name[begin:end]) for name in files}
    first = 0 if 0 in present else 1
    numbers = (number for number in range(first, first + int(shard["total"])) if number not in present)
    return tuple(f"{files[0][:begin]}{number:0{end - begin}d}{files[0][end:]}" for number in islice(numbers, 9))


def _nothing(names: Sequence[str], inside: Sequence[str], where: str) -> str:
    weights = weight_files(inside)
    if weights and all(name.endswith(DISTRIBUTED) for name in weights):
        return f"{where} is a distributed checkpoint, not supported yet: {CONVERT}"
    if weights:
        return f"{where} holds weights only as {listed(weights, _LISTED)}, {_UNSUPPORTED}"
    folders = sorted({name.rpartition("/")[0] for name in weight_files(names)})
    if folders:
        named = listed(folders, _LISTED)
        return f"{where} holds weights only in its folders {named}: name one, or pick it with file="
    named = f"only {listed(inside, _LISTED)}" if inside else "for it has no files that can be read"
    return f"{where} holds no weights, {named}"


def _base(name: str) -> str:
    return name.rpartition("/")[2]
