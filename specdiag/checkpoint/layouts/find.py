"""The table of layouts, and the search for one of them in a folder by the names of its files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from specdiag.checkpoint.parts import METADATA, PART
from specdiag.checkpoint.shards import stays_inside
from specdiag.errors import SourceError

if TYPE_CHECKING:
    from specdiag.checkpoint.layouts.pieces import Place
    from specdiag.checkpoint.listing import Listing

_ROOM = "specdiag.checkpoint.layouts"


@dataclass(frozen=True, slots=True)
class Layout:
    """A way in which the files of a folder make up one model.

    Attributes:
        name: in messages.
        files: a regular expression on the names of its files, relative to the folder.
        reader: module and function that list its tensors; imported when it is called, for torch takes a second.
        least: the least number of files that are this layout.
        beside: a regular expression on the names of further files that say how many there are.
    """

    name: str
    files: re.Pattern[str]
    reader: tuple[str, str]
    least: int = 1
    beside: re.Pattern[str] | None = None

    def read(self, place: Place) -> Listing:
        """List the tensors of a folder.

        Args:
            place: the folder.

        Raises:
            SourceError: it is damaged or incomplete.
        """
        module, function = self.reader
        return cast("Callable[[Place], Listing]", getattr(import_module(f"{_ROOM}.{module}"), function))(place)


_MODEL_STATES = re.compile(r"mp_rank_\d+_model_states\.pt")
LAYOUTS = (
    Layout(
        "a universal checkpoint of DeepSpeed",
        re.compile(r"zero/[^/]+/fp32\.pt"),
        ("universal", "read_universal"),
        beside=_MODEL_STATES,
    ),
    Layout(
        "a pipeline of DeepSpeed",
        re.compile(r"layer_\d+-model_\d+-model_states\.pt"),
        ("neox", "read_pipeline"),
        beside=re.compile(rf"{_MODEL_STATES.pattern}|configs/[^/]+\.ya?ml"),
    ),
    Layout(
        "a checkpoint of DeepSpeed",
        re.compile(
            r"mp_rank_\d+_model_states\.pt|zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt"
            r"|(bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt"
            r"|layer_\d+_expert_\d+_mp_rank_\d+_model_states\.pt"
        ),
        ("zero", "read_zero"),
    ),
    Layout(
        "a checkpoint of Megatron",
        re.compile(r"mp_rank_\d+(_\d+){0,2}/model_(optim_)?(rng|states)\.pt"),
        ("megatron", "read_megatron"),
    ),
    Layout(
        "a model that FSDP divided",
        re.compile(r"model_world_size_(?!1_)\d+_rank_\d+\.pt|pytorch_model_fsdp_rank\d+\.bin"),
        ("fsdp", "read_ranks"),
    ),
    Layout("a model in Meta's parts", re.compile(r"consolidated\.\d+\.(pth|pt)"), ("meta", "read_meta"), least=2),
)
"""All layouts; in a folder the first that fits decides."""
_PREFERRED = re.compile(r"[^/]+\.safetensors(\.index\.json)?")
"""Files that are read in the place of a layout beside them: whole models in a format of their own."""
_POINTERS = {"latest": re.compile(r"[^/\s]+"), "latest_universal": re.compile(r"[^/\s]+"),
             "latest_checkpointed_iteration.txt": re.compile(r"\d{1,9}|release")}  # fmt: skip
"""Files that name the folder of the newest checkpoint, and what they may hold."""
_LONGEST = 200


class Readable(Protocol):
    """Small files of a folder, fetched when they are read."""

    def __call__(self, name: str) -> bytes:
        """Give all of a file."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """A folder in one of the layouts.

    Attributes:
        layout: how its files make up a model.
        folder: relative, ends in `/` where it is not empty.
        files: those of the layout, relative to the folder.
        beside: files that say how many there are.
    """

    layout: Layout
    folder: str
    files: tuple[str, ...]
    beside: tuple[str, ...] = ()


def find_layout(names: Sequence[str], pick: str | None, where: str, is_flat: bool, read: Readable) -> Found | None:
    """Find the model in pieces that a folder holds, or to which a file in it points.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a file or folder to choose within.
        where: the folder, for messages.
        is_flat: whether the folder holds weights in single files, which are then read.
        read: reads `latest` and its like.

    Returns:
        The layout; None where there is none, or a whole model lies beside it.

    Raises:
        SourceError: a file points to a folder that is not there.
    """
    if pick in names:
        return None
    folder = f"{pick.strip('/')}/" if pick else ""
    inside = [name[len(folder) :] for name in names if name.startswith(folder)]
    found = _in(inside, folder)
    if found is not None:
        return None if any(_PREFERRED.fullmatch(name) for name in inside) else found
    return None if is_flat else _pointed_to(inside, folder, where, read)


def layout_folders(names: Sequence[str]) -> list[str]:
    """List the folders one level below that hold a model in pieces.

    Args:
        names: every file, relative.
    """
    tops = sorted({name.partition("/")[0] for name in names if "/" in name})
    return [top for top in tops if _in([name[len(top) + 1 :] for name in names if name.startswith(f"{top}/")], "")]


def _in(inside: Sequence[str], folder: str) -> Found | None:
    for layout in LAYOUTS:
        files = tuple(sorted(name for name in inside if layout.files.fullmatch(name)))
        if len(files) >= layout.least:
            pattern = layout.beside
            beside = () if pattern is None else tuple(sorted(name for name in inside if pattern.fullmatch(name)))
            return Found(layout, folder, files, beside)
    return None


def distributed_folder(names: Sequence[str], pick: str | None, where: str, read: Readable) -> str | None:
    """Find the distributed checkpoint, such as Megatron's torch_dist, to which a file in a folder points.

    Args:
        names: every file, relative, with `/` between folders.
        pick: a file or folder to choose within.
        where: the folder, for messages.
        read: reads `latest_checkpointed_iteration.txt` and its like.

    Returns:
        Its folder, relative, also where the save did not finish; None where nothing points to one.

    Raises:
        SourceError: a file points to a folder that is not there.
    """
    folder = f"{pick.strip('/')}/" if pick else ""
    inside = [name[len(folder) :] for name in names if name.startswith(folder)]
    for target, below in _targets(inside, folder, where, read):
        if any(name.endswith((METADATA, PART)) for name in below):
            return f"{folder}{target}"
    return None


def _pointed_to(inside: Sequence[str], folder: str, where: str, read: Readable) -> Found | None:
    found = (_in(below, f"{folder}{target}/") for target, below in _targets(inside, folder, where, read))
    return next((layout for layout in found if layout is not None), None)


def _targets(inside: Sequence[str], folder: str, where: str, read: Readable) -> Iterator[tuple[str, list[str]]]:
    """Yield the folders that files point to, with the names of the files in them."""
    for pointer, sound in _POINTERS.items():
        if pointer not in inside:
            continue
        text = read(folder + pointer)[: _LONGEST + 1].decode("utf-8", "replace").strip()
        if len(text) > _LONGEST or not sound.fullmatch(text) or not stays_inside(text):
            raise SourceError(f"'{where}/{folder}{pointer}' names no folder, but {text[:80]!r}: give the folder itself")
        target = f"iter_{int(text):07d}" if text.isdecimal() and pointer.endswith(".txt") else text
        below = [name.removeprefix(f"{target}/") for name in inside if name.startswith(f"{target}/")]
        if not below:
            raise SourceError(f"'{where}/{folder}{pointer}' names '{target}', which is not there: give another folder")
        yield target, below
