"""The residual width of each stack of blocks: the size that embeddings, norms and attention agree on."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from specdiag.architecture.biases import bias_beside
from specdiag.architecture.names import Name, is_kernel
from specdiag.architecture.rules import Rule
from specdiag.architecture.tokens import qkv_word

Shape = tuple[int, ...]

_NORM = re.compile(r"(?:norm|ln)(?:_?\w{0,6})?(?:\.(?:weight|gamma|scale|g))?$", re.IGNORECASE)
_NUMBERED = re.compile(r"\d$|#$")
_READERS = ("q", "k", "v", "kv", "gate", "up")
_WRITERS = ("o", "down")

# How much a witness weighs: a norm of the block, an embedding (which may be that of another piece), attention.
_EMBEDDING, _NORMED, _ATTENTION = 4.0, 5.0, 2.0


@dataclass(frozen=True, slots=True)
class Width:
    """The residual width of a block, and how its matrices lie.

    Attributes:
        size: the width, None where nothing tells it.
        transposed: True where matrices are stored [in, out], so that readers of the residual stream have it as rows.
        is_told: True where something shows how they lie; otherwise [out, in] is assumed.
    """

    size: int | None
    transposed: bool = False
    is_told: bool = False

    def reads(self, shape: Shape) -> bool:
        """Tell whether a matrix of this shape reads the residual stream.

        Args:
            shape: (rows, cols).
        """
        return shape[-2 if self.transposed else -1] == self.size

    def writes(self, shape: Shape) -> bool:
        """Tell whether a matrix of this shape writes to the residual stream.

        Args:
            shape: (rows, cols).
        """
        return shape[-1 if self.transposed else -2] == self.size


UNKNOWN = Width(None)


def widths(
    shapes: Mapping[str, Shape],
    names: Mapping[str, Name],
    rules: Mapping[str, Rule | None],
    all_shapes: Mapping[str, Shape],
) -> dict[str, Width]:
    """Find the residual width of every block.

    Blocks beside each other have one width. Where nothing in them tells it, that of the whole stack is taken.

    Args:
        shapes: of the tensors that may hold weight matrices.
        names: their names taken apart.
        rules: the rule of each by its name, None where no rule knows it.
        all_shapes: of every tensor, norms and biases among them.

    Returns:
        The width by the path of the block.
    """
    pools: dict[str, list[str]] = defaultdict(list)
    chains: dict[str, tuple[str, ...]] = {}
    for key, name in names.items():
        if name.block and len(shapes[key]) >= 2:
            chains[name.block] = tuple(_pools(name))
            for pool in chains[name.block]:
                pools[pool].append(key)
    embedded = _embedded(shapes, names, rules)
    normed = _normed(all_shapes, pools)
    found = {
        pool: _width(keys, shapes, names, rules, embedded, normed[pool], all_shapes) for pool, keys in pools.items()
    }
    return {
        block: next((width for pool in chain if (width := found[pool]).size is not None), found[chain[-1]])
        for block, chain in chains.items()
    }


def _pools(name: Name) -> Iterator[str]:
    """Yield the path above the index of the block, and that of the stack where it is another."""
    own = name.block.rpartition(".")[0]
    yield own
    if name.stack != own:
        yield name.stack


def _embedded(
    shapes: Mapping[str, Shape], names: Mapping[str, Name], rules: Mapping[str, Rule | None]
) -> frozenset[int]:
    """Collect the widths of embeddings outside of all blocks: columns of tables, rows of convolutions."""
    return frozenset(
        shape[0] if len(shape) > 3 and not is_kernel(key) else shape[-1]
        for key, shape in shapes.items()
        if len(shape) > 1 and not names[key].indices and (rule := rules[key]) is not None and rule.role == "embed"
    )


def _normed(all_shapes: Mapping[str, Shape], pools: Mapping[str, object]) -> dict[str, frozenset[int]]:
    """Collect for each pool the lengths of the norms right below its blocks."""
    lengths: dict[str, set[int]] = {pool: set() for pool in pools}
    for key, shape in all_shapes.items():
        if len(shape) == 1 and _NORM.search(key):
            path = key.split(".")
            for above in (3, 4):  # layers.3.norm.weight and layers.3.norm
                place = len(path) - above
                pool = ".".join(path[: place + 1])
                if place >= 0 and pool in lengths and path[place + 1].isdigit():
                    lengths[pool].add(shape[0])
    return {pool: frozenset(sizes) for pool, sizes in lengths.items()}


def _width(
    keys: list[str],
    shapes: Mapping[str, Shape],
    names: Mapping[str, Name],
    rules: Mapping[str, Rule | None],
    embedded: frozenset[int],
    normed: frozenset[int],
    all_shapes: Mapping[str, Shape],
) -> Width:
    matrices = [key for key in keys if len(shapes[key]) == 2 and names[key].context not in ("conv", "embedding")]
    attention = [key for key in matrices if _is_attention(rules[key], names[key])]
    everywhere, attended = _shares(matrices, shapes), _shares(attention, shapes)
    scores = {
        size: share + _ATTENTION * attended[size] + _EMBEDDING * (size in embedded) + _NORMED * (size in normed)
        for size, share in everywhere.items()
        if not attention or attended[size] >= 0.5
    }
    best, *others = sorted(scores, key=lambda size: -scores[size]) or (None,)
    is_told = best is not None and (best in embedded or best in normed or attended[best] > 0 or everywhere[best] == 1)
    if best is None or not is_told or any(scores[best] - scores[size] < 1e-9 for size in others[:1]):
        best = None
    transposed = _is_transposed(best, matrices, shapes, names, rules, all_shapes)
    return Width(best, bool(transposed), transposed is not None)


def _is_attention(rule: Rule | None, name: Name) -> bool:
    if rule is not None and not rule.weak:
        return rule.kind == "attention"
    return qkv_word(name) is not None


def _shares(keys: list[str], shapes: Mapping[str, Shape]) -> defaultdict[int, float]:
    """Give for each size the share of matrices that have it as a side."""
    counts = Counter(size for key in keys for size in set(shapes[key]))
    return defaultdict(float, {size: count / len(keys) for size, count in counts.items()})


def _is_transposed(
    size: int | None,
    keys: list[str],
    shapes: Mapping[str, Shape],
    names: Mapping[str, Name],
    rules: Mapping[str, Rule | None],
    all_shapes: Mapping[str, Shape],
) -> bool | None:
    """Tell whether matrices lie as [in, out]: by their biases, as long as what a matrix writes, or by their roles.

    Kernels and fused matrices show it, or those that read and those that write. Readers alone may read another width,
    as cross-attention does, and names that only have a number say nothing alone: both must agree, or Haiku's name of
    a weight with the numbers. Narrow matrices of an MLP may be those of an adapter, whose down reads and whose up
    writes.

    Returns:
        None where nothing tells.
    """
    if keys and all(map(is_kernel, keys)):
        return True
    if biased := sum(_bias_vote(key, shapes[key], all_shapes) for key in keys):
        return biased > 0
    votes = Counter[str]()
    for key in keys:
        rule, (rows, cols) = rules[key], shapes[key]
        if rule is None or rule.weak or (rows == size) == (cols == size):
            continue
        if rule.kind == "mlp" and min(rows, cols) < (size or 0):
            continue
        side = "fused" if rule.parts else "reads" if rule.role in _READERS else "writes"
        if not rule.parts and rule.role not in (*_READERS, *_WRITERS):
            continue
        kind = "numbered" if _NUMBERED.search(names[key].path) else side
        votes[kind] += 1 if (rows == size) == (side != "writes") else -1
    if votes["fused"] > 0 or (votes["reads"] > 0 and votes["writes"] > 0):
        return True
    is_haiku = all(key.endswith(".w") for key in keys)
    if votes["numbered"] > 0 and (votes["reads"] > 0 or is_haiku) and votes["writes"] >= 0 <= votes["fused"]:
        return True
    return False if any(votes[kind] < 0 for kind in ("fused", "reads", "writes")) else None


def _bias_vote(key: str, shape: Shape, all_shapes: Mapping[str, Shape]) -> int:
    """Give 1 for a matrix whose bias has a value for each column, -1 where it has one for each row, else 0."""
    if shape[0] == shape[1]:
        return 0
    bias = bias_beside(key, all_shapes)
    if bias not in ((shape[0],), (shape[1],)):
        return 0
    return 1 if bias == (shape[1],) else -1
