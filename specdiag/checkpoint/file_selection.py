"""Choice of the files that hold the model: one precedence for local and remote sources.

It never guesses between two different models of equal rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from glob import has_magic

from specdiag.checkpoint.distributed.folders import accelerate_models, refuse_unfinished, slices_set
from specdiag.checkpoint.formats import ARRAYS, FORMATS, WEIGHT_SUFFIXES
from specdiag.checkpoint.loaded_names import LOADED
from specdiag.checkpoint.long_names import brief
from specdiag.checkpoint.no_weights import describe_nothing
from specdiag.checkpoint.parts import METADATA, refuse_part, refuse_parts
from specdiag.checkpoint.shard_sets import all_of_its_set, missing_shards, set_of
from specdiag.checkpoint.weight_names import base_name, is_index, weight_files
from specdiag.errors import SourceError, SpecdiagError, UsageError
from specdiag.text.globs import fits
from specdiag.text.names import listed

_PRECEDENCE = (
    *(re.compile(re.escape(name)) for name in LOADED),
    *(re.compile(pattern) for format in FORMATS for pattern in format.precedence),
)
"""Names of files of models, the best first."""
_LISTED = 8
_OLD_SUFFIXES = (".pth.tar", ".th")
_NUMBER = re.compile(r"[0-9]+")
_SAYS_NOTHING = re.compile(r"[^.]+|.*\.model")
"""Names of files of torch that other files have as well, such as those of tokenizers."""
_TEXTS = (".json", ".md", ".txt", ".yaml", ".yml", ".gitattributes")
_ADAPTER = re.compile(r"adapter|pytorch_lora_weights")
_VARIANT = re.compile(r"\.(?!safetensors|bin|index)\w+(?=(-\d+-of-\d+)?\.(safetensors|bin)$|\.json$)")


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


def _unknown(name: str) -> bool:
    """Answer that torch did not write a file, where it cannot be looked into."""
    return False


def choose(
    names: Iterable[str],
    pick: str | None,
    where: str,
    broken: Callable[[str], str | None] = _sound,
    is_torch: Callable[[str], bool] = _unknown,
) -> ModelFiles:
    """Choose the model among the files of a repository or directory.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a file, a glob of files that make up one model, or a folder to choose within, instead of the best file at
            the top.
        where: the repository or directory, for messages.
        broken: describes a name that is a link to no file, None for others; asked of models of equal rank.
        is_torch: tells whether torch wrote a file; asked of names that say nothing where no others hold weights.

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
        return _matching(names, pick or "", where)
    inside = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    refuse_parts(weight_files(inside), where)
    candidates = _candidates(inside)
    if all(_rank(candidate) > _rank(ModelFiles((METADATA,))) for candidate in candidates):
        refuse_unfinished(inside, where)
    candidates = candidates or [ModelFiles((name,)) for name in accelerate_models(names, folder)]
    candidates = candidates or _uncommon(names, inside, folder, is_torch)
    if not candidates:
        raise SourceError(describe_nothing(names, inside, where, partial(_can_be_chosen, names)))
    best = min(_rank(candidate) for candidate in candidates)
    return _only(_without_variants([candidate for candidate in candidates if _rank(candidate) == best]), where, broken)


def _matching(names: Sequence[str], pick: str, where: str) -> ModelFiles:
    """Take all files that match a glob: together they are one model, whatever an index says."""
    matching = [name for name in names if has_magic(pick) and fits([name], [pick])]
    if not matching:
        contents = listed(weight_files(names) or names, _LISTED)
        raise UsageError(f"{where} has no file '{brief(pick)}'; it has {contents or 'none at all'}")
    for name in matching:
        refuse_part(name, f"{where}/{name}", names.__contains__)
    strange = next((name for name in matching if not name.endswith(WEIGHT_SUFFIXES)), None)
    if strange is not None:
        raise UsageError(f"file={pick} matches '{strange}', which is no file of weights: narrow it")
    if len({name.rpartition("/")[0] for name in matching}) > 1:
        raise UsageError(f"file={pick} matches files in several folders, {listed(matching, _LISTED)}: narrow it")
    return ModelFiles(tuple(matching))


