"""Attention by what its matrices are called and how large they are, whatever the module that holds them is called."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from specdiag.architecture.doubts import Doubt
from specdiag.architecture.members import Member, by_holder
from specdiag.architecture.names import is_index
from specdiag.architecture.rules import Rule
from specdiag.architecture.tokens import is_plain
from specdiag.architecture.widths import Width
from specdiag.records import Role

_CONTEXTS = ("attention", "block", "head")
_LISTED: tuple[Role, ...] = ("q", "k", "v", "o")
_LISTS = re.compile(r"linears|linear_layers", re.IGNORECASE)
"""Lists that hold q, k, v and o in this order: the Annotated Transformer's, and BERT-pytorch's."""
_OUTS = re.compile(
    r"(?:^|_)(?:w?o|out\w*|proj\w*|dense|fc|lin\w*|final|(?:merge|unif|combine|concat|join)\w*)$", re.IGNORECASE
)
_STEPS = re.compile(r"\d$|expand|shrink|squeeze|excit|reduce|widen|narrow|(?:^|_)(?:up|down)(?:_|$)", re.IGNORECASE)
_BESIDE = re.compile(r"gate|pos|rel|bias|time_|decay|lora|norm", re.IGNORECASE)

# What lies beside queries and keys and is neither of them, or cannot be told from them.
_UNTOLD = Rule("", role="other", weak=True, family="attention")

Decisions = dict[str, Rule]


def attentions(
    members: Sequence[Member], width: Width, recurrences: Container[str] = ()
) -> tuple[Decisions, list[Doubt]]:
    """Find the attention of a block.

    Args:
        members: its matrices.
        width: its residual width.
        recurrences: paths of modules that hold the parameters of a recurrence.

    Returns:
        The rule of each matrix whose name decides nothing; lists of which nothing tells the order.
    """
    mixers = _attending(members, recurrences)
    candidates = [member for member in members if member.name.context in _CONTEXTS or member.holder in mixers]
    decided: Decisions = {}
    doubts: list[Doubt] = []
    for path, held in by_holder(candidates):
        found = _named([member for member in held if member.holder == path], width)
        listed = [] if found else _list(path, held, width)
        if listed and _LISTS.fullmatch(listed[0].stem):
            found = {member.key: Rule("", role=role) for member, role in zip(listed, _LISTED, strict=False)}
        elif listed:
            doubts.append(Doubt("order", tuple(member.key for member in listed)))
            found = {member.key: _UNTOLD for member in listed}
        decided |= {key: rule for key, rule in found.items() if key not in decided}
    for path, held in by_holder(candidates):
        decided |= _output(path, held, decided, width)
    rest = (member for member in candidates if member.holder in mixers and member.key not in decided)
    decided |= {member.key: _UNTOLD for member in rest if member.is_open and member.name.context == "ssm"}
    return decided, doubts


def _attending(members: Sequence[Member], recurrences: Container[str]) -> frozenset[str]:
    """Find the mixing layers, of which names leave open whether they attend, that hold queries and keys."""
    words: dict[str, set[str]] = {}
    for member in members:
        if member.name.context == "ssm" and member.holder not in recurrences and (word := _role(member)) is not None:
            words.setdefault(member.holder, set()).add(word)
    return frozenset(holder for holder, found in words.items() if {"q", "k"} <= found)


def _named(members: Sequence[Member], width: Width) -> Decisions:
    """Take as projections those called q, k, v under one parent, of which there must be two that differ."""
    worded: dict[str, Role] = {member.key: word for member in members if (word := _role(member)) is not None}
    if len(set(worded.values())) < 2:
        return {}
    shapes = {word: member.shape for member in members if (word := worded.get(member.key)) is not None}
    keys, values = shapes.get("k"), shapes.get("v")
    if keys is not None and values is not None and keys == values[::-1] != values:
        return {}  # key and value of a feed-forward
    queries = shapes.get("q") or shapes.get("k") or next(iter(shapes.values()))
    if width.size is not None and not width.reads(queries):
        return {}
    along = 1 if width.transposed else 0
    if "q" in shapes and keys is not None and shapes["q"][along] % keys[along]:
        return {}  # keys that are stored, one for each slot of a memory
    return {
        member.key: Rule("", role=worded[member.key]) for member in members if member.key in worded and member.is_open
    }


def _role(member: Member) -> Role | None:
    if member.role in ("q", "k", "v", "kv"):
        return member.role
    return member.word if member.word != "qkv" and member.is_open else None


def _list(path: str, members: Sequence[Member], width: Width) -> list[Member]:
    """Find three or four equal square maps in attention whose only name is that of their list, in order."""
    listed = sorted(
        (m for m in members if m.is_sequential and m.container == path),
        key=lambda member: member.name.sequence or 0,
    )
    if len(listed) not in (3, 4) or not all(m.is_open and m.name.context == "attention" for m in listed):
        return []
    rows, cols = listed[0].shape
    is_square = rows == cols and width.size in (rows, None)
    return listed if is_square and all(m.shape == (rows, cols) for m in listed) else []


def _output(path: str, members: Sequence[Member], decided: Decisions, width: Width) -> Decisions:
    """Take as output the one matrix left beside queries, keys and values, or beside what fuses them."""
    roles: dict[str, Role | None] = {m.key: decided[m.key].role if m.key in decided else m.role for m in members}
    fused = [m for m in members if _is_fused(m)]
    heads = [m for m in members if roles[m.key] in ("q", "k", "v", "kv")]
    if "o" in roles.values() or any(m.key in decided and decided[m.key].parts for m in members):
        return {}
    left = [m for m in members if m.key not in decided and m.word is None and not _BESIDE.search(m.stem)]
    if not heads and not fused:
        return _unnamed_fused([m for m in left if m.is_open and m.holder == path], width)
    widths = _inner_widths(heads, roles, fused, width)
    is_inside = path != members[0].name.block
    fitting = [
        m
        for m in left
        if _held(m)[0] == path
        and _OUTS.search(_held(m)[1])
        and (m.is_open or (is_inside and m.side))
        and m.shape[0 if width.transposed else 1] in widths
        and (width.size is None or width.writes(m.shape))
    ]
    return {fitting[0].key: Rule("", role="o")} if len(fitting) == 1 else {}


def _held(member: Member) -> tuple[str, str]:
    """Give the holder of a module and its name; those of the module above where its own name says nothing."""
    if not is_plain(member.stem) or member.holder == member.name.block:
        return member.holder, member.stem
    above, _, stem = member.holder.rpartition(".")
    return (member.holder, member.stem) if is_index(stem) or _OUTS.search(stem) is None else (above, stem)


def _is_fused(member: Member) -> bool:
    return member.rule is not None and member.rule.parts[:1] == ("q",)


def _inner_widths(
    heads: Sequence[Member], roles: Mapping[str, Role | None], fused: Sequence[Member], width: Width
) -> Container[int | None]:
    """Give the widths that an output may take: that of the values of all heads, or of the queries."""
    along = 1 if width.transposed else 0
    if fused:
        return range(1, sum(m.shape[along] for m in fused))
    given = {role: sum(m.shape[along] for m in heads if roles[m.key] == role) for role in ("q", "v")}
    return {size for size in given.values() if size} or {width.size}


def _unnamed_fused(left: Sequence[Member], width: Width) -> Decisions:
    """Take two matrices of attention, [h + 2k, d] and [d, h], as q, k and v in one, and the output."""
    inside = [member for member in left if member.name.context == "attention"]
    if width.transposed or len(inside) != 2 or any(_STEPS.search(member.stem) for member in inside):
        return {}
    for fused, output in (inside, inside[::-1]):
        rows, cols = fused.shape
        keys, rest = divmod(rows - output.shape[1], 2)
        fits = output.shape[0] == cols and width.size in (cols, None) and keys > 0 and not rest
        if fits and output.shape[1] % keys == 0:
            return {
                fused.key: Rule("", family="attention", parts=("q", "k", "v"), layout="unknown"),
                output.key: Rule("", role="o"),
            }
    return {}
