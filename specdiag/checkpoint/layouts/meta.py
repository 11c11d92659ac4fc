"""Meta's consolidated.00.pth, consolidated.01.pth, ...: the slices of a LLaMA, one file a process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from specdiag.checkpoint.layouts.numbered import by_numbers
from specdiag.checkpoint.layouts.parallel import join_slices
from specdiag.checkpoint.layouts.pieces import Place
from specdiag.checkpoint.listing import Listing
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.errors import SourceError

_FILE = re.compile(r"consolidated\.(?P<rank>\d+)\.(pth|pt)")
_AXES = {"wq": 0, "wk": 0, "wv": 0, "w1": 0, "w3": 0, "output": 0, "wo": 1, "w2": 1}
_NORM = re.compile(r"(.*\.)?norm\.weight")


def read_meta(place: Place) -> Listing:
    """Join the parts of a model.

    Args:
        place: the folder.

    Returns:
        The joined tensors, and a note.

    Raises:
        SourceError: a part is missing or damaged, two files are one part, or it is not known how a tensor was cut.
    """
    ranks = {rank: name for (rank,), name in by_numbers(place, _FILE, "rank").items()}
    missing = next((rank for rank in range(max(ranks) + 1) if rank not in ranks), None)
    if missing is not None:
        raise SourceError(f"{place.where} lacks consolidated.{missing:02d}.pth, a part of its model: fetch it")
    files = [place.open(name) for name in ranks.values()]
    parts = [file.tensors(file.content) for file in files]
    width = model_width(parts[0])
    if width is None:
        raise SourceError(
            f"{place.where} holds no norm.weight, which tells the width of the model, and so how its "
            f"{len(parts)} parts were cut: fetch them again"
        )
    _require_all(parts, width, place)

    def axis(name: str) -> int | None:
        module = name.split(".")[-2] if name.count(".") else ""
        if module == "tok_embeddings":
            columns = sum(parts[0][name].shape[-1:])
            return 0 if columns == width else 1 if columns * len(parts) == width else None
        return _AXES.get(module)

    tensors = join_slices(parts, axis, place.where)
    return Listing(list(tensors.values()), (f"Joined the {len(files)} parts of {place.where}.",))


def model_width(tensors: Mapping[str, StoredTensor]) -> int | None:
    """Find the width of the residual stream, which the last norm has whole in every part; None without one."""
    return next((t.shape[0] for name, t in tensors.items() if _NORM.fullmatch(name) and len(t.shape) == 1), None)


def written_width(tensors: Mapping[str, StoredTensor]) -> int | None:
    """Find how many columns the attention's output has, which in the whole model are its width; None without one."""
    outputs = (t for name, t in tensors.items() if name.endswith(".attention.wo.weight") and len(t.shape) == 2)
    return next((tensor.shape[1] for tensor in outputs), None)


def _require_all(parts: Sequence[Mapping[str, StoredTensor]], width: int, place: Place) -> None:
    """Refuse where the parts do not add up to the model's width: files behind the last may be missing."""
    columns = written_width(parts[0])
    if columns is None or columns * len(parts) == width:
        return
    raise SourceError(
        f"{place.where} holds {len(parts)} parts, whose attention.wo has {columns} columns each: the model's width is "
        f"{width}; fetch the missing ones"
    )
