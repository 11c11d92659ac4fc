"""Where the parts of a fused tensor lie. Sizes come from neighbouring matrices or the config, never from a guess."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from specdiag.architecture import config as settings
from specdiag.architecture.names import Name
from specdiag.architecture.rules import ARCHITECTURES, Fused, Layout, Rule
from specdiag.architecture.split import Slicer, contiguous, grouped, interleaved
from specdiag.records import Role

Shape = Sequence[int]
Cut = list[tuple[Role, Slicer]]

_SHARED = re.compile(r"(?:c_attn|wqkv|qkv_proj|query_key_value)$", re.IGNORECASE)
"""Names that language models alone give: of unequal parts, queries are the larger. `qkv` may have wide values."""


class UnknownLayout(Exception):
    """The parts cannot be told apart; the message is the reason, for the report."""


class Tensor(Struct, frozen=True):
    """A fused matrix and what is known about it.

    Attributes:
        name: its name taken apart.
        shape: (rows, cols), of one expert where it is stacked.
        rule: the rule that named its parts.
        output: shape of the projection that follows it in its module (`o`, `down`), None where there is none.
        config: the parts of the config that speak of it, the most specific first.
        architectures: the entries of architectures.toml that hold for the checkpoint.
        transposed: True where its name says that it is stored (in, out).
    """

    name: Name
    shape: tuple[int, int]
    rule: Rule
    output: tuple[int, int] | None
    config: Sequence[Mapping[str, object]]
    architectures: Sequence[Fused]
    transposed: bool = False


def split(tensor: Tensor, index: int | None = None) -> Cut:
    """Cut a fused matrix into its parts, in stored order.

    Args:
        tensor: the matrix, two-dimensional.
        index: its index in a stack, or None.

    Returns:
        The role of each part, and how it is cut.

    Raises:
        UnknownLayout: its layout or the number of its heads is unknown.
    """
    entry = next((entry for entry in tensor.architectures if entry.pattern.search(tensor.name.path)), None)
    parts = (entry.parts if entry else ()) or tensor.rule.parts
    layout: Layout = entry.layout if entry else tensor.rule.layout or "contiguous"
    if layout == "unknown":
        raise UnknownLayout(_unknown(tensor.config))
    if entry is not None and layout == "grouped":
        slicers = _grouped(tensor, entry)
    elif len(parts) == 4:
        slicers = _quarters(tensor)
    elif len(parts) == 2:
        slicers = _halves(tensor, layout, index)
    else:
        slicers = _one_after_another(tensor, is_told=entry is not None)
    return list(zip(parts, slicers, strict=True))


def _unknown(config: Sequence[Mapping[str, object]]) -> str:
    if not settings.model_types(config):
        return "models order its rows differently, and no config.json with a model_type says which this is"
    return "the config names no architecture whose layout is known"


def is_doubled(shape: Shape, output: Shape | None, width: int | None) -> bool:
    """Tell whether a matrix holds gate and up in one: [.., 2 * width, d], or transposed, before one of [.., d, width].

    One that reads two states side by side does not: it leads from 2d to 4d, or to 2d, and the next from there to d.

    Args:
        shape: of the matrix.
        output: shape of the projection that follows it, None where there is none.
        width: the residual width d, None where nothing tells it.
    """
    axis = None if output is None else _doubled_axis(shape[-2:], output[-2:])
    if axis is None or output is None:
        return False
    if width in output[-2:] and shape[-1 - axis] != width:
        return False
    return axis == 0 or shape[-2] != shape[-1]


def applicable(config: Mapping[str, object] | None, paths: Iterable[str]) -> tuple[Fused, ...]:
    """Find the entries of architectures.toml that apply to a checkpoint, in order.

    Args:
        config: config.json, or None.
        paths: full names with every index written `#`; they are searched only where the config names no `model_type`.
    """
    chain = [part for piece in ("vision", "audio", "text") for part in settings.sections(config or {}, piece)]
    types = settings.model_types(chain)
    searched = set(paths) if not types else set[str]()
    return tuple(entry for entry in ARCHITECTURES.fused if _holds(entry, types, chain, searched))


def experts(tensor: Tensor) -> int | None:
    """Count the experts that share a tensor [experts * width, d]; None where it holds one matrix."""
    entry = next((entry for entry in tensor.architectures if entry.pattern.search(tensor.name.path)), None)
    return _count(tensor, entry.groups) if entry is not None and entry.layout == "stacked" else None


def _holds(entry: Fused, types: list[str], chain: Sequence[Mapping[str, object]], paths: set[str]) -> bool:
    if types:
        return any(kind in entry.model_type for kind in types) and all(
            any(part.get(key) == value for part in chain) for key, value in entry.when.items()
        )
    return entry.mark is not None and any(entry.mark.search(path) for path in paths)


def _grouped(tensor: Tensor, entry: Fused) -> list[Slicer]:
    """Cut groups that hold queries, one key and one value: [groups, heads / groups + 2, head_dim]."""
    if tensor.transposed:
        raise UnknownLayout("it is stored (in, out), where its groups of heads are known by rows alone")
    groups = _count(tensor, entry.groups)
    heads = entry.heads or settings.number(tensor.config, settings.HEADS)
    if groups is None or heads is None:
        raise UnknownLayout("the config does not say how many heads it has")
    rows, queries = tensor.shape[0], heads // groups
    head_dim, rest = divmod(rows, groups * (queries + 2))
    if heads % groups or rest:
        raise UnknownLayout(f"its {rows} rows do not hold {heads} heads in {groups} groups")
    return grouped(tensor.shape, groups, (queries * head_dim, head_dim, head_dim))


def _halves(tensor: Tensor, layout: Layout, index: int | None) -> list[Slicer]:
    """Cut two parts of equal size."""
    axis = _doubled_axis(tensor.shape, tensor.output) if "gate" in tensor.rule.parts else _long_axis(tensor)
    axis = int(tensor.transposed or layout == "interleaved") if axis is None else axis
    if tensor.shape[axis] % 2:
        raise UnknownLayout(f"its length {tensor.shape[axis]} is odd")
    if layout == "interleaved":
        return interleaved(tensor.shape, axis, 2, index)
    return contiguous(tensor.shape, axis, [tensor.shape[axis] // 2] * 2, index)


def _quarters(tensor: Tensor) -> list[Slicer]:
    """Cut four square matrices."""
    axis = int(tensor.shape[1] > tensor.shape[0])
    size = tensor.shape[1 - axis]
    if tensor.shape[axis] != 4 * size:
        raise UnknownLayout(f"{tensor.shape[axis]} by {size} are no four square matrices")
    return contiguous(tensor.shape, axis, [size] * 4)


def _one_after_another(tensor: Tensor, *, is_told: bool) -> list[Slicer]:
    """Cut all queries, then all keys, then all values; `is_told` where an architecture says that values are as keys."""
    axis = _long_axis(tensor)
    total, width = tensor.shape[axis], tensor.shape[1 - axis]
    by_config = _queries_by_config(tensor, total)
    queries = _queries_by_output(tensor, axis) or by_config
    if queries is None and total == 3 * width:
        queries = width
    if queries is None:
        raise UnknownLayout("the config does not say how many heads it has")
    taken = queries if tensor.output is None else tensor.output[1 - axis]
    is_shared = is_told or _SHARED.search(tensor.name.path) is not None or _shares_keys(tensor.config)
    if taken != queries or (3 * queries != total and by_config != queries and not is_shared):
        raise UnknownLayout(
            f"its output reads {taken} values, and neither a config with num_key_value_heads nor its name tells "
            f"whether its {total} rows hold more queries than keys or wider values than keys"
        )
    keys = (total - queries) // 2
    return contiguous(tensor.shape, axis, (queries, keys, keys))


def _queries_by_output(tensor: Tensor, axis: int) -> int | None:
    """Count the rows of the queries: as many as the output projection takes, which the keys must then divide."""
    if tensor.output is None:
        return None
    queries = tensor.output[1 - axis]
    keys, rest = divmod(tensor.shape[axis] - queries, 2)
    return queries if keys > 0 and not rest and queries % keys == 0 else None


def _shares_keys(config: Sequence[Mapping[str, object]]) -> bool:
    """Tell whether the config speaks of keys that several queries share."""
    is_counted = settings.number(config, settings.KEY_VALUE_HEADS) is not None
    return is_counted or any(part.get("multi_query") is True for part in config)


def _queries_by_config(tensor: Tensor, total: int) -> int | None:
    heads = settings.number(tensor.config, settings.HEADS)
    if heads is None:
        return None
    pairs = settings.number(tensor.config, settings.KEY_VALUE_HEADS) or heads
    return None if total % (heads + 2 * pairs) else total // (heads + 2 * pairs) * heads


def _long_axis(tensor: Tensor) -> int:
    """Find the fused axis: rows, but columns where matrices are stored (in, out), as Flax, Keras and GPT-2's Conv1D do.

    The projection that follows writes as many values as the fused matrix reads.

    Raises:
        UnknownLayout: nothing tells, and the matrix is as long as if its columns were fused.
    """
    rows, cols = tensor.shape
    if tensor.transposed:
        return 1
    if tensor.output is not None and tensor.output[0] == cols:
        return 0
    if tensor.name.path.endswith("c_attn") or (tensor.output is not None and tensor.output[1] == rows):
        return int(cols > rows)
    if cols == 3 * rows:
        raise UnknownLayout(f"whether its {rows} rows or its {cols} columns hold the heads cannot be told")
    return 0


def _doubled_axis(shape: Shape, output: Shape | None) -> int | None:
    if output is None:
        return None
    if shape[0] == 2 * output[1] and shape[1] == output[0]:
        return 0
    return 1 if shape[1] == 2 * output[0] and shape[0] == output[1] else None


def _count(tensor: Tensor, groups: int | tuple[str, ...]) -> int | None:
    return groups if isinstance(groups, int) else settings.number(tensor.config, groups)