def _uncommon(
    names: Sequence[str], inside: Sequence[str], folder: str, is_torch: Callable[[str], bool]
) -> list[ModelFiles]:
    """Find files of weights under names that other files have as well, where no others hold weights."""
    if any(name.startswith(folder) for name in weight_files(names)):
        return []
    found = [
        name
        for name in inside
        if name.endswith(_OLD_SUFFIXES) or (_SAYS_NOTHING.fullmatch(base_name(name)) and is_torch(name))
    ]
    arrays = [name for name in inside if name.endswith(ARRAYS)]
    if not found and len(arrays) == 1 and all(name in arrays or name.endswith(_TEXTS) for name in inside):
        found = arrays
    return [ModelFiles((name,)) for name in found]


def holds_files(names: Iterable[str], pick: str | None) -> bool:
    """Tell whether a folder holds weights in files of their own, not in folders below it.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a folder within, instead of the top.
    """
    folder = f"{pick.strip('/')}/" if pick else ""
    inside = [name for name in names if name.startswith(folder) and "/" not in name[len(folder) :]]
    return bool(_candidates(inside))


def _candidates(names: Sequence[str]) -> list[ModelFiles]:
    sets: dict[tuple[str, ...], list[str]] = {}
    for name in weight_files(names):
        if name.endswith(WEIGHT_SUFFIXES):
            sets.setdefault(slices_set(name) or set_of(name), []).append(name)
    indices = [
        ModelFiles((), index=name) for name in names if is_index(name) and _rank(ModelFiles((name,))) < len(_PRECEDENCE)
    ]
    return indices + [ModelFiles(tuple(files), missing=missing_shards(files)) for files in sets.values()]


def _rank(model: ModelFiles) -> int:
    base = base_name(model.name)
    if is_adapter_file(base):  # after every model: it is read only where there is none
        places = (place for place, format in enumerate(FORMATS) if base.endswith(format.suffixes))
        return len(_PRECEDENCE) + next(places, len(FORMATS))
    matching = (rank for rank, pattern in enumerate(_PRECEDENCE) if pattern.fullmatch(base))
    return next(matching, len(_PRECEDENCE))


def is_adapter_file(name: str) -> bool:
    """Tell whether a file is an adapter's by its name."""
    return bool(_ADAPTER.match(base_name(name)))


def _without_variants(models: list[ModelFiles]) -> list[ModelFiles]:
    """Drop variants such as model.fp16.safetensors where the plain model.safetensors is there.

    diffusers gives such names to the same weights at lower precision.
    """
    names = {model.name for model in models}
    return [model for model in models if (plain := _VARIANT.sub("", model.name)) == model.name or plain not in names]


def _only(models: Sequence[ModelFiles], where: str, broken: Callable[[str], str | None]) -> ModelFiles:
    names = [model.name for model in models]
    if len(models) > 1:
        _refuse_broken(models, where, broken)
        run = (
            ""
            if len({_NUMBER.sub("", name) for name in names}) > 1
            else "; 'specdiag trajectory' takes the steps of one run"
        )
        raise UsageError(
            f"{where} holds {len(names)} different models: {listed(names, _LISTED)}; pick one with file={run}"
        )
    if models[0].missing:
        raise SourceError(
            f"{where} is incomplete: it lacks {listed(models[0].missing, _LISTED)}; fetch them, or read what is there "
            f"with file='{all_of_its_set(models[0].files[0])}'"
        )
    return models[0]


def _refuse_broken(models: Sequence[ModelFiles], where: str, broken: Callable[[str], str | None]) -> None:
    """Refuse models of equal rank where a file of one of them is a link to nothing."""
    for name in (name for model in models for name in model.files or (model.name,)):
        link = broken(name)
        if link is not None:
            raise SourceError(f"{where} holds '{name}', {link}: delete it, or pick another file with file=")


def _can_be_chosen(names: Sequence[str], folder: str) -> bool:
    try:
        choose(names, folder, folder)
    except SpecdiagError:
        return False
    return True
