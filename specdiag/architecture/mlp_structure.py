"""MLPs by their shapes: matrices that read the residual stream and write f values, and one that takes them back."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from specdiag.architecture.doubts import Doubt
from specdiag.architecture.members import Member, by_holder
from specdiag.architecture.names import is_index
from specdiag.architecture.rules import BUILTIN, Rule
from specdiag.architecture.widths import Width
from specdiag.records import Role

_CONTEXTS = ("mlp", "block")
_ACROSS = re.compile(r"(?:token|patch|spatial|position)s?_?mix|mlp_tokens|token_?wise", re.IGNORECASE)
_GATE = re.compile(r"(?:^|_)gat(?:e|ed|es|ing)(?=_|\d|$)", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_PLACED = re.compile(r"(?:fc|lin|linear|dense|layer|w|proj)?_?(?:[12]|(?:in|out)(?:_proj|put)?)", re.IGNORECASE)
_GATED = frozenset((known.gate, known.up, known.down) for known in BUILTIN.gated)

# A matrix of an MLP that either reads the residual stream or writes to it.
_UNTOLD = Rule("", role="other", family="mlp")

Decisions = dict[str, Rule]


def mlps(members: Sequence[Member], width: Width) -> tuple[Decisions, list[Doubt]]:
    """Find the MLPs of a block.

    Args:
        members: the matrices of the block whose roles attention does not take.
        width: its residual width.

    Returns:
        The rule of each of their matrices; what names and shapes do not tell of them.
    """
    free = {member.key: member for member in _candidates(members, width)}
    decided: Decisions = {}
    doubts: list[Doubt] = []
    for _, held in by_holder(list(free.values())):
        inside = [member for member in held if member.key in free]
        for readers, writers in _pairs(inside, width):
            if width.is_told and _is_reversed(readers, writers):
                continue
            for member in (*readers, *writers):
                del free[member.key]
            if _is_doubtful(readers, writers, width):
                doubts.append(Doubt("direction", (writers[0].key, readers[0].key)))
                decided |= {member.key: _UNTOLD for member in (*readers, *writers)}
                continue
            decided |= {writer.key: _named(writer, "down") for writer in writers}
            roles = _reading(readers, writers, doubts)
            decided |= {m.key: _named(m, roles.get(m.key, m.side or "up")) for m in readers}
        for reader, writer in _doubled([member for member in inside if member.key in free], width):
            del free[reader.key], free[writer.key]
            if reader.is_open or reader.side == "down":
                decided[reader.key] = Rule("", role="up", parts=("gate", "up"), layout="unknown")
            decided[writer.key] = _named(writer, "down")
    return decided, doubts


def misfits(members: Sequence[Member], width: Width) -> Decisions:
    """Find what only a number or a place calls up or down, right in the block, although nothing there takes it further.

    Such a matrix holds more than an MLP: queries, keys and values and an MLP side by side, or parts of a product.

    Args:
        members: the matrices of the block whose roles no structure decides.
        width: its residual width.
    """
    outer, inner = (1, 0) if width.transposed else (0, 1)
    written = {member.shape[outer] for member in members if member.side in ("gate", "up")}
    taken = {member.shape[inner] for member in members if member.side == "down"}
    if not written or not taken:
        return {}
    return {
        member.key: Rule("", role="other")
        for member in members
        if member.name.context == "block"
        and _PLACED.fullmatch(member.stem)
        and (
            (member.side == "up" and not {member.shape[outer], member.shape[outer] / 2} & taken)
            or (member.side == "down" and not {member.shape[inner], 2 * member.shape[inner]} & written)
        )
    }


def _candidates(members: Sequence[Member], width: Width) -> list[Member]:
    """Find what may lie in an MLP; where one has a name, no module beside it of which no name speaks."""
    inside = [member for member in members if _may_belong(member)]
    if not any(m.name.context == "mlp" or (m.side == "down" and width.writes(m.shape)) for m in inside):
        return inside
    named = {member.container for member in inside if member.side is not None}
    named |= {above for above, _, last in (path.rpartition(".") for path in named) if is_index(last)}
    return [m for m in inside if m.name.context == "mlp" or m.container in named | {m.name.block}]


def _named(member: Member, role: Role) -> Rule:
    """Keep the rule of a name that says the role, and what else it says."""
    return member.rule if member.rule is not None and member.role == role else Rule("", role=role)


def _may_belong(member: Member) -> bool:
    """Tell whether a matrix may lie in an MLP: its name says so, or leaves it open."""
    is_inside = member.name.context in _CONTEXTS and not _ACROSS.search(member.name.path)
    return is_inside and (member.is_open or member.side is not None)


def _pairs(members: Sequence[Member], width: Width) -> Iterator[tuple[list[Member], list[Member]]]:
    """Yield readers and writers of the same hidden width: as many of each, or two readers to a writer."""
    shapes: dict[tuple[int, int], list[Member]] = defaultdict(list)
    for member in members:
        shapes[member.shape].append(member)
    for shape, some in shapes.items():
        others = shapes.get((shape[1], shape[0]), [])
        if shape[0] > shape[1] and others:
            sides = _by_width(some, others, width) if width.size in shape else _by_count(some, others, width)
            if sides is not None:
                yield sides


def _by_width(some: list[Member], others: list[Member], width: Width) -> tuple[list[Member], list[Member]] | None:
    readers, writers = (some, others) if width.reads(some[0].shape) else (others, some)
    if len(readers) not in (len(writers), 2 * len(writers)):
        return None
    # Words such as up_proj decide against the shapes: an [in, out] layout that nothing else in the block shows.
    if _is_told(writers, readers) and all(map(_speaks, (*readers, *writers))):
        return None
    return readers, writers


def _by_count(some: list[Member], others: list[Member], width: Width) -> tuple[list[Member], list[Member]] | None:
    """Sort without a residual width: two of a shape read, else names decide, else what expands reads."""
    if width.transposed:
        some, others = others, some
    if len(some) == 2 * len(others):
        return some, others
    if len(others) == 2 * len(some):
        return others, some
    if len(some) != len(others):
        return None
    return (others, some) if _is_told(others, some) else (some, others)


def _is_told(readers: Sequence[Member], writers: Sequence[Member]) -> bool:
    """Tell whether names say that these read and those write, or at least one of both and no name the contrary."""
    sides = [*(member.side != "down" for member in readers if member.side)]
    sides += [member.side == "down" for member in writers if member.side]
    return bool(sides) and all(sides)


def _speaks(member: Member) -> bool:
    """Tell whether a name says its side by a word and not by a number."""
    return member.side is not None and not member.is_sequential and not _NUMBER.search(member.stem)


def _is_doubtful(readers: Sequence[Member], writers: Sequence[Member], width: Width) -> bool:
    """Tell whether numbers say the contrary of the shapes, in a block where nothing shows how matrices lie.

    Two that read and one that writes show it: the other way round they would be no MLP.
    """
    is_open = width.size in readers[0].shape and not width.is_told and len(readers) == len(writers)
    return is_open and (_is_told(writers, readers) or _is_reversed(readers, writers))


def _is_reversed(readers: Sequence[Member], writers: Sequence[Member]) -> bool:
    """Tell whether what writes comes before what reads in a sequence: it leads from another width and back."""
    reader, writer = readers[0], writers[0]
    is_list = len(readers) == len(writers) == 1 and reader.is_sequential and reader.container == writer.container
    return is_list and writer.is_sequential and (writer.name.sequence or 0) < (reader.name.sequence or 0)


def _reading(readers: Sequence[Member], writers: Sequence[Member], doubts: list[Doubt]) -> dict[str, Role]:
    """Choose gate or up for the readers whose names are open or wrong."""
    if len(readers) != 2 or len(writers) != 1:
        return {member.key: "up" for member in readers if member.side != "gate"}
    first, second = readers
    if {first.side, second.side} == {"gate", "up"}:
        return {}
    for one, other in ((first, second), (second, first)):
        if one.side == "gate" and other.side != "gate":
            return {other.key: "up"}
        is_called = _GATE.search(one.stem) and not _GATE.search(other.stem)
        if is_called or tuple(m.stem.lower() for m in (one, other, writers[0])) in _GATED:
            return {one.key: "gate", other.key: "up"}
        if one.side == "up" and _speaks(one) and other.is_open and not _NUMBER.search(other.stem):
            return {other.key: "gate"}
    doubts.append(Doubt("gate", (first.key, second.key)))
    return {member.key: "up" for member in readers}


def _doubled(members: Sequence[Member], width: Width) -> Iterator[tuple[Member, Member]]:
    """Yield gate and up in one matrix [2f, d] with the [d, f] that follows, where no other matrices fit them."""
    if width.size is None or width.transposed or not any(member.is_open for member in members):
        return
    shapes: dict[tuple[int, int], list[Member]] = defaultdict(list)
    for member in members:
        shapes[member.shape].append(member)
    for (rows, cols), writers in shapes.items():
        readers = shapes.get((2 * cols, rows), [])
        is_alone = len(readers) == len(writers) == 1 and rows not in (cols, 2 * cols)
        if rows == width.size and is_alone and writers[0].side in (None, "down"):
            yield readers[0], writers[0]
